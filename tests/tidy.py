"""A callback of Hydra for sweeps in tests: ``+hydra.callbacks.tidy._target_=tidy.Tidy``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Tidy(Callback):
    """Removes the weights that a job wrote, more than half a gigabyte, when the job ends."""

    def on_job_end(self, config: DictConfig, **kwargs: Any) -> None:
        for name in ("checkpoints", "model", "packed"):
            shutil.rmtree(Path(config.hydra.runtime.output_dir) / name)
