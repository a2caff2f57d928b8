"""Two values, a threshold, a scale: the map from a weight to one bit, and the gradient that passes through it.

A value set is a pair of numbers (low, high). Every weight w becomes ``a * high`` or ``a * low``, where ``a`` is a scale::

    bit = w > 0 for {0,1},  w >= 0 for {-1,1}         so that a weight of exactly 0 is never a third value
    q(w) = a * (low + (high - low) * bit)

Unless it is learned, the scale is the number with which q(w) is closest to w, when the threshold is 0: the mean of ``|w|`` for
{-1,1} (Rastegari et al. 2016, equation 6), the mean of the positive weights for {0,1}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Values = Literal["01", "pm1"]
Scale = Literal["none", "tensor", "row", "rank_one"]
Scaling = Literal["computed", "learned", "lsq"]
Center = Literal["none", "tensor", "row"]
Gradient = Literal["identity", "scaled", "clipped", "clamp", "product"]

SMALLEST = 1e-5  # of a scale under lsq, as in ParetoQ's code
TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Quantization:
    """How weights become two values, in parts that combine freely.

    Attributes:
        values: the value set.
        scale: what shares one: everything (``none``: 1), a ``tensor``, a ``row``; ``rank_one`` is a scale a row times a scale
            a column (Xu et al. 2024, OneBit).
        scaling: ``computed`` from the latent weight at every step, without a gradient; ``learned``, starting there; or ``lsq``:
            learned, at least 1e-5, its gradient divided by the square root of the matrix's count of weights (Esser et al. 2020).
        center: the threshold: 0, or the mean of the ``tensor`` or of the ``row``, so that bits are balanced.
        gradient: which one reaches the latent weight; see ``StraightThrough``.
    """

    values: Values = "pm1"
    scale: Scale = "row"
    scaling: Scaling = "learned"
    center: Center = "none"
    gradient: Gradient = "identity"


def bits(weight: Tensor, values: Values) -> Tensor:
    """True where a weight takes the high value; what 0 becomes is in the module's docstring."""
    return weight > 0 if values == "01" else weight >= 0


def units(weight: Tensor, values: Values) -> Tensor:
    """The low or the high value for each weight, in its dtype."""
    bit = bits(weight, values).to(weight.dtype)
    return bit if values == "01" else 2 * bit - 1


def scale_of(weight: Tensor, values: Values, scale: Scale) -> tuple[Tensor, Tensor | None]:
    """The scale of a weight (..., n), broadcastable against it: (1, ..., 1), or (..., 1) for ``row``; and for ``rank_one`` a
    scale a column (n,) as well.

    A vector counts as one row, which needs no scale a column. Summed in fp64, so that a weight which has just the two values
    already gives back its own scale to the bit. A row of {0,1} without a positive weight has scale 0.
    """
    if scale == "none":
        return torch.ones((1,) * weight.ndim, dtype=weight.dtype, device=weight.device), None
    if scale == "rank_one" and weight.ndim > 1:
        return rank_one(weight, values)
    over = tuple(range(weight.ndim)) if scale == "tensor" else (-1,)
    if values == "pm1":
        return weight.abs().mean(over, keepdim=True, dtype=torch.float64).to(weight.dtype), None
    high = bits(weight, values)
    total = torch.where(high, weight, 0.0).sum(over, keepdim=True, dtype=torch.float64)
    return (total / high.sum(over, keepdim=True).clamp(min=1)).to(weight.dtype), None


def rank_one(weight: Tensor, values: Values) -> tuple[Tensor, Tensor]:
    """Scales u (..., 1) a row and v (n,) a column, mean 1, for which ``u v * units(weight)`` is closest to the weight in the
    least squares.

    Each is the solution given the other, in turn. For {-1,1} that is the power iteration for the first singular vectors of ``|W|``
    (Xu et al. 2024, OneBit, proposition 1), which settles within a few rounds; {0,1} takes some dozens.
    """
    unit = units(weight, values).double().flatten(0, -2)
    along, covered = weight.double().flatten(0, -2) * unit, unit.square()
    v = torch.ones_like(along[0])
    for _ in range(100):
        before = v
        u = along @ v / (covered @ v.square()).clamp(min=TINY)
        v = u @ along / (u.square() @ covered).clamp(min=TINY)
        v = v / v.mean().clamp(min=TINY)
        if (v - before).abs().max() < 1e-10:
            break
    u = along @ v / (covered @ v.square()).clamp(min=TINY)
    return u.reshape(*weight.shape[:-1], 1).to(weight.dtype), v.to(weight.dtype)


def two_values(weight: Tensor, values: Values, scale: Scale) -> Tensor:
    """Binarize without training: a tensor of the same shape. A tensor that has the two values already is unchanged,
    by ``rank_one`` up to rounding."""
    row, column = scale_of(weight, values, scale)
    return (row if column is None else row * column) * units(weight, values)


class StraightThrough(torch.autograd.Function):
    """q(w) going forward; going back, a gradient for the weight as if rounding had not happened (Bengio et al. 2013).

    With g = dL/dq, u = q / a, and a = row scale times column scale, if there is one::

        dL/da = sum of g * u over what shares the scale
        dL/dw = g                     identity
                a * g                 scaled: the exact gradient of a * u, had u = w
                g * 1[|w| <= a]       clipped: none to a weight that is already beyond its value
                g * 1[|w| <= 1]       clamp: the gradient of clamp(w, -1, 1)
                w * g * 1[|w| <= 1]   product: vanishes at the threshold, and is reversed for negative weights
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, column: Tensor | None, quantization: Quantization
    ) -> Tensor:
        gradient = quantization.gradient
        if quantization.scaling == "lsq":
            scale = scale.clamp(min=SMALLEST)
        unit = units(weight, quantization.values)
        magnitude = scale if column is None else scale * column
        limit = magnitude if gradient == "clipped" else 1.0
        window = weight.abs() <= limit if gradient in ("clipped", "clamp", "product") else None
        ctx.save_for_backward(
            unit, scale, column, window, weight if gradient == "product" else None
        )
        ctx.quantization = quantization
        return magnitude * unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        (g,), (unit, scale, column, window, weight) = grads, ctx.saved_tensors
        to_scale, to_column = None, None
        if ctx.needs_input_grad[1]:
            along = g * unit
            to_scale = (along if column is None else along * column).sum_to_size(scale.shape)
            if ctx.quantization.scaling == "lsq":
                to_scale = to_scale / math.sqrt(unit.numel())
            if column is not None:
                to_column = (along * scale).sum_to_size(column.shape)
        to_weight = g if window is None else g * window
        if ctx.quantization.gradient == "scaled":
            to_weight = g * scale if column is None else g * scale * column
        elif ctx.quantization.gradient == "product":
            to_weight = to_weight * weight
        return to_weight, to_scale, to_column, None


class Quantizer(nn.Module):
    """Turns a latent weight (rows, n) into its two values.

    Attributes:
        scale: (rows, 1) for ``row`` and ``rank_one``, (1, 1) for ``tensor`` and ``none``; a parameter if it is learned, absent
            if it is computed.
        column: (n,) for ``rank_one``, otherwise ``None``.
    """

    scale: Tensor | None
    column: Tensor | None

    def __init__(self, weight: Tensor, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization
        scale, column = scale_of(weight.detach(), quantization.values, quantization.scale)
        learned = quantization.scaling != "computed"
        if quantization.scale == "none":
            self.register_buffer("scale", scale)
        else:
            self.register_parameter("scale", nn.Parameter(scale) if learned else None)
        self.register_parameter(
            "column", nn.Parameter(column) if learned and column is not None else None
        )

    def scales(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scales that this latent weight has now."""
        if self.scale is None:
            return scale_of(weight.detach(), self.quantization.values, self.quantization.scale)
        return self.scale, self.column

    def magnitude(self, weight: Tensor) -> Tensor:
        """What the units of this latent weight are multiplied with, broadcastable against it."""
        scale, column = self.scales(weight)
        return scale if column is None else scale * column

    def bits(self, weight: Tensor) -> Tensor:
        """Which value each weight has now."""
        return bits(self.centered(weight), self.quantization.values)

    def centered(self, weight: Tensor) -> Tensor:
        """What is compared with 0. The mean passes no gradient, except that of ``clamp``, which is one through w - mean."""
        if self.quantization.center == "none":
            return weight
        mean = (
            weight.mean() if self.quantization.center == "tensor" else weight.mean(-1, keepdim=True)
        )
        return weight - (mean if self.quantization.gradient == "clamp" else mean.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, in fp32 whatever the autocast dtype."""
        scale, column = self.scales(weight)
        return StraightThrough.apply(self.centered(weight), scale, column, self.quantization)

    def extra_repr(self) -> str:
        return str(self.quantization)
