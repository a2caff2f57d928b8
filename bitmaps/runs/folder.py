"""A run folder: the configuration of a run, its state, and its rows.

``metrics.json`` is one object with ``format``, ``status``, ``error`` and the run's own row, or,
until there is one, its facts. ``rows.json`` lists all rows of the run. docs/run-folder.md describes
every field.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from bitmaps.errors import InputError, Stopped
from bitmaps.runs.analysis import Analysis
from bitmaps.runs.files import (
    draft_of,
    json_text,
    read_json,
    remove_drafts,
    replace_bytes,
    replace_folder,
    replace_text,
    write_json,
)
from bitmaps.runs.records import Facts, Row, parse, parse_row
from bitmaps.vocabulary import RowKind, Status, Task

FORMAT = 1
# what numpy raises for an archive that is missing, cut off or garbled
DAMAGED = (OSError, EOFError, ValueError, NotImplementedError, BadZipFile, zlib.error)


@dataclass(frozen=True)
class ScoredRow:
    """A row and what it is made of.

    Attributes:
        sentence_sums: (sentences, 4): the number of masked tokens of each sentence, and the sums of
            their cross entropy, hits and reciprocal ranks.
        analysis: what the model predicts. Both are ``None`` where no words were masked.
    """

    row: Row
    sentence_sums: NDArray[Any] | None
    analysis: Analysis | None


@dataclass(frozen=True)
class RunState:
    """What ``metrics.json`` says of a run: why it failed, what was run, and its own row if it
    ended well."""

    status: Status
    error: str | None
    facts: Facts
    row: Row | None


def lock_folder(folder: Path) -> FileLock:
    """The lock that a run holds on its folder until it ends.

    Raises:
        InputError: when another process holds it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder} is in use by another process") from error
    return lock


class RunFolder:
    """The folder that one run writes to.

    Attributes:
        path: the folder.
        writes: false in every process of a run but the first; those leave the folder alone.
        claimed: whether it belongs to this run.
        keeps: whether it holds the outcome of an earlier run, which is resumed. That stays as it
            is, configuration included, until the new outcome replaces it.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes, self.claimed, self.keeps = path, writes, False, False
        self.lock: FileLock | None = None
        self.config = ""

    def claim(self, config: str, facts: Facts, resume: bool = False) -> None:
        """Take the folder and write ``config.yaml``.

        Args:
            resume: go on in a folder that already holds a run.

        Raises:
            InputError: when the folder holds a run that is not resumed, or is in use.
        """
        if not self.writes:
            return
        if not resume and self.holds_run():
            raise InputError(
                f"{self.path} already holds a run: choose another folder, "
                f"or go on with it by resume={self.path}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = lock_folder(self.path)
        for folder in (self.path, self.path / "checkpoints"):
            remove_drafts(folder)
        self.claimed, self.config = True, config
        self.keeps = resume and self.is_done()
        if not self.keeps:
            self.begin(facts)

    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in ("config.yaml", "metrics.json"))

    def is_done(self) -> bool:
        """Whether it holds the outcome of a run that ended well. A run that was killed at its very
        start has no state."""
        return (self.path / "metrics.json").is_file() and read_state(self.path).status is Status.ok

    def begin(self, facts: Facts) -> None:
        """Say that what is here belongs to this run from now on, and is not complete."""
        self.write(Status.running, None, asdict(facts))
        self.keeps = False
        replace_text(self.path / "config.yaml", self.config)

    def write(self, status: Status, error: str | None, row: dict[str, Any]) -> None:
        state = {"format": FORMAT, "status": status, "error": error}
        write_json(self.path / "metrics.json", state | row)

    def finish(self, scored: Sequence[ScoredRow]) -> None:
        """Write all rows, the run's own last, and put the model's drafts in their places.

        While the files of two outcomes lie side by side, the state is ``running``: a process that
        is killed here leaves no mixture that looks whole.
        """
        if self.claimed:
            rows = [one.row.flat() for one in scored]
            files = {
                "rows.json": json_text(rows),
                "analysis.json": json_text(
                    {o.row.kind: asdict(o.analysis) for o in scored if o.analysis is not None}
                ),
            }
            sums: dict[str, Any] = {
                one.row.kind: one.sentence_sums for one in scored if one.sentence_sums is not None
            }
            archive = io.BytesIO()
            np.savez_compressed(archive, **sums)
            self.begin(scored[-1].row.facts)
            for name in ("model", "packed"):
                if draft_of(self.path / name).is_dir():
                    replace_folder(self.path / name)
            for name, text in files.items():
                replace_text(self.path / name, text)
            replace_bytes(self.path / "sentences.npz", archive.getbuffer())
            self.write(Status.ok, None, rows[-1])
        self.release()

    def fail(self, error: BaseException, facts: Facts) -> None:
        """Write why there is no row. An earlier outcome stays, and so does a finished one: what
        goes wrong later costs it nothing."""
        known = isinstance(error, InputError | Stopped)
        message = str(error) if known else f"{type(error).__name__}: {error}"
        if self.claimed and not self.keeps:
            with contextlib.suppress(OSError):  # the disk may be what failed
                self.write(Status.failed, message, asdict(facts))
        self.release()

    def release(self) -> None:
        """Leave the folder to others."""
        self.claimed = False
        if self.lock is not None:
            self.lock.release()


def has_checkpoint(folder: Path) -> bool:
    """Whether a training can go on in this folder."""
    return any((folder / "checkpoints" / f"{name}.ckpt").is_file() for name in ("last", "best"))


def read_state(folder: Path) -> RunState:
    """What ``metrics.json`` in a run folder says.

    Raises:
        InputError: when it is missing, not JSON, or of another format.
    """
    path = folder / "metrics.json"
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise InputError(f"{path} is not of format {FORMAT}")
    try:
        status = parse(Status, value.get("status"), "status")
        row = parse_row(value) if status is Status.ok else None
        return RunState(status, value.get("error"), parse(Facts, value), row)
    except InputError as error:
        raise damaged(path, error) from error


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run that ended well.

    Raises:
        InputError: when ``rows.json`` is missing, not JSON, or no list of rows.
    """
    path = folder / "rows.json"
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path} is no list of rows")
    try:
        return [parse_row(row) for row in rows]
    except InputError as error:
        raise damaged(path, error) from error


def read_analyses(folder: Path) -> dict[RowKind, Analysis]:
    """The error analysis of each kind of row of a run that ended well.

    Raises:
        InputError: when ``analysis.json`` is missing, not JSON, or holds something else.
    """
    path = folder / "analysis.json"
    value = read_json(path)
    try:
        return parse(dict[RowKind, Analysis], value)
    except InputError as error:
        raise damaged(path, error) from error


def read_sentences(folder: Path) -> dict[RowKind, NDArray[Any]]:
    """The ``sentence_sums`` of each kind of row of a run that ended well.

    Raises:
        InputError: when ``sentences.npz`` is missing or damaged.
    """
    path = folder / "sentences.npz"
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            return {RowKind(kind): array for kind, array in arrays.items()}
    except DAMAGED as error:
        raise InputError(f"{path} is missing or damaged: {error}") from error


def read_scored(folder: Path) -> list[ScoredRow]:
    """All rows of a run that ended well, with what they are made of: what ``finish`` wrote.

    Raises:
        InputError: when a file is missing or damaged.
    """
    rows, analyses, sums = read_rows(folder), read_analyses(folder), read_sentences(folder)
    masks = [row for row in rows if row.facts.task is Task.masked_lm]
    if missing := [one.kind for one in masks if one.kind not in analyses or one.kind not in sums]:
        raise InputError(f"{folder} is damaged: it has no analysis of its row {missing[0]}")
    return [ScoredRow(row, sums.get(row.kind), analyses.get(row.kind)) for row in rows]


def damaged(path: Path, error: InputError) -> InputError:
    return InputError(f"{path} is damaged or of another version: {error}")
