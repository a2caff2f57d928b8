"""A BERT-base with one-bit layers, against fp32 in PyTorch and in ``transformers``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bitmaps.bench.peers import (
    FAIR,
    MODEL_PEERS,
    TRANSFORMERS,
    Predict,
    at_positions,
    transformers_model,
)
from bitmaps.bench.timing import Ratio, Request, Run, compare
from bitmaps.bert import Bert, BertConfig
from bitmaps.packed.format import assemble, pack_model
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import PLUS_MINUS_ONE, Act, Component, Scale, Scope, Storage

PART = "model"
BATCHES = (1, 32, 128)
QUICK_BATCHES = (1, 8)
LENGTH, MASKED = 64, 0.15

LAYERS = (Component.attention, Component.ffnn)
MODES = {Act.a8: LAYERS, Act.a1: (*LAYERS, Component.embeddings)}
"""The activation modes that are timed, and the components that have one-bit weights in each. The
word table is in int8 unless it is one of them."""


@torch.inference_mode()
def ratios(request: Request) -> Iterator[Ratio]:
    """Sequences of 64 tokens, against each of the two fp32 models.

    The fair one has fused attention, and logits at the masked positions only, as the contenders
    have. The model of ``transformers`` is timed as it comes, with logits at all positions.
    """
    generator = torch.Generator().manual_seed(0)
    fair = Bert(BertConfig()).eval()
    theirs = transformers_model(fair.config).eval()
    contenders: dict[str, Predict] = {}
    for peer in MODEL_PEERS:
        contenders |= peer(fair)
    for act, components in MODES.items():
        contenders[f"one bit, {act}"] = at_positions(packed(fair, act, components))
    for batch in QUICK_BATCHES if request.quick else BATCHES:
        ids = torch.randint(fair.config.vocab_size, (batch, LENGTH), generator=generator)
        kept = torch.rand(ids.shape, generator=generator) < MASKED
        runs: dict[str, Run] = {name: partial(run, ids, kept) for name, run in contenders.items()}
        for reference in (FAIR, TRANSFORMERS):
            if reference == TRANSFORMERS:
                runs[TRANSFORMERS] = partial(theirs, ids)
            what = f"BERT-base, batch {batch} of {LENGTH} tokens, against {reference}"
            if what not in request.done:
                yield from compare(PART, what, reference, runs, request.rounds)


def packed(model: Bert, act: Act, components: tuple[Component, ...]) -> Bert:
    """A model with the matrices of ``components`` in one bit and row scales, packed."""
    binary = Bert(model.config)
    binary.load_state_dict(model.state_dict())
    binarize_naive(binary, components, PLUS_MINUS_ONE, Scale.row, Scope.matrices)
    return assemble(model.config, pack_model(binary, embeddings=Storage.int8), act)
