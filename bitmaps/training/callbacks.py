"""Callbacks that change a training as it goes."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer

from bitmaps.quantize.rounding import RoundInputs


class OneBitInputs(Callback):
    """Introduces one-bit inputs gradually: their share rises from 0 to 1 over the first half of a
    training. Validation has all of them.

    Args:
        inputs: the hooks.
    """

    def __init__(self, inputs: list[RoundInputs]) -> None:
        self.inputs = inputs

    def set_share(self, share: float) -> None:
        for hook in self.inputs:
            hook.share = torch.full_like(hook.share, share)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.set_share(min(1.0, 2 * trainer.global_step / trainer.max_steps))

    def on_validation_start(self, *args: Any) -> None:
        self.set_share(1.0)
