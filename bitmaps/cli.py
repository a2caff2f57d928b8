"""The commands ``train`` and ``evaluate``: ``train.py`` and ``evaluate.py`` in a checkout.

Hydra composes a configuration, a job runs it, the run folder stores its outcome, and the observers
show it: the terminal, the page, the model card and the tracker. What a user got wrong ends the
command in one line before a model is loaded; in a sweep it becomes a row, and the other jobs go on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bitmaps import __version__
from bitmaps.calling import COMPLETION, called, from_here
from bitmaps.command.completion import QUERY, path_matches
from bitmaps.command.inherit import Request, inherit
from bitmaps.command.mistakes import MISTAKES, one_line
from bitmaps.command.overrides import (
    as_typed,
    check_options,
    expand_home,
    expand_paths,
    job_folder,
    key_of,
)
from bitmaps.command.processes import end_with_launcher, stoppable
from bitmaps.command.schema import Evaluate, Train, conf_dir
from bitmaps.command.sweep import SweepError
from bitmaps.errors import InputError, Stopped, as_text, refuse
from bitmaps.runs.folder import RunFolder, has_checkpoint, read_state
from bitmaps.runs.provenance import commit, versions
from bitmaps.runs.records import Facts, Row
from bitmaps.sweeps import discard, table_when_cut_short

log = logging.getLogger(__name__)


def train() -> None:
    """``bitmaps train``, or ``python train.py``."""
    main("train")


def evaluate() -> None:
    """``bitmaps evaluate``, or ``python evaluate.py``."""
    main("evaluate")


def main(command: str | None = None) -> None:
    """Run ``conf/<command>.yaml`` with the overrides of the command line, once or at every point of
    a sweep. Without a command, Hydra's own ``--config-name`` names one."""
    if "--version" in sys.argv[1:]:
        print(f"bitmaps {__version__}")
        return
    if asks_for_words() and (found := path_matches(os.environ.get("COMP_LINE", ""))) is not None:
        print("\n".join(found))
        return
    logging.setLogRecordFactory(TextRecord)
    end_with_launcher()
    OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)
    OmegaConf.register_new_resolver(
        "job_folder", lambda found: job_folder(as_typed(found)), replace=True
    )
    shown = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        sys.argv = [expand_home(word) for word in sys.argv]
        check_options(typed())
        with raised_by_hydra(), stoppable(), table_when_cut_short():
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(run)()
    except Exception as error:
        # conf/ composes, so it is what was typed that Hydra can make nothing of
        if shown or has_begun(error):
            raise
        refuse(one_line(error))


def asks_for_words() -> bool:
    """Whether it is the script of a shell that calls, to complete a line."""
    flag, *words = [*sys.argv[1:], ""]
    return flag in COMPLETION and words[0].startswith(QUERY)


class TextRecord(logging.LogRecord):
    """A line of the log, in which no name is an escape sequence."""

    def getMessage(self) -> str:  # noqa: N802 (its name in logging)
        return "\n".join(map(as_text, super().getMessage().split("\n")))


def typed() -> list[str]:
    """The overrides of the command line.

    Raises:
        InputError: for an unknown flag.
    """

    def fail(message: str) -> NoReturn:
        raise InputError(f"{message}; --hydra-help lists the flags")

    parser = get_args_parser()
    parser.error = fail  # type: ignore[method-assign]  # which prints all flags beside the error
    overrides: list[str] = parser.parse_args().overrides
    return overrides


@contextlib.contextmanager
def raised_by_hydra() -> Iterator[None]:
    """Hydra raises its errors, as it does for a user who sets this variable. Otherwise it prints
    them, over many lines, and exits with 1."""
    given = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if given is not None:
            os.environ["HYDRA_FULL_ERROR"] = given


def has_begun(error: Exception) -> bool:
    """Whether an error comes from a job, and not from composing its configuration."""
    return any(frame.f_code is run.__code__ for frame, _ in walk_tb(error.__traceback__))


def run_folder(resume: str | None, new: str) -> str:
    """Where a run writes: to the folder of the run that is resumed, if there is one there."""
    if resume is None:
        return new
    resume = str(Path(resume).expanduser())
    return resume if (Path(resume) / "config.yaml").is_file() else new


def run(cfg: DictConfig) -> float | None:
    """One job: find out what is asked for, check it, and launch it. A failure is written down.

    Returns:
        the objective, for a sweeper that optimizes it; ``None`` for a job of a sweep that failed.
    """
    # takes seconds: not before Hydra has found what is mistyped
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from bitmaps.launch import launch

    request = Request.of(HydraConfig.get())
    folder = RunFolder(request.folder, writes=getattr(rank_zero_only, "rank", 0) == 0)
    facts = Facts(command=request.command, versions=versions(), commit=commit())
    try:
        check_options(request.overrides)
        expand_paths(cfg)
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
        refuse(one_line(error))
    except (*MISTAKES, MisconfigurationException) as error:
        mistake = one_line(error)
        if request.in_sweep and not folder.claimed and not folder.holds_run():
            folder.claim(OmegaConf.to_yaml(cfg), facts)  # so that the sweep's table has a row
        folder.fail(mistake, facts)
        if not request.in_sweep:
            refuse(mistake)
        print(f"error: {mistake}", file=sys.stderr)
    except Stopped as stop:
        folder.fail(stop, facts)
        if folder.writes and not request.in_sweep:
            print(f"{stop}{how_to_go_on(request)}")
        raise
    except OSError as error:  # a full disk, or a folder that was removed or made read-only
        folder.fail(error, facts)
        print(f"error: {folder.path}: {error}{how_to_go_on(request)}", file=sys.stderr)
        if not request.in_sweep:
            sys.exit(1)
    except BaseException as error:
        folder.fail(error, facts)
        if not request.in_sweep or not isinstance(error, Exception):
            raise
        log.exception("this job failed; the sweep goes on")
    return None


def how_to_go_on(request: Request) -> str:
    """What follows the line on a training that ended too soon: the command that goes on with it."""
    if not has_checkpoint(request.folder):
        return ""
    resumes = any(key_of(override) == "resume" for override in request.overrides)
    resume = called("train", f"resume={from_here(request.folder)}")
    return f"; to go on from its last checkpoint: {request.command if resumes else resume}"


def score_of(row: Row | None, objective: str) -> float | None:
    return None if row is None else cast(float | None, row.flat()[objective])


if __name__ == "__main__":
    # Lightning starts its other processes as python -m bitmaps.cli --config-name=train …
    main()
