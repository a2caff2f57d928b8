"""How far a work is, and how long it will still take: as a bar, or as lines of the log.

The jobs of a sweep are a work too (``set_sweep``). It is shown with all that its jobs do.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

log = logging.getLogger(__name__)


class Work:
    """Something that takes a while.

    Attributes:
        name: as it is shown, such as ``training``.
        unit: what is counted.
        total: how many there are.
        done: how many are done.
    """

    def __init__(self, name: str, unit: str, total: int, done: int = 0) -> None:
        self.name, self.unit, self.total, self.done = name, unit, total, done
        self._first, self._start = done, time.monotonic()

    def left(self) -> str:
        """The time that is left, at the pace so far; empty before anything is done."""
        new = self.done - self._first
        if new <= 0:
            return ""
        seconds = (time.monotonic() - self._start) / new * max(0, self.total - self.done)
        return f"{duration(seconds)} left"

    def words(self, of: str, detail: str) -> str:
        parts = [f"{self.unit} {self.done}{of}{self.total}", detail, self.left()]
        return ", ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """
    >>> duration(4.6), duration(95), duration(3 * 3600 + 5 * 60)
    ('5 s', '1 min 35 s', '3 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_sweep: Work | None = None


def set_sweep(work: Work | None) -> None:
    """From now on, everything that is shown is part of this; ``None`` ends it."""
    global _sweep
    _sweep = work


def job_is_done() -> None:
    """One more job of the sweep, if there is one, is done."""
    if _sweep is not None:
        _sweep.done += 1


def sweep_words() -> str:
    """How far the sweep is; empty if there is none."""
    if _sweep is None:
        return ""
    done = f"{_sweep.done} of {_sweep.total} jobs done"
    return ", ".join(filter(None, (done, _sweep.left())))


class Display(Protocol):
    """Where progress is shown. A work may begin while another one is not done.

    Attributes:
        every_s: seconds between two times that something is shown.
    """

    every_s: float

    def begin(self, work: Work) -> None: ...

    def show(self, work: Work, detail: str) -> None:
        """
        Args:
            detail: more to be shown, such as the loss; may be empty.
        """

    def end(self, work: Work) -> None: ...


class Lines:
    """A line of the log now and then."""

    every_s = 20.0

    def begin(self, work: Work) -> None:
        """A line would say nothing yet."""

    def show(self, work: Work, detail: str) -> None:
        words = "; ".join(filter(None, (work.words(" of ", detail), sweep_words())))
        log.info("%s: %s", work.name, words)

    def end(self, work: Work) -> None:
        """Whoever did the work says what came of it."""


class Bars:
    """A bar for each work, below that of the sweep. A bar goes when its work is done. Lines of the
    log appear above."""

    every_s = 0.1

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.tasks: dict[Work, TaskID] = {}
        self.streams: list[tuple[logging.StreamHandler[Any], Any]] = []

    def begin(self, work: Work) -> None:
        if self.progress is None:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                console=Console(),
                transient=True,
                auto_refresh=False,
            )
            before = sys.stdout, sys.stderr
            self.progress.start()
            for handler in logging.getLogger().handlers:  # rich has taken both streams over
                if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                    self.streams.append((handler, handler.stream))
                    handler.setStream(sys.stdout)
            if (sweep := _sweep) is not None:
                bar = self.progress.add_task(sweep.name, total=sweep.total, text=sweep_words())
                self.progress.update(bar, completed=sweep.done)
        self.tasks[work] = self.progress.add_task(work.name, total=work.total, text="")

    def show(self, work: Work, detail: str) -> None:
        assert self.progress is not None, "it has begun"
        text = work.words("/", detail)
        self.progress.update(self.tasks[work], completed=work.done, text=text, refresh=True)

    def end(self, work: Work) -> None:
        assert self.progress is not None, "it has begun"
        self.progress.remove_task(self.tasks.pop(work))
        if not self.tasks:
            self.progress.stop()
            self.progress = None
            while self.streams:
                handler, stream = self.streams.pop()
                handler.setStream(stream)


def display_here() -> Display:
    """What fits where this process writes to."""
    return Bars() if Console().is_interactive else Lines()


def show_all(work: Work, counts: Iterable[int]) -> None:
    """Show a work until it is done.

    Args:
        counts: what is done, each time that there is more.
    """
    shown_by, last = display_here(), time.monotonic()
    shown_by.begin(work)
    try:
        for work.done in counts:
            if (now := time.monotonic()) - last >= shown_by.every_s:
                last = now
                shown_by.show(work, "")
    finally:
        shown_by.end(work)
