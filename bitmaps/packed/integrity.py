"""Safetensors files: written as the same bytes every time, and read from end to end.

A file is read in pieces, beside the mapping that the model uses. Its pages would otherwise count as
memory of the process from the start.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

PIECE = 2**20  # bytes; a multiple of every number's size
FLOATS: dict[str, Any] = {"F32": np.float32, "F16": np.float16}
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.uint8: "U8", torch.int8: "I8"}


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        digest: SHA-256 over ``first`` and all tensors (``digest``).
        nonfinite: the names of the tensors that hold a NaN or an infinity.
    """

    digest: str
    nonfinite: frozenset[str]


def bytes_of(tensor: Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def digest(tensors: Mapping[str, Tensor], first: bytes = b"") -> str:
    """SHA-256 over ``first`` and all tensors by name: of each its name, a zero byte, its bytes."""
    found = hashlib.sha256(first)
    for name in sorted(tensors):
        found.update(name.encode() + b"\0")
        found.update(bytes_of(tensors[name]))
    return found.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    ``safetensors`` itself orders the metadata at random. Here they are in the order of their names,
    and so are the tensors of each type. Wide types come first, so that every number is aligned.

    Raises:
        OSError: when it cannot be written.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": TYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(bytes_of(tensors[name]))


def read_content(path: Path, first: bytes = b"") -> Content:
    """Read a file that safetensors has opened before, so that its header is sound.

    Raises:
        OSError: when it cannot be read.
    """
    found, nonfinite = hashlib.sha256(first), set()
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name in sorted(header):
            found.update(name.encode() + b"\0")
            start, end = header[name]["data_offsets"]
            kind = FLOATS.get(header[name]["dtype"])
            file.seek(8 + size + start)
            for piece in pieces(file, end - start):
                found.update(piece)
                if kind is not None and not np.isfinite(np.frombuffer(piece, kind)).all():
                    nonfinite.add(name)
    return Content(found.hexdigest(), frozenset(nonfinite))


def pieces(file: BinaryIO, count: int) -> Any:
    """The next ``count`` bytes of a file, at most ``PIECE`` at a time."""
    while count:
        piece = file.read(min(count, PIECE))
        if not piece:
            raise OSError(f"{file.name} ended early")
        yield piece
        count -= len(piece)
