"""The logger of one run, opened and closed so that the runs of a sweep do not flow into each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger

from bitmaps.errors import InputError
from bitmaps.runs import Row


@dataclass(frozen=True)
class Tracking:
    logger: Logger

    def summarize(self, row: Row) -> None:
        """Log the numbers of the run's final row."""
        numbers = {name: float(v) for name, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        self.logger.log_metrics({f"final/{name}": value for name, value in numbers.items()})


@contextmanager
def tracking(config: dict[str, Any], folder: Path, facts: Row, group: str | None) -> Iterator[Tracking]:
    """A Lightning logger that writes below ``folder``, with what is run (``facts``) as its hyperparameters.

    W&B gets a run of its own for every job, in one ``group`` a sweep, tagged with components and values; what its offline
    mode changes in the environment is put back.
    """
    wandb = config["_target_"].endswith("WandbLogger")
    mode = os.environ.get("WANDB_MODE")
    options: dict[str, Any] = {"save_dir": str(folder)}
    if wandb:
        tags = [facts["components"], *([facts["values"]] if facts["values"] else [])]
        options |= {"name": "-".join(tags), "group": group, "tags": tags}
    try:
        logger = instantiate(config, **options)
    except InstantiationException as error:
        raise InputError(f"logger: {error}") from error
    failed = True
    try:
        logger.log_hyperparams({k: v for k, v in facts.items() if not isinstance(v, dict)} | facts["versions"])
        yield Tracking(logger)
        failed = False
    finally:
        logger.finalize("failed" if failed else "success")
        if wandb:
            import wandb as client  # Lightning leaves the run open: the next job would log into it

            client.finish(exit_code=int(failed))
            os.environ.pop("WANDB_MODE", None)
            if mode is not None:
                os.environ["WANDB_MODE"] = mode
