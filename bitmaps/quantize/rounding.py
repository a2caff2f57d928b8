"""What is not one bit but fewer than 32: the word table, and what enters a binarized matrix."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bitmaps.bert.config import BertConfig
from bitmaps.command.schema import Linear
from bitmaps.errors import InputError

Stored = Literal["fp16", "int8", "int4"]
BITS = {"fp16": 16, "int8": 8, "int4": 4}


def whole_numbers(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Signed numbers of ``bits`` bits, in fp32, and the scales that they are to be multiplied with, one for every vector along the
    last dimension (..., 1)."""
    largest, exact = 2 ** (bits - 1) - 1, x.float()
    scale = (exact.abs().amax(-1, keepdim=True) / largest).clamp(
        min=torch.finfo(torch.float32).tiny
    )
    return (exact / scale).round(), scale


def rounded(x: Tensor, stored: Stored) -> Tensor:
    """x in the precision of ``stored``, in its own dtype; computed in fp32.

    For b-bit integers every vector along the last dimension has a scale of its own, and zero stays zero:

        s = max|x| / (2^(b-1) - 1),   r(x) = s * round(x / s)
    """
    if stored == "fp16":
        return x.half().to(x.dtype)
    whole, scale = whole_numbers(x, BITS[stored])
    return (whole * scale).to(x.dtype)


def signs(x: Tensor) -> Tensor:
    """One bit a number and a scale for each vector along the last dimension: mean|x| where x >= 0, else -mean|x|. The closest such
    vector to x in the least squares (Rastegari et al. 2016, XNOR-Net, section 3.1)."""
    scale = x.float().abs().mean(-1, keepdim=True)
    return torch.where(x >= 0, scale, -scale).to(x.dtype)


class RoundThrough(torch.autograd.Function):
    """``rounded``, or ``signs`` for ``bit``, going forward, the identity gradient going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: Stored | Literal["bit"]) -> Tensor:
        return signs(x) if stored == "bit" else rounded(x, stored)

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


class RoundInputs:
    """A forward pre-hook: what enters a matrix, rounded for each token. (The packed kernels do so after they have multiplied it
    with the column scales, if the matrix has any: as coarsely, with other numbers.)

    Attributes:
        to: int8 with a scale for each token, or one ``bit``.
        share: what enters is x (1 - share) + r(x) share. A tensor, so that a compiled model stays compiled when it changes.
    """

    def __init__(self, to: Literal["int8", "bit"]) -> None:
        self.to, self.share = to, torch.ones(())

    def __call__(self, module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        x = RoundThrough.apply(inputs[0], self.to)
        return (x if self.to == "int8" else x * self.share + inputs[0] * (1 - self.share),)


def one_bit_inputs(model: nn.Module) -> list[RoundInputs]:
    """Those hooks of a model that leave one bit."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return [hook for hook in hooks if isinstance(hook, RoundInputs) and hook.to == "bit"]


def signed_inputs(config: BertConfig) -> list[str]:
    """The linear layers of whose inputs a model that was trained so takes the signs, as its ``config.json`` says.

    Raises:
        InputError: when that names anything else.
    """
    given = (config.bitmaps or {}).get("one_bit_inputs") or ""
    names = str(given).split("+") if given else []
    if unknown := [name for name in names if name not in Linear.__members__]:
        raise InputError(
            f"one_bit_inputs {unknown[0]!r} is unknown; valid are {', '.join(Linear.__members__)}"
        )
    return names
