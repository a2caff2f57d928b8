"""How far a training or a scoring is, and how long it will still take."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
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
        log.info("%s: %s", work.name, work.words(" of ", detail))

    def end(self, work: Work) -> None:
        """Whoever did the work says what came of it."""


class Bars:
    """A bar for each work, which goes when the work is done. Lines of the log appear above."""

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


class ShowsProgress(Callback):
    """Shows a training with its validations, or a scoring.

    Args:
        scored: what is scored, such as ``naive``.
    """

    def __init__(self, scored: str = "") -> None:
        self.name = f"scoring {scored}".rstrip()
        self.display: Display = Bars() if Console().is_interactive else Lines()
        self.training: Work | None = None
        self.scoring: Work | None = None
        self.shown = 0.0  # when; seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = self.begin(
            trainer, "training", "step", trainer.max_steps, trainer.global_step
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any
    ) -> None:
        def loss() -> str:  # a GPU would have to be waited for
            return f"loss {outputs['loss'].item() * trainer.accumulate_grad_batches:.4f}"

        self.show(self.training, trainer.global_step, loss)

    def on_train_end(self, *args: Any) -> None:
        self.end_all()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fitting = trainer.state.fn is TrainerFn.FITTING
        name = "validation" if fitting else self.name
        self.scoring = self.begin(trainer, name, "batch", int(sum(trainer.num_val_batches)))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = int(sum(trainer.num_test_batches))
        self.scoring = self.begin(trainer, self.name, "batch", total)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **more: Any
    ) -> None:
        if self.scoring is not None:
            self.show(self.scoring, self.scoring.done + 1, str)

    def on_validation_end(self, *args: Any) -> None:
        if self.scoring is not None:
            self.display.end(self.scoring)
            self.scoring = None

    def on_test_batch_end(self, *args: Any, **more: Any) -> None:
        self.on_validation_batch_end(*args, **more)

    def on_test_end(self, *args: Any) -> None:
        self.on_validation_end()

    def on_exception(self, *args: Any) -> None:
        self.end_all()

    def begin(
        self, trainer: Trainer, name: str, unit: str, total: int, done: int = 0
    ) -> Work | None:
        if not trainer.is_global_zero:
            return None
        self.shown = time.monotonic()
        self.display.begin(work := Work(name, unit, total, done))
        return work

    def show(self, work: Work | None, done: int, detail: Callable[[], str]) -> None:
        if work is None:
            return
        work.done = done
        if (now := time.monotonic()) - self.shown >= self.display.every_s:
            self.shown = now
            self.display.show(work, detail())

    def end_all(self) -> None:
        self.on_validation_end()
        if self.training is not None:
            self.display.end(self.training)
            self.training = None
