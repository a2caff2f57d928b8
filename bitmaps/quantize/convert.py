"""What can be binarized on its own, and how a whole model is converted."""

from __future__ import annotations

import copy
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

from bitmaps.bert import Bert
from bitmaps.bert.activations import SignedGELU
from bitmaps.errors import InputError
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, two_values
from bitmaps.quantize.rounding import InputQuantizer, Rounding, rounded
from bitmaps.vocabulary import (
    PLUS_MINUS_ONE,
    Act,
    Activations,
    Component,
    LinearName,
    Scale,
    Scope,
    Storage,
    ValueSet,
    components_of,
)

COMPONENTS = {
    Component.embeddings: "embeddings.*",
    Component.attention: "encoder.layers.*.attention.*",
    Component.ffnn: "encoder.layers.*.ffnn.*",
    Component.head: "head.*",
}
"""The names of each component's parameters.

``attention`` and ``ffnn`` are all of their block, the output projection and the LayerNorm included.
The decoder's weight is the word embeddings' (tied), so it belongs to ``embeddings``; its bias
belongs to ``head``.
"""


def selected(model: Bert, components: Iterable[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """The names and parameters of the components; a tied parameter comes once.

    Raises:
        InputError: for an unknown component.
    """
    components = tuple(components)
    if unknown := [c for c in components if c not in list(Component)]:
        raise InputError(f"unknown component {unknown[0]!r}; valid are {', '.join(Component)}")
    for name, parameter in model.named_parameters():
        if any(fnmatchcase(name, COMPONENTS[Component(c)]) for c in components):
            yield name, parameter


def matrices(model: Bert, components: Iterable[str]) -> dict[str, nn.Parameter]:
    """The weight matrices among ``selected``.

    The table of token types is not one: its rows are two biases, and every token gets one of them.
    """
    return {
        n: p
        for n, p in selected(model, components)
        if p.ndim > 1 and n != "embeddings.token_type.weight"
    }


@torch.no_grad()
def binarize_naive(
    model: Bert,
    components: Iterable[str],
    values: ValueSet,
    scale: Scale = Scale.none,
    scope: Scope = Scope.all,
) -> Bert:
    """Binarize a trained model in place, without any training.

    Args:
        scope: ``all``, as in the blog post, makes every parameter of a component two-valued, biases
            and LayerNorms included. ``matrices`` leaves those alone.
    """
    every = scope == Scope.all
    chosen = dict(selected(model, components)) if every else matrices(model, components)
    for parameter in chosen.values():
        parameter.copy_(two_values(parameter, values, scale))
    return model


@torch.no_grad()
def store_words(model: Bert, words: Storage, values: ValueSet = PLUS_MINUS_ONE) -> Bert:
    """Round the word table to the precision it will be stored in, in place and without training.

    A tied decoder is rounded with it.
    """
    weight = model.embeddings.word.weight
    if words == Storage.bit:
        center_words(model)
        weight.copy_(two_values(weight, values, Scale.row))
    elif words != Storage.fp32:
        weight.copy_(rounded(weight, words))
    return model


@torch.no_grad()
def center_words(model: Bert) -> None:
    """Move the mean word vector into the token types, which are added to every word.

    The hidden states stay the same. So do the predictions, because a tied decoder loses the same
    amount for every word. Without centering most bits of a column would be equal.
    """
    mean = model.embeddings.word.weight.mean(0)
    model.embeddings.word.weight -= mean
    model.embeddings.token_type.weight += mean


def make_trainable(
    model: Bert,
    components: Iterable[str],
    quantization: Quantization,
    words: Storage | None = None,
    one_bit: Container[str] = (),
) -> Bert:
    """Replace the linear and embedding layers of the components, in place, by quantized ones.

    Biases and LayerNorms stay as they are. Each layer keeps its ``Parameter`` as latent weight, and
    its input quantizer. Layers that share a parameter (the word embeddings and the decoder) share
    one ``Quantizer`` too. Without components only the word table can change.

    Args:
        words: how the word table will be stored. ``None`` leaves it to the components.
        one_bit: names of linear layers whose inputs will be one bit (``round_activations``). They
            get no column scales: a column scale scales the inputs, and signs would not show it.
    """
    table = model.embeddings.word.weight
    chosen = {id(parameter) for parameter in matrices(model, components).values()}
    quantizers: dict[int, Quantizer | Rounding] = {}
    words = words or (Storage.bit if id(table) in chosen else Storage.fp32)
    chosen = chosen - {id(table)} if words == Storage.fp32 else chosen | {id(table)}
    if words == Storage.bit:
        center_words(model)
    elif words != Storage.fp32:
        quantizers[id(table)] = Rounding(words)
    for parent, name, child in children_of(model):
        key = id(child.weight)
        if key not in chosen:
            continue
        if key not in quantizers:
            by_rows = name in one_bit and quantization.scale == Scale.rank_one
            own = replace(quantization, scale=Scale.row) if by_rows else quantization
            quantizers[key] = Quantizer(child.weight, own)
        layer: QuantizedLinear | QuantizedEmbedding
        if isinstance(child, nn.Linear):
            inputs = child.input_quantizer if isinstance(child, QuantizedLinear) else None
            layer = QuantizedLinear.from_float(child, quantizers[key], inputs)
        else:
            layer = QuantizedEmbedding.from_float(child, quantizers[key])
        setattr(parent, name, layer)
    return model


def children_of(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear | nn.Embedding]]:
    """Every linear and embedding layer, with its parent and its name there."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear | nn.Embedding)
    ]


def round_activations(
    model: Bert, components: Iterable[str], activations: Activations, one_bit: Container[str] = ()
) -> Bert:
    """Give the linear layers of the components input quantizers, in place.

    Args:
        activations: what the inputs become; ``float`` leaves the model as it is.
        one_bit: with ``activations=bit``, names of the layers, such as ``query``, whose inputs
            become one bit. The inputs of the others become int8.
    """
    if activations == Activations.float:
        return model
    chosen = {id(parameter) for parameter in matrices(model, components).values()}
    for parent, name, child in children_of(model):
        if not isinstance(child, nn.Linear) or id(child.weight) not in chosen:
            continue
        inputs = InputQuantizer(Act.a1 if name in one_bit else Activations(activations).act)
        weights = child.quantizer if isinstance(child, QuantizedLinear) else None
        setattr(parent, name, QuantizedLinear.from_float(child, weights, inputs))
        if name == LinearName.contract and name in one_bit and model.config.hidden_act == "gelu":
            parent.activation = SignedGELU()  # as the packed kernels compute it
    return model


def restore_activations(model: Bert) -> Bert:
    """Give a model trained with activations in int6 or one bit its input quantizers back, in place.

    Without them the model computes something else. A model trained with int8 activations does not
    need them: floats change little.
    """
    config, needed = model.config, model.config.needed_activations()
    if needed is not Activations.float and config.bitmaps is not None:
        components = components_of(config.bitmaps["components"])
        round_activations(model, components, needed, config.one_bit_inputs())
    return model


@torch.no_grad()
def to_float(model: Bert) -> Bert:
    """A copy whose layers hold their *effective* weights as parameters; ties and modes stay.

    A layer that rounds its inputs still does, as a ``QuantizedLinear`` without weight quantizer.
    All others are ordinary layers again.
    """
    model = copy.deepcopy(model)
    effective: dict[int, nn.Parameter] = {}
    for parent, name, child in children_of(model):
        if not isinstance(child, QuantizedLinear | QuantizedEmbedding) or child.quantizer is None:
            continue
        key = id(child.weight)
        if key not in effective:
            effective[key] = nn.Parameter(child.effective_weight)
        layer: nn.Linear | nn.Embedding
        if isinstance(child, QuantizedEmbedding):
            sizes = child.num_embeddings, child.embedding_dim, child.padding_idx
            layer = nn.Embedding(*sizes, device="meta")
            layer.weight = effective[key]
        else:
            layer = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
            layer.weight, layer.bias = effective[key], child.bias
            if child.input_quantizer is not None:
                layer = QuantizedLinear.from_float(layer, None, child.input_quantizer)
        setattr(parent, name, layer.train(child.training))
    return model
