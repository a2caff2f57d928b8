"""Packed layers, and what they should compute."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from bitmaps.bert import Bert, BertConfig
from bitmaps.packed import format as folder
from bitmaps.packed import kernels as native
from bitmaps.packed.discover import one_bit
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedLinear
from bitmaps.packed.model import assemble
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import COMPONENTS, binarize_naive
from bitmaps.vocabulary import Act, Scale, Storage, ValueSet

WAYS = ("auto", "reference")
KINDS = ("pm1", "01", "two values", "rank one", "int8", "int4", "fp16")
GROUPS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "attention": ("attention",),
    "ffnn": ("ffnn",),
    "layers": ("attention", "ffnn"),
    "all": tuple(COMPONENTS),
}
TOP = {"a16": 32639, "a11": 1023, "a8": 127, "a6": 31}

many = settings(max_examples=30, deadline=None)
every_act = pytest.mark.parametrize("act", ACTS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def computed_by(way: str) -> Any:
    """The kernels that every call takes from here on."""
    return mock.patch.object(native, "kernels", side_effect=partial(native.chosen, way))


in_both_ways = pytest.mark.usefixtures("both_ways")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    weight, per_row = normal(rows, columns, seed=seed), normal(rows, 1, seed=seed + 1)
    if kind in ("int8", "int4", "fp16"):
        return PackedWeight.rounded(weight, kind)  # type: ignore[arg-type]
    low = {"pm1": -per_row, "01": 0 * per_row}.get(kind, per_row - 1)
    packed = one_bit(torch.where(weight > 0, per_row, low))
    assert packed is not None
    column = normal(columns, seed=seed + 2).exp() if kind == "rank one" else None
    return PackedWeight("bit", columns, packed.data, packed.high, packed.low, column)


def linear_of(kind: str, rows: int, columns: int, act: Act, seed: int = 0) -> PackedLinear:
    return PackedLinear(weight_of(kind, rows, columns, seed), normal(rows, seed=seed + 3), act)


def packed(
    model: Bert, act: Act, embeddings: Storage | None = None, head: Storage | None = None
) -> Bert:
    return assemble(model.config, folder.pack_model(model, embeddings, head), act)


def shaped(**changes: Any) -> Bert:
    """A model of which no size is a multiple of 8."""
    sizes = {"vocab_size": 61, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 27, "max_position_embeddings": 12}
    config = BertConfig(**(sizes | {"initializer_range": 0.3} | changes))  # type: ignore[arg-type]
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


def binary(group: str, scale: Scale = "row", values: ValueSet = "pm1", **changes: Any) -> Bert:
    """One of which a group of components is in one bit."""
    return binarize_naive(shaped(**changes), GROUPS[group], values, scale, "matrices")


def off(logits: Tensor, expected: Tensor) -> float:
    """How far, relative to the expected."""
    return ((logits - expected).norm() / expected.norm()).item()


# One matrix
