"""THE table: what can be binarized on its own, and how a model is converted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from bitmaps.bert import Bert
from bitmaps.binary.layers import BinaryEmbedding, BinaryLinear
from bitmaps.binary.quantize import Gradient, Quantizer, Scale, Values, two_values
from bitmaps.errors import InputError

Scope = Literal["all", "matrices"]

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


@torch.no_grad()
def binarize_naive(
    model: Bert, components: Iterable[str], values: Values, scale: Scale = "none", scope: Scope = "all"
) -> Bert:
    """Binarize a trained model as it stands, in place, without any training.

    Args:
        scope: ``all``, as in the blog post, makes every parameter of a component two-valued, biases and LayerNorm too;
            ``matrices`` leaves those alone.
    """
    for _, parameter in selected(model, components):
        if scope == "all" or parameter.ndim > 1:
            parameter.copy_(two_values(parameter, values, scale))
    return model


def make_trainable(
    model: Bert,
    components: Iterable[str],
    values: Values,
    scale: Scale = "row",
    gradient: Gradient = "identity",
    center: bool = False,
) -> Bert:
    """Swap the linear and embedding layers of the components, in place, for binary ones that can be trained.

    Biases and LayerNorms stay as they are. Each layer keeps its ``Parameter`` as latent weight; layers that share one (the
    word embeddings and the decoder) share one ``Quantizer`` too. With no components nothing changes.
    """
    matrices = {id(parameter) for _, parameter in selected(model, components) if parameter.ndim > 1}
    quantizers: dict[int, Quantizer] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear | nn.Embedding) or id(child.weight) not in matrices:
                continue
            key = id(child.weight)
            if key not in quantizers:
                quantizers[key] = Quantizer(child.weight, values, scale, gradient, center)
            if isinstance(child, nn.Linear):
                setattr(parent, name, BinaryLinear.from_float(child, quantizers[key]))
            else:
                setattr(parent, name, BinaryEmbedding.from_float(child, quantizers[key]))
    return model


@torch.no_grad()
def to_float(model: Bert) -> Bert:
    """A copy in which every binary layer is an ordinary one again that holds its *effective* weight, ties included."""
    model = copy.deepcopy(model)
    effective: dict[int, nn.Parameter] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, BinaryLinear | BinaryEmbedding):
                continue
            if id(child.weight) not in effective:
                effective[id(child.weight)] = nn.Parameter(child.binary_weight)
            layer: nn.Linear | nn.Embedding
            if isinstance(child, BinaryLinear):
                layer = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                layer.bias = child.bias
            else:
                layer = nn.Embedding(child.num_embeddings, child.embedding_dim, child.padding_idx, device="meta")
            layer.weight = effective[id(child.weight)]
            setattr(parent, name, layer.train(child.training))
    return model
