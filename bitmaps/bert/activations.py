"""The functions between the two matrices of a feed-forward block.

The common ones are here, so that opening a model does not import ``transformers``, which takes
seconds. Any other name is looked up there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.errors import InputError


class NewGELU(nn.Module):
    """``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`` (Hendrycks and Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        inner = x + 0.044715 * torch.pow(x, 3.0)
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * inner))


class SignedGELU(nn.Module):
    """The exact GELU, with the sign of x for every x, for layers that take the sign of its result.

    ``torch``'s is -0 below about -5.5, where 1 + erf(x / sqrt 2) rounds to 0, and -0 >= 0 is true.
    Here a negative number gives at most -2^-100.
    """

    def forward(self, x: Tensor) -> Tensor:
        least = max(2.0**-100, torch.finfo(x.dtype).tiny)
        y = F.gelu(x)
        return torch.where(x < 0, y.clamp(max=-least), y)


COMMON: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": NewGELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Hugging Face's name of a function -> ours, equal to the last bit."""

LEARNED = frozenset(("prelu", "xielu"))
"""Functions of ``transformers`` with parameters of their own, for which a BERT has no place."""


def activation(name: str) -> nn.Module:
    """The function that Hugging Face's ``hidden_act`` names.

    Raises:
        KeyError: for an unknown name.
    """
    if name in COMMON:
        return COMMON[name]()
    from transformers.activations import ACT2FN

    return ACT2FN[name]


def check_activation(name: object) -> None:
    """Check the name of a function.

    Raises:
        InputError: when ``activation`` does not know it, or it is one of ``LEARNED``.
    """
    if isinstance(name, str) and name in COMMON:
        return
    from transformers.activations import ACT2FN

    valid = ACT2FN.keys() - LEARNED
    if not isinstance(name, str) or name not in valid:
        raise InputError(f"unknown hidden_act {name!r}; valid are {', '.join(sorted(valid))}")
