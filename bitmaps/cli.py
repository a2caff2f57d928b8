"""The two commands, ``train.py`` and ``evaluate.py``.

Hydra composes a configuration, a job runs it, the run folder stores its outcome, and the observers
show it: the terminal, the page, the model card and the tracker. What a user got wrong ends the
command in one line before a model is loaded; in a sweep it becomes a row, and the other jobs go on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from bitmaps.command.inherit import Request, inherit
from bitmaps.command.overrides import check_lists, job_folder
from bitmaps.command.processes import end_with_launcher
from bitmaps.command.schema import Evaluate, Train, conf_dir
from bitmaps.command.sweep import SweepError, check_whole_sweep
from bitmaps.errors import InputError
from bitmaps.runs.folder import RunFolder, read_state
from bitmaps.runs.provenance import commit, versions
from bitmaps.runs.records import Facts, Row
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
    end_with_launcher()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(run)()


def run_folder(resume: str | None, new: str) -> str:
    """Where a run writes: to the folder of the run that is resumed, if there is one there."""
    return resume if resume is not None and (Path(resume) / "config.yaml").is_file() else new


class SweepTable(Callback):
    """Checks a sweep before it starts. Shows it when it has ended, and ends the command with 1 if a
    job has no scores."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        cfg, hydra = config.copy(), config.hydra
        with flag_override(cfg, ["struct", "readonly"], False):
            del cfg["hydra"]
        try:
            check_whole_sweep(cfg, hydra)
        except SweepError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except (InputError, OmegaConfBaseException):
            pass  # one of the jobs may be valid; each tells what is wrong with it
        # as Hydra's own sweeper does, and no other
        Path(hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, Path(hydra.sweep.dir) / "multirun.yaml")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from bitmaps.launch import show_sweep

        try:
            statuses = show_sweep(Path(config.hydra.sweep.dir))
        except Exception as error:  # Hydra would turn it into a warning, and exit with 0
            log.exception("the table of the sweep could not be made")
            raise SystemExit(1) from error
        if any(status is not Status.ok for status in statuses):
            sys.exit(1)


def run(cfg: DictConfig) -> float | None:
    """One job: find out what is asked for, check it, and launch it. A failure is written down.

    Returns:
        the objective, for a sweeper that optimizes it; ``None`` for a job of a sweep that failed.
    """
    # takes seconds: not before Hydra has found what is mistyped
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from bitmaps.launch import launch

    request = Request.of(HydraConfig.get())
    folder = RunFolder(request.folder, writes=getattr(rank_zero_only, "rank", 0) == 0)
    facts = Facts(command=request.command, versions=versions(), commit=commit())
    try:
        check_lists(request.overrides)
        inherited = inherit(cfg, request, folder)
        if inherited is None:
            log.info("%s is done already", folder.path)
            return score_of(read_state(folder.path).row, cfg.objective)
        cfg, command = inherited
        config = cast(Train | Evaluate, OmegaConf.to_object(cfg))
        facts = replace(
            config.facts(), command=command, versions=facts.versions, commit=facts.commit
        )
        config.check()
        return score_of(launch(cfg, config, facts, folder, request), config.objective)
    except SweepError as error:
        if not folder.holds_run():
            discard(folder.path, request.sweep)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (InputError, OmegaConfBaseException) as error:
        if request.in_sweep and not folder.claimed and not folder.holds_run():
            folder.claim(OmegaConf.to_yaml(cfg), facts)  # so that the sweep's table has a row
        folder.fail(error, facts)
        print(f"error: {error}", file=sys.stderr)
        if not request.in_sweep:
            sys.exit(2)
    except BaseException as error:
        folder.fail(error, facts)
        if not request.in_sweep or not isinstance(error, Exception):
            raise
        log.exception("this job failed; the sweep goes on")
    return None


def score_of(row: Row | None, objective: str) -> float | None:
    return None if row is None else cast(float | None, row.flat()[objective])


def discard(folder: Path, sweep: Path | None) -> None:
    """Remove the folder that Hydra made for a job. Empty, it would be a row of the table."""
    for log_file in folder.glob("*.log"):
        log_file.unlink()
    with contextlib.suppress(OSError):
        while folder != sweep:
            folder.rmdir()
            folder = folder.parent


if __name__ == "__main__":
    # Lightning starts its other processes as python -m bitmaps.cli --config-name=train …
    main()
