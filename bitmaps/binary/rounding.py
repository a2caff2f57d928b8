"""What is not one bit but fewer than 32: the word table, and what enters a binarized matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Stored = Literal["fp16", "int8", "int4"]
BITS = {"fp16": 16, "int8": 8, "int4": 4}


def rounded(x: Tensor, stored: Stored) -> Tensor:
    """x in the precision of ``stored``, in its own dtype; computed in fp32.

    For b-bit integers every vector along the last dimension has a scale of its own, and zero stays zero:

        s = max|x| / (2^(b-1) - 1),   r(x) = s * round(x / s)
    """
    if stored == "fp16":
        return x.half().to(x.dtype)
    largest, exact = 2 ** (BITS[stored] - 1) - 1, x.float()
    scale = (exact.abs().amax(-1, keepdim=True) / largest).clamp(min=torch.finfo(torch.float32).tiny)
    return ((exact / scale).round() * scale).to(x.dtype)


class RoundThrough(torch.autograd.Function):
    """``rounded`` going forward, the identity gradient going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Stored) -> Tensor:
        return rounded(x, stored)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Rounding(nn.Module):
    """Turns a latent weight into what is left of it in ``stored``; in place of a ``Quantizer``."""

    def __init__(self, stored: Stored) -> None:
        super().__init__()
        self.stored = stored

    def forward(self, weight: Tensor) -> Tensor:
        return RoundThrough.apply(weight, self.stored)

    def extra_repr(self) -> str:
        return self.stored


def round_inputs(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """A forward pre-hook: int8, with a scale for each token, as a kernel for int8 activations computes it."""
    return (RoundThrough.apply(inputs[0], "int8"),)
