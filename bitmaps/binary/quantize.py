"""Two values, a threshold, a scale: the map from a weight to one bit, and the gradient that passes through it.

A value set is a pair of numbers (low, high). Every weight of a row becomes ``a * high`` or ``a * low``, where ``a`` is the
row's scale:

    bit = w > 0 for {0,1},  w >= 0 for {-1,1}         so that a weight of exactly 0 is never a third value
    q(w) = a * (low + (high - low) * bit)

The scale is the number with which q(w) is closest to w in the mean: the mean of |w| for {-1,1} (Rastegari et al. 2016,
equation 6), the mean of the positive weights for {0,1}.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

Values = Literal["01", "pm1"]
Scale = Literal["none", "tensor", "row"]
Gradient = Literal["identity", "scaled", "clipped"]


def bits(weight: Tensor, values: Values) -> Tensor:
    """True where a weight takes the high value; what 0 becomes is in the module's docstring."""
    return weight > 0 if values == "01" else weight >= 0


def units(weight: Tensor, values: Values) -> Tensor:
    """The low or the high value for each weight, in its dtype."""
    bit = bits(weight, values).to(weight.dtype)
    return bit if values == "01" else 2 * bit - 1


def scale_of(weight: Tensor, values: Values, scale: Scale) -> Tensor:
    """The scale of a weight (..., n), broadcastable against it: (1, ..., 1), or (..., 1) for ``row``.

    A vector counts as one row. Summed in fp64, so that a weight which has just the two values already gives back its own
    scale to the bit. A row of {0,1} without a positive weight has scale 0.
    """
    if scale == "none":
        return torch.ones((1,) * weight.ndim, dtype=weight.dtype, device=weight.device)
    over = tuple(range(weight.ndim)) if scale == "tensor" else (-1,)
    high = bits(weight, values) if values == "01" else torch.ones_like(weight, dtype=torch.bool)
    total = torch.where(high, weight.abs(), 0.0).sum(over, keepdim=True, dtype=torch.float64)
    count = high.sum(over, keepdim=True).clamp(min=1)
    return (total / count).to(weight.dtype)


def two_values(weight: Tensor, values: Values, scale: Scale) -> Tensor:
    """Binarize without training: a tensor of the same shape. A tensor that has the two values already is unchanged."""
    return scale_of(weight, values, scale) * units(weight, values)


class StraightThrough(torch.autograd.Function):
    """q(w) going forward; going back, a gradient for the weight as if rounding had not happened (Bengio et al. 2013).

    With g = dL/dq and u = q / a:

        dL/da = sum of g * u over what shares the scale
        dL/dw = g                  identity
                a * g              scaled: the exact gradient of a * u, had u = w
                g * 1[|w| <= a]    clipped: none to a weight that is already beyond its value
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, values: Values, gradient: Gradient) -> Tensor:
        unit = units(weight, values)
        window = weight.abs() <= scale if gradient == "clipped" else None
        ctx.save_for_backward(unit, scale, window)
        ctx.gradient = gradient
        return scale * unit

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (g,), (unit, scale, window) = grads, ctx.saved_tensors
        to_scale = (g * unit).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        to_weight = g * scale if ctx.gradient == "scaled" else g if window is None else g * window
        return to_weight, to_scale, None, None


class Quantizer(nn.Module):
    """Turns a latent weight into its two values, with a scale that is learned.

    Attributes:
        scale: fp32, (rows, 1) for ``row``, (1, 1) for ``tensor`` and ``none``; it starts at ``scale_of`` the latent weight.
            A parameter, except for ``none``, where it stays 1.
        center: subtract a row's mean before the threshold, so that its bits are balanced. (Liu et al. 2022, BiT.)
        gradient: which gradient reaches the latent weight; see ``StraightThrough``.
    """

    def __init__(self, weight: Tensor, values: Values, scale: Scale, gradient: Gradient, center: bool) -> None:
        super().__init__()
        self.values, self.gradient, self.center = values, gradient, center
        start = scale_of(self.centered(weight.detach()), values, scale)
        if scale == "none":
            self.register_buffer("scale", start)
        else:
            self.scale = nn.Parameter(start)

    def centered(self, weight: Tensor) -> Tensor:
        return weight - weight.detach().mean(-1, keepdim=True) if self.center else weight

    def forward(self, weight: Tensor, scale: Tensor | None = None) -> Tensor:
        """The effective weight, in fp32 whatever the autocast dtype. ``scale`` stands in when ``weight`` is only some rows."""
        scale = self.scale if scale is None else scale
        return StraightThrough.apply(self.centered(weight), scale, self.values, self.gradient)

    def extra_repr(self) -> str:
        return f"values={self.values}, gradient={self.gradient}, center={self.center}"
