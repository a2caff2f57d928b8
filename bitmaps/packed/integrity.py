"""Reads a safetensors file from end to end without keeping it: its digest, and what is not finite.

The file is read in pieces, beside the mapping that the model uses. Its pages would otherwise count
as memory of the process from the start.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PIECE = 2**20  # bytes; a multiple of every number's size
FLOATS: dict[str, Any] = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        digest: SHA-256 over all tensors in the order of their names: name, zero byte, bytes.
        nonfinite: the names of the tensors that hold a NaN or an infinity.
    """

    digest: str
    nonfinite: frozenset[str]


def read_content(path: Path) -> Content:
    """Read a file that safetensors has opened before, so that its header is sound.

    Raises:
        OSError: when it cannot be read.
    """
    found, nonfinite = hashlib.sha256(), set()
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
