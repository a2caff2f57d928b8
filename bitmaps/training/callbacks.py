"""Callbacks that change a training as it goes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Mapping
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only

from bitmaps.errors import InputError, Stopped
from bitmaps.quantize.rounding import InputQuantizer

log = logging.getLogger(__name__)

MONITORS = {
    f"val/{known}{name}": mode
    for known in ("", "known_")
    for name, mode in (("cross_entropy", "min"), ("accuracy", "max"), ("mrr", "max"))
}
"""What a validation scores, and whether the smallest value is the best or the largest."""

TRIGGERS = ("every_n_train_steps", "every_n_epochs", "train_time_interval")


class OneBitInputs(Callback):
    """Introduces one-bit inputs gradually: their share rises from 0 to 1 over the first half of a
    training. Validation and the trained model have all of it.

    Args:
        inputs: the input quantizers of one bit.
    """

    def __init__(self, inputs: list[InputQuantizer]) -> None:
        self.inputs = inputs

    def set_share(self, share: float) -> None:
        for quantizer in self.inputs:
            quantizer.share = torch.full_like(quantizer.share, share)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.set_share(min(1.0, 2 * trainer.global_step / trainer.max_steps))

    def on_validation_start(self, *args: Any) -> None:
        self.set_share(1.0)

    def on_train_end(self, *args: Any) -> None:
        self.set_share(1.0)


class StaysStopped(Callback):
    """Lets a run that early stopping has ended stay so when it is resumed. Lightning forgets that.
    A larger ``patience``, or the removal of the callback, lets the run go on."""

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        for stopping in trainer.early_stopping_callbacks:
            state = checkpoint["callbacks"].get(stopping.state_key)
            if state is None:
                continue
            reason = EarlyStoppingReason(state.get("stopping_reason", 0))
            longer = stopping.patience > state["wait_count"]
            if reason is EarlyStoppingReason.PATIENCE_EXHAUSTED and longer:
                reason = EarlyStoppingReason.NOT_STOPPED
            # Lightning would take the patience that the run had
            state |= {"patience": stopping.patience, "stopping_reason": reason.value}
            if reason is not EarlyStoppingReason.NOT_STOPPED:
                trainer.should_stop = True
                rank_zero_only(log.info)(
                    "step %d: early stopping has ended this training; a larger patience lets it "
                    "go on", checkpoint["global_step"],
                )  # fmt: skip


class StopsAtOnce(Callback):
    """Leaves SIGTERM to the command. Lightning would finish the step and end with exit code 0, and
    between several processes its handler waits for the others.

    Attributes:
        handler: of the command, in which this is made.
    """

    def __init__(self) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, *args: Any) -> None:
        if callable(self.handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGTERM)


def check_monitors(callbacks: Mapping[str, Callback]) -> None:
    """Raises:
    InputError: for a callback that watches what no validation scores, or for its worst value."""
    for name, callback in callbacks.items():
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if monitor is None:
            continue
        if monitor not in MONITORS:
            raise InputError(
                f"callbacks.{name}.monitor={monitor} is not scored; valid are {', '.join(MONITORS)}"
            )
        if mode not in (None, MONITORS[monitor]):
            raise InputError(
                f"callbacks.{name}.mode={mode} prefers the worst {monitor}; "
                f"valid is {MONITORS[monitor]}"
            )


def best_checkpoint(callbacks: Mapping[str, Callback]) -> ModelCheckpoint:
    """The callback that keeps the best model.

    Raises:
        InputError: when there is none, or several, or it keeps no model.
    """
    found = {
        name: callback
        for name, callback in callbacks.items()
        if isinstance(callback, ModelCheckpoint) and callback.monitor
    }
    if len(found) != 1:
        raise InputError(
            "callbacks: one ModelCheckpoint with a monitor keeps the best model; "
            f"there are {len(found)}"
        )
    ((name, best),) = found.items()
    if best.save_top_k == 0:
        raise InputError(
            f"callbacks.{name}.save_top_k=0 keeps no model; valid are 1 or more, and -1 for all"
        )
    return best


def check_moments(callbacks: Mapping[str, Callback], settings: Mapping[str, Any]) -> None:
    """Raises:
    InputError: for checkpoints at other times than after each validation: one may miss the best
        model, and a run that is resumed from another would leave out a validation."""
    for name, callback in callbacks.items():
        for key in (*TRIGGERS, "save_on_train_epoch_end"):
            if isinstance(callback, ModelCheckpoint) and settings[name].get(key):
                raise InputError(
                    f"callbacks.{name}.{key} is not supported, checkpoints are written after each "
                    "validation: leave it out, and set trainer.val_check_interval"
                )
