"""Tune a calibrated model: a few minutes on a few hundred sentences, without labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from bitmaps.bert import Bert
from bitmaps.data.masking import Vocabulary, mask_more
from bitmaps.quantize.calibrate import Tokens
from bitmaps.quantize.convert import matrices
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantizer
from bitmaps.training.losses import distillation, similarities
from bitmaps.vocabulary import Component, Task

PASSES = 8  # over the sentences
RATE_OF_LATENTS, RATE = 5e-4, 1e-3  # learning rates at their highest
WEIGHT_OF_VECTORS = 10.0
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
    sentence encoder, 10 (1 - cosine) between the vectors of the two. The gradient
    passes through the binarization as in training, so bits flip. Latent weights learn slowly;
    scales, biases and LayerNorms, which calibration fitted to one layer at a time, learn faster.
    Float matrices, such as the word table, stay. AdamW without weight decay, one linear schedule.

    Args:
        model, original: the first one is what ``make_trainable`` made. Dropout is off meanwhile.
        batches: a masked-LM's may have masks already; more are drawn for every step.

    Yields:
        the number of steps done.
    """
    latents = latent_weights(model)
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
        batch = masked_again(batches[step % len(batches)], model, vocabulary, step)
        with torch.no_grad():
            wanted = predictions(original, *batch)
        loss = difference(predictions(model, *batch), wanted, model.config.task)
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


def latent_weights(model: Bert) -> list[nn.Parameter]:
    """The weights that are binarized; a tied one comes once."""
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    found = {id(m.weight) for m in layers if isinstance(m.quantizer, Quantizer)}
    return [parameter for parameter in model.parameters() if id(parameter) in found]


def masked_again(
    batch: Tokens, model: Bert, vocabulary: Vocabulary, step: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The ids with masks of their own for this step, attention mask, token types, and where ids are
    masked. Only a masked-LM's ids change."""
    ids, mask, types = batch["input_ids"], batch["attention_mask"], batch.get("token_type_ids")
    masked = ids == vocabulary.mask
    if model.config.task is Task.masked_lm:
        ids, masked = mask_more(ids, masked, MASKED, vocabulary, (0, step))
    return ids, mask, types, masked


def predictions(
    model: Bert, ids: Tensor, mask: Tensor, types: Tensor | None, masked: Tensor
) -> Tensor:
    """What a model predicts: logits, (masked tokens, vocabulary) or (batch, classes); or vectors of
    sentences, (batch, hidden)."""
    hidden = model.encode(ids, mask, types)[-1]
    match model.config.task:
        case Task.masked_lm:
            return model.head(hidden[masked])
        case Task.sentence_embedding:
            return model.head(hidden, mask)
        case Task.classification:
            return model.head(hidden)


def difference(found: Tensor, wanted: Tensor, task: Task) -> Tensor:
    """How far ``predictions`` are from the original's, as ``tune`` says; ()."""
    if task is not Task.sentence_embedding:
        return distillation(found, wanted)
    apart = (1 - F.cosine_similarity(found, wanted, dim=-1)).mean()
    return distillation(similarities(found), similarities(wanted)) + WEIGHT_OF_VECTORS * apart
