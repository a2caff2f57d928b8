"""A sweep as a whole: it is checked before its first job, and shown after its last one."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from bitmaps.command.mistakes import MISTAKES, one_line
from bitmaps.command.overrides import expand_paths
from bitmaps.command.sweep import SweepError, check_whole_sweep, jobs_of
from bitmaps.errors import InputError, Stopped, refuse
from bitmaps.runs.search import runs_below
from bitmaps.scoring.display import Work, job_is_done, set_sweep
from bitmaps.vocabulary import Status

log = logging.getLogger(__name__)


class SweepTable(Callback):
    """Checks a sweep before it starts. Shows it when it has ended, and ends the command with 1 if a
    job has no scores.

    While jobs run in this process, one after another, a bar shows how many are done.

    Attributes:
        running: the folder of the sweep that runs, if one does.
    """

    running: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_folder(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        check_folder(config, "hydra.sweep.dir")
        cfg, hydra = config.copy(), config.hydra
        folder = Path(hydra.sweep.dir)
        self.running.append(folder)
        with flag_override(cfg, ["struct", "readonly"], False):
            del cfg["hydra"]
        try:
            expand_paths(cfg)
            check_whole_sweep(cfg, hydra)
            set_sweep(Work("sweep", "job", jobs) if (jobs := jobs_of(hydra)) else None)
        except SweepError as error:
            refuse(one_line(error))
        except MISTAKES:
            pass  # one of the jobs may be valid; each tells what is wrong with it
        # as Hydra's own sweeper does, and no other
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "multirun.yaml")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        job_is_done()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        set_sweep(None)
        # Hydra would turn another exception into a warning, and exit with 0
        if not print_table(Path(config.hydra.sweep.dir)):
            sys.exit(1)


def check_folder(config: DictConfig, key: str) -> None:
    """End the command if its folder has no name. Hydra would take the current one."""
    # what cannot be resolved is Hydra's to tell: it turns errors in here into warnings
    folder = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    if folder is not None and not str(folder).strip():
        refuse(InputError(f"{key} is empty; valid is a folder"))


def print_table(sweep: Path) -> bool:
    """Write and print the table of a sweep. Returns whether all its jobs have scores."""
    from bitmaps.launch import show_sweep

    try:
        return all(status is Status.ok for status in show_sweep(sweep))
    except Exception:
        log.exception("the table of the sweep could not be made")
        return False


@contextlib.contextmanager
def table_when_cut_short() -> Iterator[None]:
    """Shows a sweep that a signal ends, or an error of its sweeper or launcher."""
    SweepTable.running.clear()
    set_sweep(None)
    try:
        yield
    except (Stopped, Exception) as end:
        for sweep in SweepTable.running:
            if runs_below(sweep):
                print_table(sweep)
            if isinstance(end, Stopped):
                print(f"{end}: to go on, repeat the command with hydra.sweep.dir={sweep}")
        raise


def discard(folder: Path, sweep: Path | None) -> None:
    """Remove the folder that Hydra made for a job. Empty, it would be a row of the table."""
    for log_file in folder.glob("*.log"):
        log_file.unlink()
    with contextlib.suppress(OSError):
        while folder != sweep:
            folder.rmdir()
            folder = folder.parent
