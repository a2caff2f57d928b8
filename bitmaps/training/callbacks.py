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
from bitmaps.vocabulary import Act, Task

log = logging.getLogger(__name__)

MONITORS = {
    Task.masked_lm: {
        f"val/{known}{name}": mode
        for known in ("", "known_")
        for name, mode in (("cross_entropy", "min"), ("accuracy", "max"), ("mrr", "max"))
    },
    Task.sentence_embedding: {"val/cosine": "max", "val/recall_at_10": "max"},
    Task.classification: {
        "val/score": "max",
        "val/loss": "min",
        **{f"val/{name}": "max" for name in ("accuracy", "f1", "matthews", "spearman", "pearson")},
    },
}
"""What a validation scores, and whether the smallest value is the best or the largest."""

TRIGGERS = ("every_n_train_steps", "every_n_epochs", "train_time_interval")


class RoundedInputs(Callback):
    """Says when in a training inputs are rounded. The share of one-bit inputs rises from 0 to 1
    over the first half. Inputs of int8 and int6 are rounded from one step on.

    Validation and the trained model round all inputs. So all validations can be compared, and the
    best checkpoint may be one from before that step.

    Args:
        inputs: the input quantizers.
        start: the share of the steps after which inputs of int8 and int6 are rounded.
    """

    def __init__(self, inputs: list[InputQuantizer], start: float = 0.0) -> None:
        self.inputs, self.start = inputs, start

    def set_shares(self, one_bit: float, others: float) -> None:
        for quantizer in self.inputs:
            share = one_bit if quantizer.act is Act.a1 else others
            quantizer.share = torch.full_like(quantizer.share, share)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        done = trainer.global_step / trainer.max_steps
        self.set_shares(min(1.0, 2 * done), float(done >= self.start))

    def on_validation_start(self, *args: Any) -> None:
        self.set_shares(1.0, 1.0)

    def on_train_end(self, *args: Any) -> None:
        self.set_shares(1.0, 1.0)


class ValidatesLastStep(Callback):
    """Validates after the last step, whatever ``val_check_interval`` is: it may be the best one."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # before it stops, Lightning validates, once


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


def check_monitors(callbacks: Mapping[str, Callback], task: Task = Task.masked_lm) -> None:
    """Raises:
    InputError: for a callback that watches what no validation scores, or for its worst value."""
    monitors = MONITORS[task]
    for name, callback in callbacks.items():
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if monitor is None:
            continue
        if monitor not in monitors:
            raise InputError(
                f"callbacks.{name}.monitor={monitor} is not scored; valid are {', '.join(monitors)}"
            )
        if mode not in (None, monitors[monitor]):
            raise InputError(
                f"callbacks.{name}.mode={mode} prefers the worst {monitor}; "
                f"valid is {monitors[monitor]}"
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
