"""Files that are replaced in one step, and read with clear errors."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitmaps.errors import InputError

DRAFTS = ".*.draft"  # what a killed process was writing


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A new file that takes the place of ``path`` when it is complete. A reader sees the old file
    or the new one, never a part, even after a loss of power. A failure leaves the old file. If
    ``path`` is a link, the file behind it stays as it is.

    Raises:
        OSError: when the new file cannot be written, for example on a full disk.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)
    try:
        draft.touch(exist_ok=False)
        yield draft
        sync(draft)
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error says what is wrong
            draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file in one step (``replaced``)."""
    with replaced(path) as draft:
        draft.write_bytes(content)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def draft_of(folder: Path) -> Path:
    """Where a folder is written before ``replace_folder`` puts it in its place."""
    return folder.with_name(f".{folder.name}.draft")


def replace_folder(folder: Path) -> None:
    """Put the draft of a folder in its place. There is no one step for that: a reader in between
    finds no folder, and never a mixture."""
    draft = draft_of(folder)
    for file in draft.rglob("*"):
        sync(file)
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
    sync(folder.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what killed processes left in a folder that no process writes to now."""
    for draft in folder.glob(DRAFTS):
        if draft.is_dir():
            shutil.rmtree(draft)
        else:
            draft.unlink()


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one step. What UTF-8 does not have is escaped."""
    replace_bytes(path, text.encode(errors="backslashreplace"))


def json_text(value: Any) -> str:
    """A value as a JSON file has it.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
    """
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step.

    Raises:
        ValueError: as ``json_text``.
    """
    replace_text(path, json_text(value))


def read_json(path: Path) -> Any:
    """Raises:
    InputError: when the file is missing or not JSON."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no results: it has no {path.name}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # the second for what is nested too deeply
        raise InputError(f"{path} is not JSON: {error}") from error
