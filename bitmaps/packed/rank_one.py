"""The scale per row and per column with which a matrix of two values is closest to a weight."""

from __future__ import annotations

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).tiny


def fit_rank_one(weight: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Row scales u (..., 1) and column scales v (n,) with mean 1 for a weight (..., n).

    ``u v * unit`` is closest to the weight in the least squares. The two are solved in turn, each
    given the other. For a ``unit`` of -1 and 1, the signs of the weight, this is the power
    iteration for the first singular vectors of ``|W|`` (Xu et al. 2024, OneBit, proposition 1),
    which settles within a few rounds. A ``unit`` of 0 and 1 takes some dozens.
    """
    unit = unit.double().flatten(0, -2)
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
