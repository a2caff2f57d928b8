"""A matrix in few bits: how it is kept and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.packed import kernels as native
from bitmaps.packed import tiles
from bitmaps.packed.operations import pack, unpack
from bitmaps.vocabulary import Act, Storage


def to_integers(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Signed integers of ``bits`` bits, in fp32, and the scales (..., 1) to multiply them by.

    Every vector along the last dimension has a scale of its own.
    """
    largest, exact = 2 ** (bits - 1) - 1, x.float()
    tiny = torch.finfo(torch.float32).tiny
    scale = (exact.abs().amax(-1, keepdim=True) / largest).clamp(min=tiny)
    return (exact / scale).round(), scale


def of_its_type(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``fn``, which ``nn.Module`` applies to its tensors, without what it does to their types.

    The type of a packed tensor says how its numbers are stored, and the kernels take no other. So
    ``half()`` and its like leave it alone, and ``to(device)`` moves it.
    """

    def applied(tensor: Tensor) -> Tensor:
        found = fn(tensor)
        return found if found.dtype is tensor.dtype else tensor.to(found.device)

    return applied


class PackedWeight(nn.Module):
    """A matrix (rows, columns) in few bits; ``dense()`` gives it back.

        bit     low[r] or high[r], times column[c] if there is one; no ``low`` means -high
        int8    high[r] * data[r, c]
        int4    high[r] * (nibble - 8), the lower nibble of a byte first
        fp16    data[r, c]

    Attributes:
        storage: which of these.
        data: uint8 (rows, ceil(columns / 8)), the lowest bit first, or that in tiles
            (``arranged``); int8; uint8 (rows, ceil(columns / 2)); or float16.
        high, low: fp32 (rows) or ``None``.
        column: fp32 (columns) or ``None``.
    """

    data: Tensor
    high: Tensor | None
    low: Tensor | None
    column: Tensor | None

    def __init__(
        self,
        storage: Storage,
        columns: int,
        data: Tensor,
        high: Tensor | None = None,
        low: Tensor | None = None,
        column: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.storage, self.columns = storage, columns
        self.register_buffer("data", data)
        self.register_buffer("high", high)
        self.register_buffer("low", low)
        self.register_buffer("column", column)

    @classmethod
    def of_bits(
        cls,
        bits: Tensor,
        high: Tensor,
        low: Tensor | None = None,
        column: Tensor | None = None,
    ) -> PackedWeight:
        """The matrix with ``high`` where ``bits``, bool (rows, columns), is true."""
        return cls(Storage.bit, bits.shape[1], pack(bits), high, low, column)

    @classmethod
    @torch.no_grad()
    def rounded(cls, weight: Tensor, storage: Storage) -> PackedWeight:
        """A matrix rounded to fp16, or to int8 or int4 with a scale per row (``to_integers``)."""
        columns = weight.shape[1]
        if storage == Storage.fp16:
            return cls(storage, columns, weight.half())
        integers, scale = to_integers(weight, Storage(storage).bits)
        data, high = integers.to(torch.int8), scale[:, 0]
        if storage == Storage.int8:
            return cls(storage, columns, data, high)
        nibbles = F.pad((data + 8).to(torch.uint8), (0, columns % 2)).unflatten(-1, (-1, 2))
        return cls(storage, columns, nibbles[..., 0] | nibbles[..., 1] << 4, high)

    def arranged(self, act: Act) -> PackedWeight:
        """The same matrix with its bits in the order that is fastest for this rounding here.

        Tiles (``bitmaps.packed.tiles``) are a copy. In a module's state the bits are in rows.
        """
        found = native.kernels()
        fits = self.storage == Storage.bit and tiles.fits(self.data) and self.data.is_cpu
        if found is None or not fits or not found.reads_tiles(act):
            return self
        data = tiles.in_tiles(self.data)
        return PackedWeight(self.storage, self.columns, data, self.high, self.low, self.column)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(of_its_type(fn), recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}data"] = tiles.in_rows(destination[f"{prefix}data"])

    def _load_from_state_dict(self, state: Any, prefix: str, *arguments: Any) -> None:
        if tiles.is_tiled(self.data) and (data := state.get(f"{prefix}data")) is not None:
            fits = data.ndim == 2 and tiles.fits(data)
            state = {**state, f"{prefix}data": tiles.in_tiles(data) if fits else data}
        super()._load_from_state_dict(state, prefix, *arguments)

    @property
    def in_rows(self) -> Tensor:
        """``data``, as a file has it."""
        return tiles.in_rows(self.data)

    @property
    def shape(self) -> tuple[int, int]:
        return tiles.shape_in_rows(self.data)[0], self.columns

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def dense(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """The matrix, or some of its rows, in fp32: (..., columns)."""

        def pick(table: Tensor) -> Tensor:  # `embedding` rejects rows that do not exist, and -1
            return table[rows] if isinstance(rows, slice) else F.embedding(rows, table)

        data = pick(self.in_rows)
        if self.storage == Storage.fp16:
            return data.float()
        assert self.high is not None
        high = pick(self.high[:, None])
        if self.storage == Storage.int8:
            return high * data
        if self.storage == Storage.int4:
            data = data.int()  # ONNX export makes int8 of a shifted uint8
            nibbles = torch.stack([data & 15, data >> 4], -1).flatten(-2)[..., : self.columns]
            return high * (nibbles - 8)
        low = -high if self.low is None else pick(self.low[:, None])
        weight = torch.where(unpack(data, self.columns), high, low)
        return weight if self.column is None else weight * self.column

    def extra_repr(self) -> str:
        return f"{self.storage}, {tuple(self.shape)}"


@runtime_checkable
class PacksItself(Protocol):
    """A layer that packs its own weight, as those of ``bitmaps.quantize.layers`` do."""

    weight: nn.Parameter

    def pack(self) -> PackedWeight | None:
        """The effective weight, exactly; ``None`` if it is the parameter as it is."""
