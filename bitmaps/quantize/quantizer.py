"""Two values, a threshold and a scale: how a weight becomes one bit, and which gradient it gets.

A value set is a pair of numbers (low, high). Every weight w becomes ``a * high`` or ``a * low``,
where ``a`` is a scale::

    bit = w > 0 for {0,1},  w >= 0 for {-1,1}         so a weight of exactly 0 is no third value
    q(w) = a * (low + (high - low) * bit)

A scale that is not learned is the number for which q(w) is closest to w when the threshold is 0.
For {-1,1} it is the mean of ``|w|`` (Rastegari et al. 2016, equation 6). For {0,1} it is the mean
of the positive weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.errors import InputError
from bitmaps.packed.rank_one import fit_rank_one
from bitmaps.packed.weights import PackedWeight
from bitmaps.vocabulary import PLUS_MINUS_ONE, ZERO_ONE, Center, Gradient, Scale, Scaling, ValueSet

SMALLEST = 1e-5  # lower bound of a scale under lsq, as in ParetoQ's code


@dataclass(frozen=True)
class Quantization:
    """How weights become two values. The parts combine freely.

    Attributes:
        values: the value set.
        scale: what shares one scale. ``none`` fixes it at 1; otherwise a ``tensor`` or a ``row``
            has one. ``rank_one`` is a scale per row times a scale per column (Xu et al. 2024,
            OneBit).
        scaling: ``computed`` from the latent weight at every step, without a gradient;
            ``learned``, starting from the computed scale; or ``lsq``: learned, at least 1e-5, with
            its gradient divided by the square root of the number of weights (Esser et al. 2020).
        center: the threshold: 0, or the mean of the ``tensor`` or the ``row``, which balances the
            bits.
        gradient: the gradient of the latent weight; see ``StraightThrough``.

    Raises:
        InputError: for an unknown name. Plain strings are accepted and become enum members.
    """

    values: ValueSet = PLUS_MINUS_ONE
    scale: Scale = Scale.row
    scaling: Scaling = Scaling.learned
    center: Center = Center.none
    gradient: Gradient = Gradient.identity

    def __post_init__(self) -> None:
        kinds = (ValueSet, Scale, Scaling, Center, Gradient)
        for field, kind in zip(fields(self), kinds, strict=True):
            given = getattr(self, field.name)
            if given not in list(kind):
                raise InputError(f"unknown {field.name} {given!r}; valid are {', '.join(kind)}")
            object.__setattr__(self, field.name, kind(given))


def bits(weight: Tensor, values: ValueSet) -> Tensor:
    """True where a weight takes the high value. The module's docstring says what 0 becomes."""
    return weight > 0 if values == ZERO_ONE else weight >= 0


def units(weight: Tensor, values: ValueSet) -> Tensor:
    """The low or the high value for each weight, in the weight's dtype."""
    bit = bits(weight, values).to(weight.dtype)
    return bit if values == ZERO_ONE else 2 * bit - 1


def scale_of(weight: Tensor, values: ValueSet, scale: Scale) -> tuple[Tensor, Tensor | None]:
    """The scale of a weight (..., n), and for ``rank_one`` also a scale per column (n,).

    The scale broadcasts against the weight: (..., 1) for ``row`` and ``rank_one``, (1, ..., 1)
    otherwise. A vector counts as one row and needs no column scales. Sums are in fp64, so that a
    weight which already has two values gives its own scale exactly. A row of {0,1} without a
    positive weight has scale 0.
    """
    if scale == Scale.none:
        return torch.ones((1,) * weight.ndim, dtype=weight.dtype, device=weight.device), None
    if scale == Scale.rank_one and weight.ndim > 1:
        return fit_rank_one(weight, units(weight, values))
    over = tuple(range(weight.ndim)) if scale == Scale.tensor else (-1,)
    if values == PLUS_MINUS_ONE:
        return weight.abs().mean(over, keepdim=True, dtype=torch.float64).to(weight.dtype), None
    high = bits(weight, values)
    total = torch.where(high, weight, 0.0).sum(over, keepdim=True, dtype=torch.float64)
    return (total / high.sum(over, keepdim=True).clamp(min=1)).to(weight.dtype), None


def bounded(scale: Tensor, scaling: Scaling) -> Tensor:
    """The scale that is multiplied with: at least 1e-5 under ``lsq``, otherwise the given one."""
    return scale.clamp(min=SMALLEST) if scaling == Scaling.lsq else scale


def two_values(weight: Tensor, values: ValueSet, scale: Scale) -> Tensor:
    """Binarize a tensor without training; the shape stays.

    A tensor that already has the two values is unchanged (for ``rank_one``, up to rounding).
    """
    row, column = scale_of(weight, values, scale)
    return (row if column is None else row * column) * units(weight, values)


class StraightThrough(torch.autograd.Function):
    """q(w) in the forward pass; the backward pass ignores the rounding (Bengio et al. 2013).

    With g = dL/dq, u = q / a and a = row scale times column scale (if there is one)::

        dL/da = sum of g * u over what shares the scale
        dL/dw = g                     identity
                a * g                 scaled: the exact gradient of a * u, had u = w
                g * 1[|w| <= a]       clipped: none for a weight that is beyond its value
                g * 1[|w| <= 1]       clamp: the gradient of clamp(w, -1, 1)
                w * g * 1[|w| <= 1]   product: vanishes at the threshold, reversed for w < 0
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, column: Tensor | None, quantization: Quantization
    ) -> Tensor:
        gradient, scale = quantization.gradient, bounded(scale, quantization.scaling)
        unit = units(weight, quantization.values)
        magnitude = scale if column is None else scale * column
        limit = magnitude if gradient == Gradient.clipped else 1.0
        windowed = gradient in (Gradient.clipped, Gradient.clamp, Gradient.product)
        window = weight.abs() <= limit if windowed else None
        kept = weight if gradient == Gradient.product else None
        ctx.save_for_backward(unit, scale, column, window, kept)
        ctx.quantization = quantization
        return magnitude * unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        (g,), (unit, scale, column, window, weight) = grads, ctx.saved_tensors
        to_scale, to_column = None, None
        if ctx.needs_input_grad[1]:
            along = g * unit
            to_scale = (along if column is None else along * column).sum_to_size(scale.shape)
            if ctx.quantization.scaling == Scaling.lsq:
                to_scale = to_scale / math.sqrt(unit.numel())
            if column is not None:
                to_column = (along * scale).sum_to_size(column.shape)
        to_weight = g if window is None else g * window
        if ctx.quantization.gradient == Gradient.scaled:
            to_weight = g * scale if column is None else g * scale * column
        elif ctx.quantization.gradient == Gradient.product:
            to_weight = to_weight * weight
        return to_weight, to_scale, to_column, None


class Quantizer(nn.Module):
    """Turns a latent weight (rows, n) into its two values.

    Attributes:
        scale: (rows, 1) for ``row`` and ``rank_one``, (1, 1) for ``tensor`` and ``none``. It is a
            parameter if it is learned and ``None`` if it is computed.
        column: (n,) for a learned ``rank_one``, otherwise ``None``.
    """

    scale: Tensor | None
    column: Tensor | None

    def __init__(self, weight: Tensor, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization
        scale, column = scale_of(weight.detach(), quantization.values, quantization.scale)
        learned = quantization.scaling != Scaling.computed
        if quantization.scale == Scale.none:
            self.register_buffer("scale", scale)
        else:
            self.register_parameter("scale", nn.Parameter(scale) if learned else None)
        self.register_parameter(
            "column", nn.Parameter(column) if learned and column is not None else None
        )

    def scales(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """The row and column scales of this latent weight now."""
        if self.scale is None:
            return scale_of(weight.detach(), self.quantization.values, self.quantization.scale)
        return self.scale, self.column

    def magnitude(self, weight: Tensor) -> Tensor:
        """Row scale times column scale, broadcastable against the latent weight."""
        scale, column = self.scales(weight)
        return scale if column is None else scale * column

    def bits(self, weight: Tensor) -> Tensor:
        """True where a latent weight takes the high value."""
        return bits(self.centered(weight), self.quantization.values)

    def centered(self, weight: Tensor) -> Tensor:
        """The weight minus its threshold, which is compared with 0.

        The mean passes no gradient, except under ``clamp``, whose gradient is that of w - mean.
        """
        if self.quantization.center == Center.none:
            return weight
        whole = self.quantization.center == Center.tensor
        mean = weight.mean() if whole else weight.mean(-1, keepdim=True)
        return weight - (mean if self.quantization.gradient == Gradient.clamp else mean.detach())

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight, in fp32 whatever the autocast dtype."""
        scale, column = self.scales(weight)
        return StraightThrough.apply(self.centered(weight), scale, column, self.quantization)

    @torch.no_grad()
    def pack(self, weight: Tensor) -> PackedWeight:
        """The effective weight of a latent matrix in one bit per weight: ``forward``, exactly."""
        scale, column = self.scales(weight)
        high = bounded(scale, self.quantization.scaling).float().flatten().expand(len(weight))
        low = torch.zeros(len(weight)) if self.quantization.values == ZERO_ONE else None
        return PackedWeight.of_bits(
            self.bits(weight).cpu(),
            high.clone().cpu(),
            low,
            None if column is None else column.detach().float().clone().cpu(),
        )

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={part}" for name, part in vars(self.quantization).items())
