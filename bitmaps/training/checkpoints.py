"""Checkpoints that a killed process cannot spoil, and damaged ones that are found.

A checkpoint is what ``torch.save`` writes: a zip archive, with a CRC-32 of every record. PyTorch
does not check these sums when it loads, so ``read_checkpoint`` does.
"""

from __future__ import annotations

import io
import logging
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only

from bitmaps.errors import InputError
from bitmaps.runs.files import replace_bytes

log = logging.getLogger(__name__)

# what zipfile and torch.load raise for an archive that is missing, cut off or garbled
DAMAGED = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, NotImplementedError, UnpicklingError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


class CheckpointFiles(TorchCheckpointIO):
    """Replaces a checkpoint in one step, beside the old one. Lightning writes to the temporary
    folder and copies, which is not one step where that is another file system.

    Attributes:
        steps: the step of each checkpoint that was written.
    """

    def __init__(self) -> None:
        self.steps: dict[Path, int] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        content, path = io.BytesIO(), Path(path)
        torch.save(checkpoint, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, content.getbuffer())
        self.steps[path] = checkpoint["global_step"]


class LastCheckpoint(Checkpoint):
    """Keeps the last model of a training, unless a configured checkpoint has it already. A training
    ends after a validation.

    Args:
        path: of the checkpoint.
        files: what writes all checkpoints.
    """

    def __init__(self, path: Path, files: CheckpointFiles) -> None:
        self.path, self.files = path, files

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:
        ends = trainer.should_stop or trainer.global_step >= trainer.max_steps
        if not ends or trainer.state.fn is not TrainerFn.FITTING:
            return
        written = trainer.strategy.broadcast(self.files.steps.get(self.path))
        if written != trainer.global_step:
            trainer.save_checkpoint(self.path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint, after the sums of its records were checked. Nothing in it is executed.

    Raises:
        InputError: when it is missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if (record := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"bad CRC-32 of {record}")
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["global_step"], checkpoint["state_dict"]
    except DAMAGED as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is missing or damaged: {said}") from error
    return checkpoint


def last_good(paths: Iterable[Path]) -> tuple[Path, dict[str, Any]]:
    """The first checkpoint of several that can be read, and what it holds. A warning names those
    before it.

    Raises:
        InputError: when none can be read.
    """
    reasons = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            reasons.append(str(error))
            continue
        if "optimizer_states" not in checkpoint:
            reasons.append(f"{path} holds weights alone")
            continue
        for reason in reasons:
            rank_zero_only(log.warning)(
                "%s; going on from %s, of step %d", reason, path, checkpoint["global_step"]
            )
        return path, checkpoint
    raise InputError(f"nothing to go on from: {'; '.join(reasons)}")
