"""How far a training or a scoring is, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from bitmaps.scoring.display import Display, Work, display_here


class ShowsProgress(Callback):
    """Shows a training with its validations, or a scoring.

    Args:
        scored: what is scored, such as ``naive``.
    """

    def __init__(self, scored: str = "") -> None:
        self.name = f"scoring {scored}".rstrip()
        self.display: Display = display_here()
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
