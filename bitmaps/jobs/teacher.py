"""The full-precision classifier that a binarized one starts from: one run, shared by equal jobs."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch.distributed
from filelock import FileLock
from lightning.fabric.utilities.rank_zero import rank_zero_only

from bitmaps.command.parts import Binarize, Loss
from bitmaps.command.schema import Train
from bitmaps.vocabulary import Activations

VALIDATIONS = 4


def teacher_config(config: Train) -> Train:
    """The configuration of the run that fine-tunes the classifier: labels alone, and a linear rate
    as in ``config.fine_tuning``."""
    steps = config.fine_tuning.max_steps
    parts = VALIDATIONS if steps % VALIDATIONS == 0 else 1
    schedule = dict(config.schedule)
    if "num_training_steps" in schedule:
        schedule["num_training_steps"] = steps
    return replace(
        config,
        seed=config.fine_tuning.seed,
        binarize=Binarize(scope=config.binarize.scope),
        embeddings=None,
        activations=Activations.float,
        activations_from=0.0,
        calibrate=0,
        tune=0,
        loss=Loss(name="tokens", cross_entropy=1.0),
        optimizer=dict(config.optimizer) | {"lr": config.fine_tuning.lr},
        schedule=schedule,
        trainer=replace(config.trainer, max_steps=steps, val_check_interval=steps // parts),
        callbacks={name: one for name, one in config.callbacks.items() if name != "signs"},
        references=False,
        packed=False,
        resume=None,
        logger={},
    )


def teacher_folder(config: Train) -> Path:
    """Where the run of ``teacher_config`` lies. Its name has a digest of everything that decides
    how the classifier comes out."""
    own = config.facts()
    known = {
        "model": own.model,
        "weights": own.weights,
        "data": config.data.label(),
        "limit": own.limit,
        "seed": own.seed,
        "settings": dict(own.settings),
    }
    text = json.dumps(known, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    names = (str(name).rstrip("/").rpartition("/")[2] for name in (own.model, own.data))
    return Path(config.fine_tuning.folder).expanduser() / "-".join((*names, digest))


def is_first_process() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def wait_for_all_processes() -> None:
    """Wait until every process of this job is here, if it has several."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def one_at_a_time(folder: Path) -> AbstractContextManager[object]:
    """A lock on the folder, which jobs of a sweep that run side by side wait for. Of several
    processes of one job the first holds it."""
    if not is_first_process():
        return nullcontext()
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_name(f".{folder.name}.lock"))
