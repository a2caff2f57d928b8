"""The two commands, ``train.py`` and ``evaluate.py``.

Hydra composes a configuration, a job runs it, the run folder stores its outcome, and the observers
show it: the terminal, the page, the model card and the tracker. What a user got wrong ends the
command in one line before a model is loaded; in a sweep it becomes a row, and the other jobs go on.
"""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bitmaps.command.inherit import of_checkpoint, resumed
from bitmaps.command.overrides import check_lists, job_folder, key_of
from bitmaps.command.schema import Evaluate, Train, conf_dir
from bitmaps.command.sweep import Job, check_sweep, find_duplicate, find_job
from bitmaps.errors import InputError
from bitmaps.runs.folder import RunFolder, read_scored, read_state
from bitmaps.runs.provenance import commit, versions
from bitmaps.runs.records import Facts
from bitmaps.vocabulary import Status

log = logging.getLogger(__name__)


def train() -> None:
    """``python train.py``."""
    main("train")


def evaluate() -> None:
    """``python evaluate.py``."""
    main("evaluate")


def main(command: str | None = None) -> None:
    """Run ``conf/<command>.yaml`` with the overrides of the command line, once or at every point of
    a sweep. Without a command, Hydra's own ``--config-name`` names one."""
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(run)()


def run_folder(resume: str | None, new: str) -> str:
    """Where a run writes: to the folder of the run that is resumed, if there is one there."""
    return resume if resume is not None and (Path(resume) / "config.yaml").is_file() else new


class SweepTable(Callback):
    """Shows a sweep when it has ended, and ends the command with 1 if a job has no scores."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from bitmaps.observe import show_sweep

        try:
            statuses = show_sweep(Path(config.hydra.sweep.dir))
        except Exception as error:  # Hydra would turn it into a warning, and exit with 0
            log.exception("the table of the sweep could not be made")
            raise SystemExit(1) from error
        if any(status is not Status.ok for status in statuses):
            sys.exit(1)


def run(cfg: DictConfig) -> None:
    """One job: check, claim the run folder, do the work, store the outcome and show it."""
    # takes seconds: not before Hydra has found what is mistyped
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    path = Path(hydra_config.runtime.output_dir)
    folder = RunFolder(path, writes=getattr(rank_zero_only, "rank", 0) == 0)
    overrides = list(hydra_config.overrides.task)
    typed = shlex.join(["python", f"{hydra_config.job.config_name}.py", *overrides])
    facts = Facts(command=typed, versions=versions(), commit=commit())
    try:
        check_lists(overrides)
        if cfg.get("checkpoint"):
            cfg = of_checkpoint(cfg, overrides)
        if cfg.get("resume"):
            cfg = resumed(cfg, overrides)
            facts = replace(facts, command=resumed_command(folder, cfg.resume, overrides))
        elif in_sweep and (job := find_job(cfg, folder)) is not Job.new:
            if job is Job.done:
                log.info("%s is done already", path)
                return
            cfg.resume = str(path)
        config = cast(Train | Evaluate, OmegaConf.to_object(cfg))
        asked = config.facts()
        facts = replace(asked, command=facts.command, versions=facts.versions, commit=facts.commit)
        config.check()
        run_job(cfg, config, facts, folder, in_sweep)
    except (InputError, OmegaConfBaseException) as error:
        if in_sweep and not folder.claimed and not folder.holds_run():
            folder.claim(OmegaConf.to_yaml(cfg), facts)  # so that the sweep's table has a row
        folder.fail(error, facts)
        print(f"error: {error}", file=sys.stderr)
        if not in_sweep:
            sys.exit(2)
    except BaseException as error:
        folder.fail(error, facts)
        if not in_sweep or not isinstance(error, Exception):
            raise
        log.exception("this job failed; the sweep goes on")


def resumed_command(folder: RunFolder, resume: str, overrides: list[str]) -> str:
    """What makes a resumed run: the command that began it, with what was changed since.

    Raises:
        InputError: when the run would not be resumed in its own folder.
    """
    if folder.path.resolve() != Path(resume).resolve():
        raise InputError(
            f"a run is resumed in its own folder, {resume}: leave out hydra.run.dir, and -m"
        )
    began = shlex.split(read_state(folder.path).facts.command)
    changed = [override for override in overrides if key_of(override) != "resume"]
    return shlex.join({key_of(word): word for word in (*began, *changed)}.values())


def run_job(
    cfg: DictConfig, config: Train | Evaluate, facts: Facts, folder: RunFolder, in_sweep: bool
) -> None:
    """Do the work of a checked configuration, and show its outcome."""
    from bitmaps.jobs.evaluate import Evaluation
    from bitmaps.jobs.setup import Outcome
    from bitmaps.jobs.train import Training
    from bitmaps.observe import quieten_libraries, show
    from bitmaps.tracking.tracking import tracking

    quieten_libraries()
    job = Training(config) if isinstance(config, Train) else Evaluation(config)
    if in_sweep and job.setup.starts_processes:
        raise SystemExit(
            f"error: trainer.strategy={config.trainer.strategy} with "
            f"trainer.devices={config.trainer.devices} in a multirun: each process that it starts "
            "would replay the whole sweep. Run the jobs one by one, without -m."
        )
    resume = isinstance(config, Train) and config.resume is not None
    yaml, duplicate = OmegaConf.to_yaml(cfg), None
    if in_sweep:
        check_sweep(facts, folder.path, list(HydraConfig.get().overrides.task))
        if isinstance(config, Evaluate):  # a training leaves a model, which has to be its own
            duplicate = find_duplicate(cfg, folder.path)
    if not resume:
        folder.claim(yaml, facts)
    group = folder.path.parent.name if in_sweep else None
    with tracking(config.logger, folder.path, facts, group) as track:
        if resume:  # only now: a logger that does not start costs the run that is there nothing
            folder.claim(yaml, facts, resume=True)
        if duplicate is None:
            outcome = job.run(folder.path, facts, track.loggers)
        else:
            outcome = Outcome(read_scored(duplicate), None).with_command(facts.command)
        folder.finish(outcome.scored)
        show(outcome, config, folder, track, in_sweep)


if __name__ == "__main__":
    # Lightning starts its other processes as python -m bitmaps.cli --config-name=train …
    main()
