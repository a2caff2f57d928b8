"""One job from its checked configuration to an outcome that is stored and shown.

The run folder stores the outcome first. Then the observers show it: terminal, page, model card and
tracker. An observer that fails costs a warning, and nothing else.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from bitmaps.calling import called, from_here
from bitmaps.command.inherit import Request
from bitmaps.command.processes import name_launcher
from bitmaps.command.schema import Evaluate, Train
from bitmaps.command.sweep import SweepError, check_job, find_duplicate
from bitmaps.jobs.evaluate import Evaluation
from bitmaps.jobs.setup import Outcome
from bitmaps.jobs.train import Training
from bitmaps.report import terminal
from bitmaps.report.card import write_card
from bitmaps.report.comparison import compare
from bitmaps.report.entries import run_folders
from bitmaps.report.files import write_results
from bitmaps.runs.folder import RunFolder, read_scored
from bitmaps.runs.records import Facts, Row
from bitmaps.tracking.tracking import Tracking, tracking
from bitmaps.vocabulary import Status, Task

log = logging.getLogger(__name__)


def launch(
    cfg: DictConfig, config: Train | Evaluate, facts: Facts, folder: RunFolder, request: Request
) -> Row:
    """Do the work of a configuration, store its outcome and show it. Returns the run's own row.

    Args:
        cfg: the same configuration as it is written to ``config.yaml``.
        facts: what is run.
        request: what was typed.

    Raises:
        InputError: for everything that can be found wrong before weights are read.
    """
    quieten_libraries()
    job = Training(config) if isinstance(config, Train) else Evaluation(config)
    if job.setup.starts_processes:
        name_launcher()
    duplicate = None
    if request.sweep is not None:
        if job.setup.starts_processes:
            raise SweepError(
                f"trainer.strategy={config.trainer.strategy} with trainer.devices="
                f"{config.trainer.devices} in a multirun: each process that it starts would "
                "replay the whole sweep. Run the jobs one by one, without -m."
            )
        check_job(facts, folder.path, request.sweep, request.overrides)
        if isinstance(config, Evaluate):  # a training leaves a model, which has to be its own
            duplicate = find_duplicate(cfg, folder.path, request.sweep)
    resume = isinstance(config, Train) and config.resume is not None
    if not resume:
        folder.claim(OmegaConf.to_yaml(cfg), facts)
    with tracking(config.logger, folder.path, facts, request.group) as track:
        if resume:  # only now: a logger that does not start costs the run that is there nothing
            folder.claim(OmegaConf.to_yaml(cfg), facts, resume=True)
        if duplicate is None:
            outcome = job.run(folder.path, facts, track.loggers)
        else:
            outcome = Outcome(read_scored(duplicate), None).with_command(facts.command)
        folder.finish(outcome.scored)
        show(outcome, config, folder, track, request.in_sweep)
    return outcome.scored[-1].row


def show(
    outcome: Outcome, config: Train | Evaluate, folder: RunFolder, track: Tracking, in_sweep: bool
) -> None:
    """Show the outcome of a run that its folder has stored."""
    packed = folder.path / "packed"
    rows = [one.row for one in outcome.scored]
    again = repetition(folder.path, config)
    if folder.writes and packed.is_dir():
        card = partial(write_card, packed, rows, config.model, config.data)
        attempt("model card", folder, card, again)
    summarize = partial(track.summarize, outcome.scored, outcome.model, packed)
    attempt("tracker", folder, summarize, again)
    if not folder.writes or in_sweep:
        return
    report = called("report", from_here(folder.path))
    attempt("page", folder, partial(write_page, folder.path), report)
    attempt("table", folder, partial(print_outcome, outcome, config, folder), report)


def print_outcome(outcome: Outcome, config: Train | Evaluate, folder: RunFolder) -> None:
    comparison = compare([folder.path])
    terminal.print_table(comparison)
    analyses = {one.row.kind: one.analysis for one in outcome.scored if one.analysis is not None}
    if config.analysis:
        terminal.print_analyses(analyses)
    if config.analysis or config.text is not None:
        terminal.print_sentences(analyses, None if config.analysis else 1)
    terminal.print_finding(comparison)
    terminal.say(f"{from_here(folder.path)}: metrics.json, results.html")
    if (folder.path / "packed").is_dir():
        for line in next_commands(folder.path, config.task):
            terminal.say(line)


def next_commands(run: Path, task: Task) -> list[str]:
    """What to type after a training, with what it does."""
    checkpoint = f"checkpoint={from_here(run / 'packed')}"
    if find_spec("streamlit") is not None:  # of the extra show
        ask = f"to try it on a local page: {called('show', from_here(run))}"
    elif task is Task.masked_lm:
        text = 'text="the [MASK] of england"'
        ask = f"to let it fill in a sentence: {called('evaluate', checkpoint, text)}"
    else:
        ask = f"to score it in real bits: {called('evaluate', checkpoint)}"
    others = f"{called('report', from_here(run.parent))}/* --output report"
    return [ask, f"to set it beside your other runs: {others}"]


def repetition(folder: Path, config: Train | Evaluate) -> str:
    """What shows a stored outcome again: it scores the model, and trains no step."""
    if isinstance(config, Train):
        return called("train", f"resume={from_here(folder)}")
    return "the same command with another hydra.run.dir"


def attempt(observer: str, folder: RunFolder, run: Callable[[], object], again: str) -> None:
    """Run an observer. A failure is a warning that says how to repeat it."""
    try:
        run()
    except Exception as error:
        log.warning(
            "the results are in %s, but its %s failed: %s: %s; to repeat that: %s",
            from_here(folder.path), observer, type(error).__name__, error, again,
        )  # fmt: skip


def write_page(folder: Path) -> None:
    """Write ``results.html`` of the runs in a folder."""
    from bitmaps.report import page  # what draws takes seconds to import

    page.write_page(compare(run_folders(folder)), folder / "results.html")


def show_sweep(folder: Path) -> list[Status]:
    """Write and print the table of a sweep. Returns the status of every row."""
    from bitmaps.report import page

    comparison = compare(run_folders(folder))
    written = write_results(comparison, folder)
    lines = page.write_page(comparison, folder / "results.html")
    terminal.print_table(comparison)
    for line in lines:
        if line.analysis is not None and line.analysis.predicted[0].is_collapse:
            terminal.say(f"{line.label}: {line.verdict}")
    terminal.print_finding(comparison)
    terminal.say(f"{from_here(folder)}: results.html, {', '.join(written)}")
    return [entry.status for entry in comparison.entries]


def quieten_libraries() -> None:
    """Keep the terminal, or a notebook, for what a user can act on."""
    import lightning.pytorch  # noqa: F401 (it sets the level of its own logger)

    for name in ("lightning.pytorch", "lightning.fabric", "httpx", "httpx2", "gensim"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "IProgress not found",  # in a notebook without widgets, bars of text will do
        # batches are made in microseconds: worker processes would only add to the start
        ".*does not have many workers.*",
        # a resumed run finds its own checkpoints
        "Checkpoint directory .* exists and is not empty",
        # and may go on without one of its callbacks
        "Be aware that when using `ckpt_path`",
        "Metric `SpearmanCorrcoef` will save all targets",  # as it must
        ".*isinstance.treespec, LeafSpec.*",  # of Lightning 2.6 on torch 2.13
    ):
        warnings.filterwarnings("ignore", message=message)
