"""A matrix in as few bits as give it back: how it is found out, kept and read."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.packed.operations import pack, unpack
from bitmaps.quantize.quantizer import Values, rank_one
from bitmaps.quantize.rounding import BITS, Stored, whole_numbers

Kind = Literal["bit", "int8", "int4", "fp16"]
FEW = 64  # rows that are looked at before all are


def numbers_per_row(weight: Tensor) -> int | None:
    """How many numbers rebuild a matrix from one bit a weight: 1 if its rows are {-a, a} or {0, a}, 2 if they are any two
    values, ``None`` if some row has more."""
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    if not ((weight[:8] == low[:8]) | (weight[:8] == high[:8])).all():
        return None
    if not ((weight == low) | (weight == high)).all():
        return None
    return 1 if ((low == -high) | (low == 0) | (high == 0) | (low == high)).all() else 2


def rank_one_parts(weight: Tensor) -> tuple[Tensor, Tensor, Values] | None:
    """Row scales (rows), column scales (columns) and values of a matrix of {-1,1}, or if there are zeros of {0,1}, times a number a
    row and one a column; ``None`` if it is none, up to rounding. Scales of {0,1} may be negative: learned ones may have become
    so."""
    if (
        len(weight) > FEW and rank_one_parts(weight[:FEW]) is None
    ):  # most matrices are none, which a few rows show
        return None
    values: Values = "01" if (weight == 0).any() else "pm1"
    row_sign, column_sign = torch.ones_like(weight[:, 0]), torch.ones_like(weight[0])
    if values == "01":
        # a number's sign is its row's times its column's: rows are compared with the one that has the most numbers
        sign = weight.sign()
        row_sign[sign @ sign[sign.abs().sum(-1).argmax()] < 0] = -1
        column_sign[row_sign @ sign < 0] = -1
    upright = weight * row_sign[:, None] * column_sign
    row, column = rank_one(upright, values)
    found = torch.where(upright > 0, row * column, 0 if values == "01" else -row * column)
    if not torch.allclose(found, upright, rtol=1e-5, atol=0):
        return None
    return row[:, 0] * row_sign, column * column_sign, values


def is_integer(weight: Tensor, bits: int) -> bool:
    """Whether every row is a whole number, of ``bits`` bits, times the row's largest magnitude over the largest such number."""
    largest = 2 ** (bits - 1) - 1
    steps = (
        weight.double()
        * largest
        / weight.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    )
    return torch.allclose(steps, steps.round(), rtol=0, atol=1e-4)


def is_half(weight: Tensor) -> bool:
    return bool((weight.half().to(weight.dtype) == weight).all())


class PackedWeight(nn.Module):
    """A matrix (rows, columns) in few bits; ``dense()`` is what it stands for.

        bit     low[r] or high[r], times column[c] if there are column scales; no ``low`` means -high
        int8    high[r] * data[r, c]
        int4    high[r] * (nibble - 8), the lower nibble of a byte first
        fp16    data[r, c]

    Attributes:
        data: uint8 (rows, ceil(columns / 8)), the lowest bit first; int8; uint8 (rows, ceil(columns / 2)); or float16.
        high, low: fp32 (rows) or ``None``.
        column: fp32 (columns) or ``None``.
    """

    data: Tensor
    high: Tensor | None
    low: Tensor | None
    column: Tensor | None

    def __init__(
        self,
        kind: Kind,
        columns: int,
        data: Tensor,
        high: Tensor | None = None,
        low: Tensor | None = None,
        column: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.columns = kind, columns
        self.register_buffer("data", data)
        self.register_buffer("high", high)
        self.register_buffer("low", low)
        self.register_buffer("column", column)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.data), self.columns

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    @classmethod
    @torch.no_grad()
    def one_bit(cls, weight: Tensor) -> PackedWeight | None:
        """The matrix in one bit a weight: exactly, or up to rounding with column scales; else ``None``."""
        columns = weight.shape[1]
        if numbers_per_row(weight) is not None:
            least, most = weight.amin(-1), weight.amax(-1)
            constant = least == most
            if ((least == -most) | constant).all():
                return cls("bit", columns, pack(weight > 0), most.maximum(-least))
            if ((least == 0) | (most == 0) | constant).all():
                high = torch.where(most == 0, least, most)
                return cls("bit", columns, pack(weight != 0), high, torch.zeros_like(high))
            return cls("bit", columns, pack(weight == most[:, None]), most, least)
        if (found := rank_one_parts(weight)) is None:
            return None
        row, column, values = found
        if values == "pm1":
            return cls("bit", columns, pack(weight > 0), row, None, column)
        return cls("bit", columns, pack(weight != 0), row, torch.zeros_like(row), column)

    @classmethod
    @torch.no_grad()
    def rounded(cls, weight: Tensor, kind: Stored) -> PackedWeight:
        """The matrix in fp16, or in rows of int8 or int4 (``bitmaps.quantize.rounding.rounded``)."""
        if kind == "fp16":
            return cls(kind, weight.shape[1], weight.half())
        whole, scale = whole_numbers(weight, BITS[kind])
        steps, high = whole.to(torch.int8), scale[:, 0]
        if kind == "int8":
            return cls(kind, weight.shape[1], steps, high)
        nibbles = F.pad((steps + 8).to(torch.uint8), (0, weight.shape[1] % 2)).unflatten(
            -1, (-1, 2)
        )
        return cls(kind, weight.shape[1], nibbles[..., 0] | nibbles[..., 1] << 4, high)

    @classmethod
    def exactly(cls, weight: Tensor, table: bool) -> PackedWeight | None:
        """In the fewest bits that give the matrix back; int4, int8 and fp16 only for a ``table``. ``None``: fp32 it is."""
        if (packed := cls.one_bit(weight)) is not None:
            return packed
        few = weight[:FEW]
        for kind in ("int4", "int8") if table else ():
            if is_integer(few, BITS[kind]) and is_integer(weight, BITS[kind]):
                return cls.rounded(weight, kind)
        return cls.rounded(weight, "fp16") if table and is_half(few) and is_half(weight) else None

    def dense(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The matrix, or some of its rows, in fp32: (..., columns)."""

        def pick(table: Tensor) -> Tensor:  # `embedding` refuses a row that is not there, and -1
            return table[rows] if isinstance(rows, slice) else F.embedding(rows, table)

        data = pick(self.data)
        if self.kind == "fp16":
            return data.float()
        assert self.high is not None
        high = pick(self.high[:, None])
        if self.kind == "int8":
            return high * data
        if self.kind == "int4":
            nibbles = torch.stack([data & 15, data >> 4], -1).flatten(-2)[..., : self.columns]
            return high * (nibbles.to(torch.int8) - 8)
        low = -high if self.low is None else pick(self.low[:, None])
        weight = torch.where(unpack(data, self.columns).bool(), high, low)
        return weight if self.column is None else weight * self.column

    def extra_repr(self) -> str:
        return f"{self.kind}, {tuple(self.shape)}"
