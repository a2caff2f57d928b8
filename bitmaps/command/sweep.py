"""Sweeps that may be stopped, started again and extended: what to do with a job's folder.

A job is known by its folder, which its overrides name, and by the digest of its configuration. The
digest leaves out what does not change the scores: logger, timing and paths.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from enum import Enum, auto
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from bitmaps.command.overrides import WITHOUT_EFFECT, key_of
from bitmaps.command.saved import load_config, read_config
from bitmaps.command.schema import Evaluate, Train
from bitmaps.errors import InputError
from bitmaps.runs.folder import RunFolder, has_checkpoint, lock_folder, read_state
from bitmaps.runs.records import Facts, Role, fields_with, measures
from bitmaps.runs.search import runs_below
from bitmaps.vocabulary import Status

# overrides that choose the text and the masks
TEXT_KEYS = ("data", "limit", "mask_seed", "mask_sets", "experiment")


class SweepError(InputError):
    """A job does not belong in the folder of its sweep. It ends the sweep and leaves the folder as
    it was."""


class Job(Enum):
    """What a job finds in its folder: nothing, its own result, or a checkpoint to go on from."""

    new = auto()
    done = auto()
    stopped = auto()


def is_path(source: str | None) -> bool:
    """Whether a model's source is a folder, and not a Hub id or part of a package."""
    if source is None or source.startswith("package:"):
        return False
    return Path(source).expanduser().exists() or source.count("/") != 1


def digest(cfg: DictConfig) -> str:
    """SHA-256 of a configuration without what does not change the scores."""
    plain = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))
    for name in (*WITHOUT_EFFECT, "resume", "checkpoint"):
        plain.pop(name, None)
    if plain["data"]["name"] != "text":  # otherwise the folder is a location, and no choice of text
        plain["data"].pop("dir")
    if is_path(plain["model"]["source"]):
        plain["model"].pop("source")
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()


def find_job(cfg: DictConfig, folder: RunFolder) -> Job:
    """What the folder of a sweep's job holds. What a failed or interrupted attempt left there is
    removed unless it can be resumed.

    Raises:
        SweepError: when another job is in the folder.
        InputError: when another process works on this one.
    """
    path = folder.path
    if not folder.holds_run():
        return Job.new
    lock = lock_folder(path)
    try:
        done = folder.is_done()
        if not done and not has_checkpoint(path):
            shutil.rmtree(path)
            return Job.new
        check_same_job(cfg, path)
        return Job.done if done else Job.stopped
    finally:
        lock.release()


def check_same_job(cfg: DictConfig, path: Path) -> None:
    """Raises:
    SweepError: when the configuration in a folder is another one."""
    saved = load_config(path, Train if "resume" in cfg else Evaluate)
    if digest(saved) != digest(cfg):
        raise SweepError(
            f"{path} holds a job with another configuration: choose another hydra.sweep.dir"
        )


def overrides_of(hydra: DictConfig) -> dict[str, Override]:
    """The overrides of a sweep by their keys: those of its sweeper's configuration, and those that
    were typed.

    Args:
        hydra: Hydra's own configuration.
    """
    params = OmegaConf.select(hydra, "sweeper.params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(given)
    return {one.key_or_group: one for one in parsed}


def jobs_of(hydra: DictConfig) -> int | None:
    """How many jobs a sweep has; ``None`` where only its sweeper knows.

    Raises:
        HydraException: for an override that names files, which only Hydra finds.
    """
    if (trials := OmegaConf.select(hydra, "sweeper.n_trials")) is not None:
        return int(trials)
    if not str(hydra.sweeper._target_).endswith(".BasicSweeper"):
        return None
    swept = [one for one in overrides_of(hydra).values() if one.is_sweep_override()]
    return math.prod(sum(1 for _ in one.sweep_string_iterator()) for one in swept)


def check_whole_sweep(cfg: DictConfig, hydra: DictConfig) -> None:
    """Refuse a sweep before its first job, which may run beside others, has a folder.

    Args:
        cfg: the configuration without what the sweep goes over.
        hydra: Hydra's own.

    Raises:
        SweepError: when no job could run, or none is comparable with the jobs in the folder.
        InputError: when the configuration is not valid.
    """
    overrides, folder = overrides_of(hydra), Path(hydra.sweep.dir)
    swept = {first_part(key) for key, one in overrides.items() if one.is_sweep_override()}
    check_swept(swept)
    config = cast(Train | Evaluate, OmegaConf.to_object(cfg))
    check_objective(config, hydra, folder)
    # the sweeper sets these too, once for each job
    later = swept | {first_part(key) for key in OmegaConf.select(hydra, "sweeper.params") or ()}
    if not cfg.get("checkpoint") and "checkpoint" not in later:  # which brings its own text
        check_text(config.facts(), later, folder)


def check_objective(config: Train | Evaluate, hydra: DictConfig, folder: Path) -> None:
    """Check what the jobs return, and what a sweeper that optimizes is told to do with it.

    Args:
        folder: of the sweep.

    Raises:
        SweepError: for an objective that is none, a direction that contradicts it, or a study that
            has another.
    """
    try:
        config.check_objective()
    except InputError as error:
        raise SweepError(str(error)) from error
    direction, objective = OmegaConf.select(hydra, "sweeper.direction"), config.objective
    if direction is None:
        return
    lower = measures()[objective].lower_is_better
    better, wanted = ("less", "minimize") if lower else ("more", "maximize")
    several = direction if OmegaConf.is_list(direction) else [direction]
    found = [one.name if isinstance(one, Enum) else str(one) for one in several]
    if found != [wanted]:
        raise SweepError(
            f"hydra.sweeper.direction={','.join(found)} contradicts objective={objective}, "
            f"of which {better} is better; valid is {wanted}"
        )
    study, before = OmegaConf.select(hydra, "sweeper.study_name"), folder / "multirun.yaml"
    if study is not None and before.is_file():
        there = OmegaConf.load(before)
        other = OmegaConf.select(there, "objective")
        if OmegaConf.select(there, "hydra.sweeper.study_name") == study and other != objective:
            raise SweepError(
                f"objective={objective} is not objective={other} of the study {study} in {folder}: "
                "choose another hydra.sweeper.study_name"
            )


def check_job(facts: Facts, folder: Path, sweep: Path, overrides: list[str]) -> None:
    """Check that a job belongs into its sweep. All jobs are scored on the same text, unless the
    sweep itself goes over several texts.

    Args:
        folder: of the job.
        sweep: the folder of the sweep.
        overrides: of the job.

    Raises:
        SweepError: naming what differs.
    """
    # a job's own values cannot be compared with these: Hydra writes 1e1 as 10.0
    given = overrides_of(OmegaConf.load(sweep / "multirun.yaml").hydra)
    fixed = {key for key, one in given.items() if not one.is_sweep_override()}
    swept = {first_part(key) for key in {key_of(override) for override in overrides} - fixed}
    check_swept(swept)
    check_text(facts, swept, sweep, own=folder)


def first_part(key: str) -> str:
    return key.split(".")[0]


def check_swept(swept: set[str]) -> None:
    """Raises:
    SweepError: for a sweep over what changes no score."""
    if useless := sorted(swept & set(WITHOUT_EFFECT)):
        raise SweepError(f"{useless[0]} changes no score: a sweep over it would repeat one job")


def check_text(facts: Facts, swept: set[str], sweep: Path, own: Path | None = None) -> None:
    """Raises:
    SweepError: when a job of the sweep has another text or other masks."""
    if swept & set(TEXT_KEYS):
        return
    names = [name for name in fields_with(Role.text) if hasattr(facts, name)]
    for run in runs_with_state(sweep):
        there = read_state(run).facts
        for name in names if run != own and there.data is not None else ():
            ours, theirs = getattr(facts, name), getattr(there, name)
            if ours != theirs:
                raise SweepError(
                    f"{name}={ours} is not comparable with {name}={theirs} of "
                    f"{run}: choose another hydra.sweep.dir"
                )


def runs_with_state(sweep: Path) -> list[Path]:
    return [run for run in runs_below(sweep) if (run / "metrics.json").is_file()]


def find_duplicate(cfg: DictConfig, own: Path, sweep: Path) -> Path | None:
    """The folder of an earlier job of the same sweep that comes to the same row: nothing is
    binarized, and the jobs differ in value set, scale and scope alone."""

    def meaning(config: Any) -> str:
        plain = cast(dict[str, Any], OmegaConf.to_container(config))
        plain.pop("logger", None)
        if not plain["binarize"]["components"] and plain["embeddings"] != "bit":
            plain |= {"binarize": None, "values": None, "scale": None}
        return OmegaConf.to_yaml(plain)

    wanted = meaning(OmegaConf.create(OmegaConf.to_yaml(cfg)))
    for other in runs_with_state(sweep):
        if other == own or read_state(other).status is not Status.ok:
            continue
        if meaning(read_config(other, unread=("logger",))) == wanted:
            return other
    return None
