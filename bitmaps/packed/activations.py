"""What activations are rounded to before they are multiplied with one-bit weights.

The activations x of a token become whole numbers q and one scale s, so that x is about s q. Packed
models and training round alike, and each kernel computes with the same whole numbers. ``act``
chooses them:

    f32     x itself, s = 1
    a16     q in -32639..32639,   s = max|x| / 32639
    a11     q in -1023..1023,     s = max|x| / 1023
    a8      q in -127..127,       s = max|x| / 127
    a6      q in a window of 64,  s = (max(x, 0) - min(x, 0)) / 62
    a1      1 where x >= 0, else -1; s = mean|x|

With ``a16`` to ``a6``, q is x times the fp32 reciprocal of s, rounded to the nearest whole number,
ties to even. The window of ``a6`` holds zero and lies where the token's numbers lie: -31..31 if
they are symmetric, 0..62 if none is negative. (The reciprocal is 31 / r with r half the range, so
that the range of the largest floats does not overflow.)

A token whose numbers are all zero, or too small for a reciprocal, gets q = 0 and s = 0. A token
with a NaN or an infinity gets s = NaN, and so does, with ``a1``, one whose mean is infinite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.vocabulary import Act

TOP = {Act.a16: 32639.0, Act.a11: 1023.0, Act.a8: 127.0, Act.a6: 31.0}
LARGEST = {**TOP, Act.a6: 62.0, Act.a1: 1.0}
"""The largest magnitude of q."""


def act_named(name: str | None) -> Act | None:
    """The rounding that a user named, if any.

    Raises:
        InputError: for an unknown one.
    """
    if name is not None and name not in list(Act):
        raise InputError(f"act={name!r} is unknown; valid are {', '.join(Act)}")
    return None if name is None else Act(name)


class Rounded(NamedTuple):
    """q, fp32 (..., k), and s, fp32 (..., 1)."""

    q: Tensor
    scale: Tensor


def round_activations(x: Tensor, act: Act) -> Rounded:
    """Round every vector along the last dimension of x, fp32 (..., k)."""
    if act == Act.f32:
        return Rounded(x, torch.ones_like(x[..., :1]))
    if act == Act.a1:
        scale = x.abs().mean(-1, keepdim=True, dtype=torch.float64).float()
        return Rounded(
            torch.where(x >= 0, 1.0, -1.0), torch.where(scale.isfinite(), scale, torch.nan)
        )
    if act == Act.a6:
        most = 0.5 * x.amax(-1, keepdim=True).clamp(min=0)
        most = most - 0.5 * x.amin(-1, keepdim=True).clamp(max=0)
    else:
        most = x.abs().amax(-1, keepdim=True)
    # two tensors: PyTorch turns number / tensor into a product with the rounded reciprocal
    inverse = torch.full_like(most, TOP[act]) / most
    some = most.isfinite() & inverse.isfinite()
    q = torch.where(some, (x * inverse).round(), 0.0)
    scale = torch.where(some, most / torch.full_like(most, TOP[act]), 0.0)
    return Rounded(q, torch.where(most.isfinite(), scale, torch.nan))
