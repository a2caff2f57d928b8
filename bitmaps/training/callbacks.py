"""Callbacks that change a training as it goes."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, Trainer

from bitmaps.quantize.rounding import InputQuantizer


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
