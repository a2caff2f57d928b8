"""The two commands, ``train.py`` and ``evaluate.py``.

Hydra composes a configuration, a job runs it, the run folder stores its outcome, and the observers
show it: the terminal, the page, the model card and the tracker. What a user got wrong ends the
command in one line before a model is loaded; in a sweep it becomes a row, and the other jobs go on.
"""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from bitmaps.command.inherit import Request, inherit
from bitmaps.command.overrides import check_lists, job_folder, key_of
from bitmaps.command.schema import Evaluate, Train, conf_dir
from bitmaps.command.sweep import SweepError, check_whole_sweep
from bitmaps.errors import InputError, Stopped
from bitmaps.runs.folder import RunFolder, has_checkpoint
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
    SweepTable.running.clear()
    with stoppable():
        try:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(run)()
        except Stopped as stop:
            for sweep in SweepTable.running:
                print_table(sweep)
                print(f"{stop}: to go on, repeat the command with hydra.sweep.dir={sweep}")
            raise


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """While a command runs, SIGTERM and Ctrl-C raise ``Stopped``. A second one ends it at once.
    What was ignored before, such as Ctrl-C by a job in the background, stays ignored."""
    both = (signal.SIGINT, signal.SIGTERM)
    signals = [one for one in both if signal.getsignal(one) is not signal.SIG_IGN]

    def stop(number: int, frame: object) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_DFL)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # other threads get no signals
        return
    usual = {one: signal.signal(one, stop) for one in signals}
    try:
        yield
    finally:
        for one, handler in usual.items():
            signal.signal(one, handler)


def run_folder(resume: str | None, new: str) -> str:
    """Where a run writes: to the folder of the run that is resumed, if there is one there."""
    return resume if resume is not None and (Path(resume) / "config.yaml").is_file() else new


class SweepTable(Callback):
    """Checks a sweep before it starts. Shows it when it has ended, and ends the command with 1 if a
    job has no scores.

    Attributes:
        running: the folder of the sweep that runs, if one does.
    """

    running: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        SweepTable.running.append(Path(config.hydra.sweep.dir))
        cfg, hydra = config.copy(), config.hydra
        with flag_override(cfg, ["struct", "readonly"], False):
            del cfg["hydra"]
        try:
            check_whole_sweep(cfg, list(hydra.overrides.task), Path(hydra.sweep.dir))
        except SweepError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except (InputError, OmegaConfBaseException):
            return  # one of the jobs may be valid; each tells what is wrong with it

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        # Hydra would turn another exception into a warning, and exit with 0
        if not print_table(Path(config.hydra.sweep.dir)):
            sys.exit(1)


def print_table(sweep: Path) -> bool:
    """Write and print the table of a sweep. Returns whether all its jobs have scores."""
    from bitmaps.launch import show_sweep

    try:
        return all(status is Status.ok for status in show_sweep(sweep))
    except Exception:
        log.exception("the table of the sweep could not be made")
        return False


def run(cfg: DictConfig) -> None:
    """One job: find out what is asked for, check it, and launch it. A failure is written down."""
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
            return
        cfg, command = inherited
        config = cast(Train | Evaluate, OmegaConf.to_object(cfg))
        facts = replace(
            config.facts(), command=command, versions=facts.versions, commit=facts.commit
        )
        config.check()
        launch(cfg, config, facts, folder, request)
    except SweepError as error:
        if not folder.holds_run():
            discard(folder.path)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (InputError, OmegaConfBaseException) as error:
        if request.in_sweep and not folder.claimed and not folder.holds_run():
            folder.claim(OmegaConf.to_yaml(cfg), facts)  # so that the sweep's table has a row
        folder.fail(error, facts)
        print(f"error: {error}", file=sys.stderr)
        if not request.in_sweep:
            sys.exit(2)
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


def how_to_go_on(request: Request) -> str:
    """What follows the line on a training that ended too soon: the command that goes on with it."""
    if not has_checkpoint(request.folder):
        return ""
    resumes = any(key_of(override) == "resume" for override in request.overrides)
    resume = shlex.join(["python", "train.py", f"resume={request.folder}"])
    return f"; to go on from its last checkpoint: {request.command if resumes else resume}"


def discard(folder: Path) -> None:
    """Remove the folder that Hydra made for a job. Empty, it would be a row of the table."""
    for log_file in folder.glob("*.log"):
        log_file.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


if __name__ == "__main__":
    # Lightning starts its other processes as python -m bitmaps.cli --config-name=train …
    main()
