"""Tune a calibrated model: a few minutes on a few hundred sentences, without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from bitmaps.bert import Bert
from bitmaps.data.masking import Vocabulary, mask_more
from bitmaps.quantize.calibrate import Tokens
from bitmaps.quantize.convert import matrices
from bitmaps.quantize.layers import quantized_layers
from bitmaps.training.losses import (
    Forward,
    LossWeights,
    distances,
    run,
    run_classes,
    run_vectors,
)
from bitmaps.vocabulary import Component, Task

PASSES = 8  # over the sentences
RATE_OF_LATENTS, RATE = 5e-4, 1e-3  # learning rates at their highest
LOSS = LossWeights(cross_entropy=0.0, logits=1.0, vectors=10.0)
WARMUP = 0.05  # share of the steps
LARGEST_GRADIENT = 1.0  # its norm
MASKED = 0.35  # share of the tokens


def steps_of(batches: Sequence[Tokens]) -> int:
    """How many steps ``tune`` takes."""
    return PASSES * len(batches)


@torch.enable_grad()
def tune(
    model: Bert, original: Bert, batches: Sequence[Tokens], vocabulary: Vocabulary
) -> Iterator[int]:
    """Fit a model that ``calibrate`` fitted layer by layer to the original as a whole, in place.

    Each step minimizes KL(original || model) of what is predicted for one batch, plus, for a
    sentence encoder, 10 (1 - cosine) between the vectors of the two. The gradient passes through
    the binarization as in training, so bits flip. Latent weights learn slowly;
    scales, biases and LayerNorms, which calibration fitted to one layer at a time, learn faster.
    Float matrices, such as the word table, stay. AdamW without weight decay, one linear schedule.

    Args:
        model, original: the first one is what ``make_trainable`` made. Dropout is off meanwhile.
        batches: a masked-LM's may have masks already; more are drawn for every step.

    Yields:
        the number of steps done.
    """
    latents = [layer.weight for layer in quantized_layers(model).values()]
    fixed = {id(p) for p in matrices(model, Component).values()} | {id(p) for p in latents}
    others = [p for p in model.parameters() if id(p) not in fixed]
    learned = [parameter.requires_grad_() for parameter in (*latents, *others)]
    steps = steps_of(batches)
    optimizer = torch.optim.AdamW(
        [{"params": latents, "lr": RATE_OF_LATENTS}, {"params": others, "lr": RATE}],
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    modes = [(one, one.training) for one in (model, original)]
    for one, _ in modes:
        one.eval()
    for step in range(steps):
        given = batches[step % len(batches)]
        batch, masked = masked_again(given, model.config.task, vocabulary, step)
        with torch.no_grad():
            theirs = forward(original, batch, masked)
        loss = difference(forward(model, batch, masked), theirs, batch)
        # of these alone: the word table's would take as long as a layer's
        gradients = torch.autograd.grad(loss, learned, allow_unused=True)
        for parameter, gradient in zip(learned, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(learned, LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield step + 1
    for one, training in modes:
        one.train(training)


def masked_again(
    batch: Tokens, task: Task, vocabulary: Vocabulary, step: int
) -> tuple[Tokens, Tensor]:
    """The batch with masks of its own for this step, and where ids are masked. Only a masked-LM's
    ids change."""
    ids = batch["input_ids"]
    masked = ids == vocabulary.mask
    if task is Task.masked_lm:
        ids, masked = mask_more(ids, masked, MASKED, vocabulary, (0, step))
    return {**batch, "input_ids": ids}, masked


def forward(model: Bert, batch: Tokens, masked: Tensor) -> Forward:
    """What a model makes of a batch; of a masked-LM the logits at ``masked`` (batch, length)."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    match model.config.task:
        case Task.masked_lm:
            return run(model, ids, mask, masked, project=False)
        case Task.sentence_embedding:
            return run_vectors(model, ids, mask, project=False)
        case Task.classification:
            types = batch.get("token_type_ids", torch.zeros_like(ids))
            return run_classes(model, ids, mask, types, project=False)


def difference(ours: Forward, theirs: Forward, batch: Tokens) -> Tensor:
    """What a step minimizes; ()."""
    parts = distances(ours, theirs, batch["attention_mask"].bool(), LOSS)
    # hidden states are compared too, but weigh nothing: no gradient of theirs
    weighing = {name: part for name, part in parts.items() if getattr(LOSS, name)}
    return torch.stack([getattr(LOSS, name) * part for name, part in weighing.items()]).sum()
