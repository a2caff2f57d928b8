"""Fewer than 32 bits but more than one: the word table, and the inputs of binarized matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.packed.weights import PackedWeight, to_integers
from bitmaps.vocabulary import Storage


def rounded(x: Tensor, storage: Storage) -> Tensor:
    """x in the precision of ``storage`` (fp16, int8 or int4), in its own dtype; computed in fp32.

    For b-bit integers every vector along the last dimension has its own scale s, and zero stays
    zero::

        s = max|x| / (2^(b-1) - 1),   r(x) = s * round(x / s)
    """
    if storage == Storage.fp16:
        return x.half().to(x.dtype)
    integers, scale = to_integers(x, Storage(storage).bits)
    return (integers * scale).to(x.dtype)


def signs(x: Tensor) -> Tensor:
    """One bit a number: mean|x| where x >= 0, else -mean|x|, with a mean per vector.

    Vectors lie along the last dimension. No other two opposite values are closer to x in the least
    squares (Rastegari et al. 2016, XNOR-Net, section 3.1).
    """
    scale = x.float().abs().mean(-1, keepdim=True)
    return torch.where(x >= 0, scale, -scale).to(x.dtype)


class RoundThrough(torch.autograd.Function):
    """``rounded`` (``signs`` for ``bit``) in the forward pass, the identity in the backward one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, storage: Storage) -> Tensor:
        return signs(x) if storage == Storage.bit else rounded(x, storage)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Rounding(nn.Module):
    """Rounds a latent weight to fp16, int8 or int4. A layer has it in place of a ``Quantizer``."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage

    def forward(self, weight: Tensor) -> Tensor:
        return RoundThrough.apply(weight, self.storage)

    def pack(self, weight: Tensor) -> PackedWeight:
        """The effective weight of a latent matrix, packed: ``forward``, exactly."""
        return PackedWeight.rounded(weight.detach().cpu(), self.storage)

    def extra_repr(self) -> str:
        return str(self.storage)


class InputQuantizer(nn.Module):
    """Rounds the inputs of a matrix, with a scale per token.

    The packed kernels round after multiplying by the column scales, if the matrix has any. They
    round equally coarsely, to other numbers.

    Attributes:
        storage: ``int8``, or one ``bit``.
        share: the result is x (1 - share) + r(x) share. It is a tensor, so that a compiled model
            stays compiled when it changes, and no buffer, so that checkpoints do not contain it.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage, self.share = storage, torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        rounded_x = RoundThrough.apply(x, self.storage)
        if self.storage == Storage.bit:
            return rounded_x * self.share + x * (1 - self.share)
        return rounded_x

    def extra_repr(self) -> str:
        return str(self.storage)


def one_bit_quantizers(model: nn.Module) -> list[InputQuantizer]:
    """The input quantizers of a model that leave one bit."""
    found = (module for module in model.modules() if isinstance(module, InputQuantizer))
    return [module for module in found if module.storage == Storage.bit]
