"""Models that were converted, and the names of their parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bitmaps.bert import Bert, BertConfig
from bitmaps.quantize.convert import (
    selected,
)
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization
from bitmaps.vocabulary import GROUPS

EMBEDDINGS = {
    "embeddings.word.weight",
    "embeddings.position.weight",
    "embeddings.token_type.weight",
    "embeddings.norm.weight",
    "embeddings.norm.bias",
}
ATTENTION = {
    f"encoder.layers.{layer}.attention.{module}.{tensor}"
    for layer in (0, 1)
    for module in ("query", "key", "value", "output", "norm")
    for tensor in ("weight", "bias")
}
FFNN = {
    f"encoder.layers.{layer}.ffnn.{module}.{tensor}"
    for layer in (0, 1)
    for module in ("expand", "contract", "norm")
    for tensor in ("weight", "bias")
}
HEAD = {
    "head.transform.weight",
    "head.transform.bias",
    "head.norm.weight",
    "head.norm.bias",
    "head.decoder.bias",
}
SELECTED = {
    "none": set(),
    "all": EMBEDDINGS | ATTENTION | FFNN | HEAD,
    "layers": ATTENTION | FFNN,
    "layers_except_attention": FFNN,
    "layers_except_ffnn": ATTENTION,
}

MATRICES = {  # all but the tied decoder, which is the word table
    "embeddings": {"embeddings.word.weight", "embeddings.position.weight"},
    "attention": {
        f"encoder.layers.{layer}.attention.{module}.weight"
        for layer in (0, 1)
        for module in ("query", "key", "value", "output")
    },
    "ffnn": {
        f"encoder.layers.{layer}.ffnn.{module}.weight"
        for layer in (0, 1)
        for module in ("expand", "contract")
    },
    "head": {"head.transform.weight"},
}
RECIPES = {
    "default": Quantization(),
    "bitmaps": Quantization("pm1", "row", "learned", "row", "scaled"),
    "01": Quantization("01", "row", "learned", "row", "scaled"),
    "none": Quantization("01", "none"),
    "01 of rank one": Quantization("01", "rank_one", "learned", "row", "scaled"),
    "bwn": Quantization("pm1", "tensor", "computed"),
    "bibert": Quantization("pm1", "row", "computed", "row", "clamp"),
    "bit": Quantization("pm1", "tensor", "computed", "tensor"),
    "paretoq": Quantization("pm1", "row", "lsq", "none", "clipped"),
    "onebit": Quantization("pm1", "rank_one", "learned", "none", "scaled"),
}

each_values = pytest.mark.parametrize("values", ["01", "pm1"])
each_group = pytest.mark.parametrize("group", SELECTED)
each_recipe = pytest.mark.parametrize("quantization", RECIPES.values(), ids=RECIPES)
each_stored = pytest.mark.parametrize("stored", ["fp16", "int8", "int4"])


def names(model: Bert, *components: str) -> set[str]:
    return {name for name, _ in selected(model, components)}


def matrices_of(group: str) -> set[str]:
    return {name for component in GROUPS[group] for name in MATRICES[component]}


def small(tied: bool, layers: int = 1) -> Bert:
    sizes: dict[str, Any] = {
        "vocab_size": 20,
        "hidden_size": 12,
        "num_hidden_layers": layers,
        "intermediate_size": 8,
        "initializer_range": 0.3,
    }
    return Bert(BertConfig(**sizes, tie_word_embeddings=tied))


def quantized(model: Bert) -> dict[str, QuantizedLinear | QuantizedEmbedding]:
    return {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, QuantizedLinear | QuantizedEmbedding)
    }


def state_of(model: Bert) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_state(model: Bert, before: dict[str, Tensor], *but: str) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert {name for name, tensor in after.items() if not torch.equal(tensor, before[name])} == set(
        but
    )


WORDS = ("embeddings.word.weight", "head.decoder.weight")  # one parameter
