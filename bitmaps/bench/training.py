"""A training step, against that of ``transformers``, and with one-bit layers against without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.bench.peers import transformers_model
from bitmaps.bench.timing import Ratio, Request, Run, compare
from bitmaps.bert import Bert, BertConfig
from bitmaps.quantize.convert import make_trainable
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import IGNORE, Center, Component, Gradient

PART = "training"
BATCH, LENGTH, MASKED = 32, 64, 0.15
SHAPES = {
    "minilm": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert_base": BertConfig(),
}
QUICK_SHAPES = ("minilm",)
THEIRS, OURS = "transformers' step", "our step"


def ratios(request: Request) -> Iterator[Ratio]:
    """A step of masked-language modelling: forward, backward and AdamW, without dropout or a
    teacher."""
    for shape in QUICK_SHAPES if request.quick else SHAPES:
        on_what = f"{shape}, {BATCH} sequences of {LENGTH} tokens"
        step, through = f"{on_what}, the step", f"{on_what}, through one bit"
        if {step, through} <= request.done:
            continue
        config = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
        kept = torch.rand(ids.shape, generator=generator) < MASKED
        theirs = their_step(transformers_model(config).train(), ids, kept)
        ours = our_step(Bert(config), ids, kept)
        if step not in request.done:
            yield from compare(PART, step, THEIRS, {THEIRS: theirs, OURS: ours}, request.rounds)
        quantization = Quantization(center=Center.row, gradient=Gradient.scaled)
        layers = (Component.attention, Component.ffnn)
        binarized = make_trainable(Bert(config), layers, quantization)
        runs = {OURS: ours, "our step, layers binarized": our_step(binarized, ids, kept)}
        if through not in request.done:
            yield from compare(PART, through, OURS, runs, request.rounds)


def our_step(model: Bert, ids: Tensor, kept: Tensor) -> Run:
    model.set_dropout(0.0).train()
    mask = torch.ones_like(ids)
    return training_step(
        model, lambda: F.cross_entropy(model(ids, mask, positions=kept), ids[kept])
    )


def their_step(model: Any, ids: Tensor, kept: Tensor) -> Run:
    mask, labels = torch.ones_like(ids), ids.masked_fill(~kept, IGNORE)
    return training_step(model, lambda: model(ids, attention_mask=mask, labels=labels).loss)


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Run:
    """Forward, backward and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
