"""How few bits give a matrix of floats back, for models whose quantizers are not known.

A trained model packs from its own quantizers (``bitmaps.quantize``). Naive binarization and
checkpoints of others are floats; this module finds the bits in them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitmaps.packed.rank_one import fit_rank_one
from bitmaps.packed.weights import PackedWeight
from bitmaps.vocabulary import PLUS_MINUS_ONE, ZERO_ONE, Storage, ValueSet

FEW = 64  # rows that are examined before all of them are


@torch.no_grad()
def fewest_bits(weight: Tensor, table: bool) -> PackedWeight | None:
    """A matrix in the fewest bits that give it back; ``None`` means that it needs floats.

    Args:
        table: also try int4, int8 and fp16, in which word tables are stored.
    """
    if (packed := one_bit(weight)) is not None or not table:
        return packed
    few = weight[:FEW]  # most matrices fit none of these, which a few rows show
    for storage in (Storage.int4, Storage.int8):
        if is_integer(few, storage.bits) and is_integer(weight, storage.bits):
            return PackedWeight.rounded(weight, storage)
    half = is_half(few) and is_half(weight)
    return PackedWeight.rounded(weight, Storage.fp16) if half else None


@torch.no_grad()
def one_bit(weight: Tensor) -> PackedWeight | None:
    """A matrix of one-bit weights: exactly, or up to rounding with column scales, or ``None``."""
    low, high = weight.amin(-1), weight.amax(-1)
    if has_two_values_a_row(weight, low, high):
        constant = low == high
        if ((low == -high) | constant).all():
            return PackedWeight.of_bits(weight > 0, high.maximum(-low))
        if ((low == 0) | (high == 0) | constant).all():
            scale = torch.where(high == 0, low, high)
            return PackedWeight.of_bits(weight != 0, scale, torch.zeros_like(scale))
        return PackedWeight.of_bits(weight == high[:, None], high, low)
    if (found := rank_one_parts(weight)) is None:
        return None
    row, column, values = found
    if values == PLUS_MINUS_ONE:
        return PackedWeight.of_bits(weight > 0, row, None, column)
    return PackedWeight.of_bits(weight != 0, row, torch.zeros_like(row), column)


def scales_per_row(packed: PackedWeight) -> int:
    """How many numbers a row of a one-bit matrix needs: 1 for {-a, a} and {0, a}, otherwise 2."""
    low, high = packed.low, packed.high
    assert high is not None
    if low is None:
        return 1
    return 1 if ((low == -high) | (low == 0) | (high == 0) | (low == high)).all() else 2


def has_two_values_a_row(weight: Tensor, low: Tensor, high: Tensor) -> bool:
    """Whether every number equals its row's lowest or highest."""
    low, high = low[:, None], high[:, None]
    few = slice(8)  # most matrices have more values, which a few rows show
    if not ((weight[few] == low[few]) | (weight[few] == high[few])).all():
        return False
    return bool(((weight == low) | (weight == high)).all())


def rank_one_parts(weight: Tensor) -> tuple[Tensor, Tensor, ValueSet] | None:
    """Row scales (rows), column scales (columns) and the value set of a matrix of rank one.

    The matrix is {-1,1}, or {0,1} if it has zeros, times a number per row and one per column, up
    to rounding; ``None`` if it is not. Scales of {0,1} may be negative, because learned ones may
    cross zero.
    """
    # most matrices have another rank, which a few rows show
    if len(weight) > FEW and rank_one_parts(weight[:FEW]) is None:
        return None
    values = ZERO_ONE if (weight == 0).any() else PLUS_MINUS_ONE
    row_sign, column_sign = torch.ones_like(weight[:, 0]), torch.ones_like(weight[0])
    if values == ZERO_ONE:
        # A number's sign is its row's times its column's. Rows are compared with the row that has
        # the most numbers.
        sign = weight.sign()
        row_sign[sign @ sign[sign.abs().sum(-1).argmax()] < 0] = -1
        column_sign[row_sign @ sign < 0] = -1
    upright = weight * row_sign[:, None] * column_sign
    unit = torch.where(upright > 0, 1.0, 0.0 if values == ZERO_ONE else -1.0)
    row, column = fit_rank_one(upright, unit)
    low = 0 if values == ZERO_ONE else -row * column
    found = torch.where(upright > 0, row * column, low)
    if not torch.allclose(found, upright, rtol=1e-5, atol=0):
        return None
    return row[:, 0] * row_sign, column * column_sign, values


def is_integer(weight: Tensor, bits: int) -> bool:
    """Whether every row consists of ``bits``-bit integers times one number.

    The largest magnitude of a row stands for the largest integer.
    """
    largest = 2 ** (bits - 1) - 1
    most = weight.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    steps = weight.double() * largest / most
    return torch.allclose(steps, steps.round(), rtol=0, atol=1e-4)


def is_half(weight: Tensor) -> bool:
    """Whether every number is an fp16 number."""
    return bool((weight.half().to(weight.dtype) == weight).all())
