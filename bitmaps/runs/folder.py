"""A run folder: its configuration, its state, and the rows it came to.

``metrics.json`` is one object with ``format``, ``status`` (running, ok, failed), ``error`` and, when ok, a row; ``rows.json``
is the list of all rows of the run, ``metrics.json``'s own among them. docs/run-folder.md describes every field.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from bitmaps import __version__
from bitmaps.errors import InputError

FORMAT = 1
SCORES = ("cross_entropy", "accuracy", "mrr")
PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "hydra-core")

# what a row and an error analysis have at least: all that tables and pages read
IN_A_ROW = ("row", *SCORES, "memory_mib")
IN_AN_ANALYSIS = ("verdict", "predicted", "distinct", "confidence", "by_input", "by_frequency", "sentences")

Row = dict[str, Any]


def write_json(path: Path, value: Any) -> None:
    """Replace the file in one step, so that whoever reads it meanwhile sees the old or the new one. NaN is refused."""
    replace_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def perplexity(cross_entropy: float) -> float | None:
    """exp of a cross entropy in nats, in fp64; ``None`` where that overflows.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, None)
    """
    try:
        return math.exp(cross_entropy)
    except OverflowError:
        return None


def versions() -> dict[str, str]:
    ours = {"python": platform.python_version(), "bitmaps": __version__}
    return ours | {package: version(package) for package in PACKAGES}


def commit() -> str | None:
    """The commit of the checkout that this package is in, ``-dirty`` if it was changed since; ``None`` outside of one, or
    without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return described.stdout.strip() or None


def hold(folder: Path, file: Path | None = None) -> FileLock:
    """The lock of a run folder, which a run has until it ends; or another one, in a file of its own.

    Raises:
        InputError: when another process has it.
    """
    lock = FileLock(file or folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise InputError(f"{folder} is being worked on by another process") from error
    return lock


class RunFolder:
    """Where one run writes. ``claim`` comes first, and only takes a folder where no run has been, or is.

    Attributes:
        path: the folder.
        writes: false in all but the first of several processes, which then leave it alone.
        claimed: whether it is this run's.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes, self.claimed = path, writes, False
        self.lock: FileLock | None = None

    def claim(self, config: str, facts: Row, resume: bool = False) -> None:
        """Take the folder and write ``config.yaml``; with ``resume``, go on in a folder that holds a run.

        Raises:
            InputError: when it already holds a run that is not resumed, or another process is at it.
        """
        if not self.writes:
            return
        if not resume and self.holds_run():
            raise InputError(
                f"{self.path} already holds a run: choose another folder, or go on with it by resume={self.path}"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.lock = hold(self.path)
        replace_text(self.path / "config.yaml", config)
        self.claimed = True
        self.write({"status": "running", "error": None} | facts)

    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in ("config.yaml", "metrics.json"))

    def write(self, state: Row) -> None:
        if self.claimed:
            write_json(self.path / "metrics.json", {"format": FORMAT} | state)

    def finish(self, rows: list[Row], sentences: dict[str, Any], analyses: dict[str, Any]) -> None:
        """Write the rows, of which the last is the run's own, what the sentences came to, one array a kind of row, and what is
        predicted, one object a kind of row."""
        if self.claimed:
            write_json(self.path / "rows.json", rows)
            write_json(self.path / "analysis.json", analyses)
            np.savez_compressed(self.path / "sentences.npz", **sentences)
        self.write({"status": "ok", "error": None} | rows[-1])
        self.release()

    def fail(self, error: BaseException, facts: Row) -> None:
        """Write why there is no row, beside what was to be run."""
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        self.write({"status": "failed", "error": message} | facts)
        self.release()

    def release(self) -> None:
        if self.lock is not None:
            self.lock.release()


def read_json(path: Path) -> Any:
    """Raises:
    InputError: when the file is missing or not JSON."""
    if not path.is_file():
        raise InputError(f"{path.parent} holds no results: no {path.name} there")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def need(path: Path, value: Any, names: Sequence[str]) -> None:
    """Raises:
    InputError: when the value is no object with all of these names."""
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged or of another version: {value!r:.40} where an object belongs")
    if lacking := [name for name in names if name not in value]:
        raise InputError(f"{path} is damaged or of another version: there is no {', '.join(lacking)}")


def read_metrics(folder: Path) -> Row:
    """The ``metrics.json`` of a run folder.

    Raises:
        InputError: when it is missing, not JSON, or of another format.
    """
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise InputError(f"{folder / 'metrics.json'} is not of format {FORMAT}")
    need(folder / "metrics.json", metrics, ("status",))
    return metrics


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run that ended well.

    Raises:
        InputError: when ``rows.json`` is missing or not JSON, or no list of rows.
    """
    rows = read_json(folder / "rows.json")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{folder / 'rows.json'} is no list of rows")
    for row in rows:
        need(folder / "rows.json", row, IN_A_ROW)
    return rows


def read_analyses(folder: Path) -> dict[str, Any]:
    """What a run that ended well predicts: the kind of a row -> its error analysis (``bitmaps.scoring.predictions.analyse``).

    Raises:
        InputError: when ``analysis.json`` is missing or not JSON, or holds something else.
    """
    analyses: dict[str, Any] = read_json(folder / "analysis.json")
    need(folder / "analysis.json", analyses, ())
    for analysis in analyses.values():
        need(folder / "analysis.json", analysis, IN_AN_ANALYSIS)
    return analyses


def read_sentences(folder: Path) -> dict[str, NDArray[Any]]:
    """What each sentence came to in a run that ended well: the kind of a row -> (sentences, 4), the run's own last.

    Raises:
        InputError: when ``sentences.npz`` is missing or damaged.
    """
    path = folder / "sentences.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path} is missing or damaged: {error}") from error
