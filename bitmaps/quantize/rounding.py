"""Fewer than 32 bits but more than one: the word table, and the inputs of binarized matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.packed.activations import round_activations
from bitmaps.packed.weights import PackedWeight, to_integers
from bitmaps.vocabulary import Act, Storage


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


def rounded_inputs(x: Tensor, act: Act, column: Tensor | None = None) -> Tensor:
    """r(x) for inputs x (..., k) of a matrix q(W), in the dtype of x; computed in fp32.

    Packed models multiply x by the column scales v before they round it, and leave v out of the
    matrix. With q and s for x v (``bitmaps.packed.activations``) the same product is r(x) q(W)^T::

        r(x) = s q / v

    With ``a1``, no other two opposite values are closer to x v in the least squares (Rastegari et
    al. 2016, XNOR-Net, section 3.1).

    Args:
        column: v (k,), or ``None`` for a matrix without column scales. Where it is 0, so is the
            matrix, and r(x) does not matter.
    """
    exact = x.float()
    q, scale = round_activations(exact if column is None else exact * column.float(), act)
    found = q * scale
    if column is not None:
        found = found / torch.where(column == 0, 1.0, column.float())
    return found.to(x.dtype)


class RoundThrough(torch.autograd.Function):
    """``rounded`` in the forward pass, the identity in the backward one (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, storage: Storage) -> Tensor:
        return rounded(x, storage)

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
    """Rounds the inputs of a matrix, with a scale per token, as packed models do.

    Attributes:
        act: what they are rounded to (``bitmaps.packed.activations``).
        share: the result is x (1 - share) + r(x) share. It is a tensor, so that a compiled model
            stays compiled when it changes, and no buffer, so that checkpoints do not contain it.
    """

    def __init__(self, act: Act) -> None:
        super().__init__()
        self.act, self.share = act, torch.ones(())

    def forward(self, x: Tensor, column: Tensor | None = None) -> Tensor:
        """Inputs (..., k) for a matrix with these column scales (k,), if it has any.

        The gradient passes through r unchanged (Bengio et al. 2013). The column scales have theirs
        in the matrix.
        """
        constant = x.detach()
        rounded_x = rounded_inputs(constant, self.act, None if column is None else column.detach())
        # 0, with the gradient of x. torch.compile fails on an autograd.Function that rounds.
        rounded_x = rounded_x + (x - constant)
        return rounded_x * self.share + x * (1 - self.share)

    def extra_repr(self) -> str:
        return str(self.act)


def input_quantizers(model: nn.Module) -> list[InputQuantizer]:
    """The input quantizers of a model."""
    return [module for module in model.modules() if isinstance(module, InputQuantizer)]
