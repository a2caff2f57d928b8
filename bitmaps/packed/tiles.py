"""The order of a matrix's bits in memory.

A file has them row by row. Kernels that look sums up read four bytes of each of sixteen rows at
once. In that order, they read one vector; otherwise they would have to transpose first.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor

ROWS, BYTES = 16, 4  # of a tile


def fits(data: Tensor) -> bool:
    """Whether a matrix of bits (rows, bytes) consists of whole tiles."""
    return data.shape[0] % ROWS == 0 and data.shape[1] % BYTES == 0


def is_tiled(data: Tensor) -> bool:
    return data.ndim == 4 and data.shape[2:] == (ROWS, BYTES)


def shape_in_rows(data: Tensor) -> tuple[int, ...]:
    """The shape of ``in_rows``, without a copy."""
    shape = tuple(data.shape)
    return (shape[0] * ROWS, shape[1] * BYTES) if is_tiled(data) else shape


def in_tiles(data: Tensor) -> Tensor:
    """(rows, bytes) -> (rows / 16, bytes / 4, 16, 4)."""
    return data.unflatten(1, (-1, BYTES)).unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def in_rows(data: Tensor) -> Tensor:
    """The inverse of ``in_tiles``; a matrix in rows as it is."""
    return data.transpose(1, 2).flatten(2).flatten(0, 1) if is_tiled(data) else data


def discard(data: Tensor) -> None:
    """Take the pages of a tensor that nobody reads again out of this process's memory.

    The pages of a file stay in the system's cache. Numbers that belong to no file are lost.
    """
    if sys.platform != "linux":
        return
    first = -(-data.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (data.data_ptr() + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < end:  # the pages at both ends may belong to other tensors, too
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_DONTNEED
        )
