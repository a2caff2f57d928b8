"""JSON and text files that are replaced in one step, and read with clear errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitmaps.errors import InputError


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file that takes the place of ``path`` when it is complete. A reader sees the old file
    or the new one, never a part. If ``path`` is a link, the file behind it stays as it is."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(exist_ok=False)
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step. What UTF-8 does not have is escaped."""
    with replaced(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises:
    InputError: when the file is missing or not JSON."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no results: it has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
