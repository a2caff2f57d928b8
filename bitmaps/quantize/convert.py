"""THE table: what can be binarized on its own, and how a model is converted."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from bitmaps.bert import Bert
from bitmaps.errors import InputError
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, Scale, Values, two_values
from bitmaps.quantize.rounding import Rounding, RoundInputs, Stored, rounded

Scope = Literal["all", "matrices"]
WordTable = Literal["fp32", "bit"] | Stored

# component -> its parameters' names. `attention` and `ffnn` are everything of their block, output projection and LayerNorm
# included. The decoder's weight is the word embeddings' (tied), so it belongs to `embeddings`; its bias to `head`.
COMPONENTS = {
    "embeddings": "embeddings.*",
    "attention": "encoder.layers.*.attention.*",
    "ffnn": "encoder.layers.*.ffnn.*",
    "head": "head.*",
}


def selected(model: Bert, components: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """The names and parameters of the components, a tied one once.

    Raises:
        InputError: for a component that is not in the table.
    """
    components = tuple(components)
    if unknown := [c for c in components if c not in COMPONENTS]:
        raise InputError(f"unknown component {unknown[0]!r}; valid are {', '.join(COMPONENTS)}")
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, COMPONENTS[c]) for c in components):
            yield name, parameter


def matrices(model: Bert, components: Iterable[str]) -> dict[str, nn.Parameter]:
    """Those of ``selected`` that are weight matrices. The token types' table is none: its rows are two biases, one of which is
    added to every token."""
    return {
        n: p
        for n, p in selected(model, components)
        if p.ndim > 1 and n != "embeddings.token_type.weight"
    }


@torch.no_grad()
def binarize_naive(
    model: Bert,
    components: Iterable[str],
    values: Values,
    scale: Scale = "none",
    scope: Scope = "all",
) -> Bert:
    """Binarize a trained model as it stands, in place, without any training.

    Args:
        scope: ``all``, as in the blog post, makes every parameter of a component two-valued, biases and LayerNorm too;
            ``matrices`` leaves those alone.
    """
    chosen = dict(selected(model, components)) if scope == "all" else matrices(model, components)
    for parameter in chosen.values():
        parameter.copy_(two_values(parameter, values, scale))
    return model


@torch.no_grad()
def store_words(model: Bert, stored: WordTable, values: Values = "pm1") -> Bert:
    """Bring the word table, and with it a tied decoder, into the precision it is to be stored in, without training, in place."""
    weight = model.embeddings.word.weight
    if stored == "bit":
        center_words(model)
        weight.copy_(two_values(weight, values, "row"))
    elif stored != "fp32":
        weight.copy_(rounded(weight, stored))
    return model


@torch.no_grad()
def center_words(model: Bert) -> None:
    """Move the mean word vector into the token types, which are added to every word: the hidden states stay the same, and so do
    the predictions, as a tied decoder loses the same amount for every word. Without it the bits of a column are mostly alike.
    """
    mean = model.embeddings.word.weight.mean(0)
    model.embeddings.word.weight -= mean
    model.embeddings.token_type.weight += mean


def make_trainable(
    model: Bert,
    components: Iterable[str],
    quantization: Quantization,
    words: WordTable | None = None,
    signed: Container[str] = (),
) -> Bert:
    """Swap the linear and embedding layers of the components, in place, for quantized ones that can be trained.

    Biases and LayerNorms stay as they are. Each layer keeps its ``Parameter`` as latent weight; layers that share one (the
    word embeddings and the decoder) share one ``Quantizer`` too. With no components nothing changes, the word table apart.

    Args:
        words: how the word table is to be stored. ``None`` leaves it to the components.
        signed: linear layers whose inputs will be signs (``round_activations``). They get no scale a column, which is a scale of
            the inputs: their signs would not show it.
    """
    table = model.embeddings.word.weight
    chosen = {id(parameter) for parameter in matrices(model, components).values()}
    quantizers: dict[int, Quantizer | Rounding] = {}
    words = words or ("bit" if id(table) in chosen else "fp32")
    chosen = chosen - {id(table)} if words == "fp32" else chosen | {id(table)}
    if words == "bit":
        center_words(model)
    elif words != "fp32":
        quantizers[id(table)] = Rounding(words)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear | nn.Embedding) or id(child.weight) not in chosen:
                continue
            key = id(child.weight)
            if key not in quantizers:
                by_rows = name in signed and quantization.scale == "rank_one"
                quantizers[key] = Quantizer(
                    child.weight, replace(quantization, scale="row") if by_rows else quantization
                )
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear.from_float(child, quantizers[key]))
            else:
                setattr(parent, name, QuantizedEmbedding.from_float(child, quantizers[key]))
    return model


def round_activations(model: Bert, components: Iterable[str], signed: Container[str] = ()) -> Bert:
    """Have what enters the linear layers of these components rounded from now on, in place: to int8, a scale for each token, or to
    one bit where the layer's own name, such as ``query``, is in ``signed``."""
    chosen = {id(parameter) for parameter in matrices(model, components).values()}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and id(module.weight) in chosen:
            module.register_forward_pre_hook(
                RoundInputs("bit" if name.rpartition(".")[-1] in signed else "int8")
            )
    return model


@torch.no_grad()
def to_float(model: Bert) -> Bert:
    """A copy in which every quantized layer is an ordinary one again that holds its *effective* weight, ties included."""
    model = copy.deepcopy(model)
    effective: dict[int, nn.Parameter] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, QuantizedLinear | QuantizedEmbedding):
                continue
            if id(child.weight) not in effective:
                effective[id(child.weight)] = nn.Parameter(child.effective_weight)
            layer: nn.Linear | nn.Embedding
            if isinstance(child, QuantizedLinear):
                layer = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                layer.bias = child.bias
            else:
                layer = nn.Embedding(
                    child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta"
                )
            layer.weight = effective[id(child.weight)]
            setattr(parent, name, layer.train(child.training))
    return model
