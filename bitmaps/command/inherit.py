"""What a command asks for, and what its configuration inherits from a run: one that is resumed, or
scored as a checkpoint."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from bitmaps.calling import called
from bitmaps.command.mistakes import found_in
from bitmaps.command.overrides import as_typed, key_of
from bitmaps.command.parts import Devices
from bitmaps.command.saved import (
    FILE,
    check_offered,
    load_config,
    read_config,
    resolved,
    without_resolvers,
)
from bitmaps.command.schema import Train
from bitmaps.command.sweep import Job, find_job
from bitmaps.errors import InputError
from bitmaps.runs.folder import RunFolder, has_checkpoint, read_state
from bitmaps.runs.records import Facts
from bitmaps.vocabulary import Activations, Status, Storage, Task

# keys in which a resumed run may differ from what it was
RESUMABLE = ("trainer", "callbacks", "logger", "measure", "analysis", "text", "objective")
# keys that a trained run decides
OF_THE_CHECKPOINT = ("task", "model", "binarize", "values", "scale")


@dataclass(frozen=True)
class Request:
    """What was typed: a job, on its own or in a sweep.

    Attributes:
        command: as it would be typed for this job alone.
        overrides: of this job.
        folder: where it writes.
        sweep: the folder of the sweep that it is a job of, if it is one.
    """

    command: str
    overrides: list[str]
    folder: Path
    sweep: Path | None

    @classmethod
    def of(cls, hydra: HydraConf) -> Request:
        overrides = as_typed(hydra.overrides.task)
        sweep = Path(os.path.abspath(hydra.sweep.dir))  # noqa: PTH100 (as Hydra makes `folder`)
        return cls(
            command=called(str(hydra.job.config_name), *overrides),
            overrides=overrides,
            folder=Path(hydra.runtime.output_dir),
            sweep=sweep if hydra.mode is RunMode.MULTIRUN else None,
        )

    @property
    def in_sweep(self) -> bool:
        return self.sweep is not None

    @property
    def group(self) -> str | None:
        """The name of the sweep."""
        return None if self.sweep is None else self.sweep.name


def inherit(cfg: DictConfig, request: Request, folder: RunFolder) -> tuple[DictConfig, str] | None:
    """The configuration that is run, with what it inherits, and the command that makes the run;
    ``None`` for a job of a sweep that is done already.

    Raises:
        InputError: when there is no such run, or the command contradicts it.
    """
    if cfg.get("checkpoint"):
        cfg = of_checkpoint(cfg, request.overrides)
    if cfg.get("resume"):
        cfg = resumed(cfg, request.overrides)
        return without_resolvers(cfg), resumed_command(cfg.resume, request)
    if request.in_sweep:
        job = find_job(cfg, folder)
        if job is Job.done:
            return None
        if job is Job.stopped:
            cfg.resume = str(folder.path)
    return without_resolvers(cfg), request.command


def resumed_command(resume: str, request: Request) -> str:
    """What makes a resumed run: the command that began it, with what was changed since.

    Raises:
        InputError: when the run would not be resumed in its own folder.
    """
    if request.folder.resolve() != Path(resume).resolve():
        raise InputError(
            f"a run is resumed in its own folder, {resume}: leave out hydra.run.dir, and -m"
        )
    began = shlex.split(read_state(request.folder).facts.command)
    changed = [override for override in request.overrides if key_of(override) != "resume"]
    return shlex.join({key_of(word): word for word in (*began, *changed)}.values())


def is_resumable(key: str) -> bool:
    """Whether a resumed run may differ in this key from what it was."""
    return key.split(".")[0] in RESUMABLE and key != "trainer.accumulate_grad_batches"


def resumed(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run that ``cfg.resume`` names, with the overrides that may change.

    Raises:
        InputError: when there is no such run, it has no checkpoint, an override would make it
            another run, or its configuration names code from outside.
    """
    path = Path(cfg.resume)
    for file, there in (
        (FILE, (path / FILE).is_file()),
        ("checkpoints/last.ckpt", has_checkpoint(path)),
    ):
        if not there:
            raise InputError(f"resume={cfg.resume} holds no run to go on with: it has no {file}")
    typed = [key for key in map(key_of, overrides) if key != "trainer"]
    merged = load_config(path, Train, unread=typed)
    for override in overrides:
        key = key_of(override)
        if key != "resume" and not is_resumable(key):
            raise InputError(
                f"{key} cannot change when a run is resumed; what can: {', '.join(RESUMABLE)}"
            )
        if override.startswith("~"):
            continue
        if key == "trainer":
            # the choice of devices; the steps and what else is under `trainer` stay
            for device in fields(Devices):
                merged.trainer[device.name] = cfg.trainer[device.name]
        else:
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key), merge=False)
    check_offered(merged, typed, path / FILE)
    steps = read_state(path).facts.steps or 0
    if merged.trainer.max_steps < steps:
        raise InputError(
            f"trainer.max_steps={merged.trainer.max_steps} is too small: "
            f"{path} has {steps} steps already"
        )
    return merged


def of_checkpoint(cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration for scoring a trained run: its model and what was binarized, and its data
    unless the command asks for other data.

    Raises:
        InputError: when there is no such run, it has no model, or an override contradicts it.
    """
    from bitmaps.packed.format import is_packed  # imports torch

    path, given = Path(cfg.checkpoint), [key_of(override) for override in overrides]
    for key in given:
        if key.split(".")[0] in (*OF_THE_CHECKPOINT, "calibrate", "tune"):
            raise InputError(
                f"{key} is what checkpoint={cfg.checkpoint} was trained with: leave it out"
            )
    if path.name == "model" and (path.parent / "config.yaml").is_file():
        path = path.parent
        cfg.checkpoint = str(path)
    real_bits = is_packed(path)
    if real_bits:
        check_packed(cfg, path, given)
        if not (path.parent / "config.yaml").is_file():
            return packed_alone(cfg, given)
        path = path.parent
    elif (path / "config.json").is_file() and not (path / "metrics.json").is_file():
        raise InputError(
            f"checkpoint={cfg.checkpoint} is a model without its run; "
            f"score it with model=hub model.source={cfg.checkpoint}"
        )
    state = read_state(path)
    if not (path / "config.yaml").is_file() or not (path / "model" / "config.json").is_file():
        scored = state.status is Status.ok
        what = "was scored, not trained" if scored else f"has the status {state.status}"
        raise InputError(f"checkpoint={cfg.checkpoint} holds no trained model: that run {what}")
    if not real_bits:
        check_rounding(cfg, given, state.facts)
    return trained_config(cfg, path, given)


def check_packed(cfg: DictConfig, folder: Path, given: list[str]) -> None:
    """Set the activations of a packed model, unless they are given.

    Raises:
        InputError: for what was decided when the model was packed.
    """
    from bitmaps.bert import BertConfig  # these import torch
    from bitmaps.packed.format import default_activations

    if "embeddings" in given:
        raise InputError(
            f"embeddings is what checkpoint={cfg.checkpoint} was packed with: leave it out"
        )
    if "activations" not in given:
        shape = BertConfig.from_file(folder / "config.json")
        OmegaConf.update(cfg, "activations", default_activations(shape))
    if cfg.activations is Activations.bit:
        raise InputError(
            "activations=bit is trained, and then part of what is packed: "
            "valid are float, int8, int6"
        )


def packed_alone(cfg: DictConfig, given: list[str]) -> DictConfig:
    """The configuration for a packed folder without its run, which has no references."""
    if "references" in given and cfg.references:
        raise InputError(
            f"references=true: there is no run beside checkpoint={cfg.checkpoint} to refer to"
        )
    from bitmaps.bert import BertConfig  # imports torch

    model = {"name": "hub", "source": cfg.checkpoint, "adapter": None, "sha256": None}
    task = BertConfig.from_file(Path(cfg.checkpoint) / "config.json").task
    own = {"model": model, "references": False, "task": task}
    return cast(DictConfig, OmegaConf.merge(cfg, own))


def check_rounding(cfg: DictConfig, given: list[str], facts: Facts) -> None:
    """Raises:
    InputError: for rounding that the run was trained with already."""
    plain: tuple[tuple[str, Any, Any], ...] = (
        ("embeddings", facts.embeddings, Storage.fp32),
        ("activations", facts.activations, Activations.float),
    )
    for key, trained, unrounded in plain:
        if key in given and trained is not unrounded:
            raise InputError(
                f"{key} is {trained} in checkpoint={cfg.checkpoint}, as it was trained: "
                "leave it out"
            )


def of_classifier(cfg: DictConfig, run: Path, given: list[str]) -> None:
    """Make the classifier that a run started from the model of a configuration. Without one, there
    is nothing to refer to.

    Raises:
        InputError: when references are asked for and there is none.
    """
    teacher = read_state(run).facts.teacher
    if teacher is not None and has_model(Path(teacher)):
        OmegaConf.update(cfg, "model", {"source": teacher, "adapter": None, "sha256": None})
        return
    if "references" in given and cfg.references:
        raise InputError(
            f"references=true: the classifier that checkpoint={cfg.checkpoint} was made from, "
            f"{teacher}, is not there"
        )
    OmegaConf.update(cfg, "references", False)


def has_model(run: Path) -> bool:
    return any((folder / "config.json").is_file() for folder in (run / "model", run))


def trained_config(cfg: DictConfig, run: Path, given: list[str]) -> DictConfig:
    """``cfg`` with what a trained run decides, and with its data and seed unless they are given."""
    saved = resolved(read_config(run, unread=("logger",)), run / FILE)
    saved.setdefault("task", Task.masked_lm)  # a run of before there were tasks
    names = [*OF_THE_CHECKPOINT, *(name for name in ("data", "seed") if name not in given)]
    with found_in(run / FILE):
        merged = OmegaConf.merge(cfg, {name: saved[name] for name in names if name in saved})
        if "data" in given:  # other text, cut as it was in training
            OmegaConf.update(merged, "data.length", saved["data"]["length"])
    if merged.task == Task.classification:
        of_classifier(cast(DictConfig, merged), run, given)
    for key in given:
        if key.startswith("data."):
            OmegaConf.update(merged, key, OmegaConf.select(cfg, key))
    return cast(DictConfig, merged)
