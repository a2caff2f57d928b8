"""What shows a run beside its table: the error analysis, the sentences, and W&B."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command.commands import (
    ALONE,
    SHORT,
    Commands,
    Row,
    analyses_of,
    metrics,
    rows_of,
    scores,
)
from conftest import Recorded
from huggingface_hub import ModelCard
from lightning.pytorch.loggers import CSVLogger

from bitmaps import launch
from bitmaps.cli import TextRecord
from bitmaps.report.charts import read_curves
from bitmaps.runs.records import measures
from bitmaps.tracking.tracking import Tracking
from bitmaps.tracking.workspace import CURVES


def test_a_training_is_recorded_with_all_that_the_dashboard_shows(
    command: Commands, recorded: Callable[[Path], Recorded]
) -> None:
    often = "trainer.log_every_n_steps=1"
    command.ok("train", "binarize=ffnn", "logger=wandb_offline", often, *SHORT, "hydra.run.dir=r")
    found, row = recorded(Path("r")), metrics("r")
    assert found.run["exit_code"] == 0
    measured = [name for name in measures() if row[name] is not None]
    assert len(measured) == 4  # nothing was timed
    assert {name: found.summary[name] for name in measured} == {n: row[n] for n in measured}
    before = rows_of("r")["unbinarized"]
    assert found.summary["unbinarized/cross_entropy"] == before["cross_entropy"]
    of_other_tasks = {"val/recall_at_10", "val/loss"}
    assert set(CURVES) - of_other_tasks <= set(found.curves)
    assert {"val/cross_entropy", "train/loss"} <= set(read_curves(Path("r")))  # for the report
    assert found.config["optimizer.lr"] == 4e-4
    names = ("row", "components", "values", "steps", "scale")
    assert {name: found.config[name] for name in names} == {name: row[name] for name in names}
    columns, lines = found.tables["predictions"]
    assert {"unbinarized", "naive", "trained"} <= set(columns)
    assert lines
    assert found.summary["verdict"] == analyses_of("r")["trained"]["verdict"]
    assert sum(found.summary["confidence"]["values"]) == row["masked_tokens"]
    assert len(found.tables["scales"][1]) == 4
    assert [line[0] for line in found.tables["rows"][1]] == [*rows_of("r")]
    assert len([name for name in found.summary if not name.startswith("_")]) <= 30
    assert not [name for name in found.summary if name.startswith(("flips/", "train/"))]
    (artifact,) = (one for one in found.artifacts.values() if one["type"] == "model")
    packed = {path.name for path in Path("r/packed").iterdir()}
    assert {file["path"] for file in artifact["manifest"]["contents"]} == packed
    assert {"README.md", "config.json", "model.safetensors"} <= packed
    card = ModelCard.load("r/packed/README.md")
    results = {one.metric_type: one.metric_value for one in card.data.eval_results or []}
    assert list(results.values()) == scores(rows_of("r")["packed"])


def assert_analysis_fits(analysis: dict[str, Any], row: Row) -> None:
    count = row["masked_tokens"]
    assert analysis["masked_tokens"] == sum(analysis["confidence"]["histogram"]) == count
    for splits in (analysis["by_input"].values(), analysis["by_frequency"]):
        hits = sum(split["masked_tokens"] * (split["accuracy"] or 0) for split in splits)
        assert hits / count == pytest.approx(row["accuracy"])
    assert analysis["predicted"][0]["token"] in analysis["verdict"]
    assert len(analysis["sentences"]) == 8


def test_every_row_has_its_analysis(trained: Commands) -> None:
    calibrated = ("binarize=layers", "binarize.scope=matrices", "scale=row", "calibrate=16")
    trained.ok("evaluate", *calibrated, "hydra.run.dir=c")
    trained.ok("evaluate", "checkpoint=r/packed", "hydra.run.dir=p")
    for folder in ("r", "c", "p"):
        rows, analyses = rows_of(folder), analyses_of(folder)
        assert list(analyses) == list(rows)
        for kind, row in rows.items():
            assert_analysis_fits(analyses[kind], row)
    assert [len(analyses_of(folder)) for folder in ("r", "c", "p")] == [2, 3, 4]
    shown = [
        [sentence["text"] for sentence in analyses_of("p")[kind]["sentences"]]
        for kind in ("trained", "packed")
    ]
    assert shown[0] == shown[1]


def test_analysis_and_text_are_printed_if_asked(command: Commands) -> None:
    naive = ("evaluate", "binarize=all", "values=01", ALONE)
    own = "text='the [MASK] sat on the [MASK]'"
    out = command.ok(*naive, "analysis=true", own, "hydra.run.dir=a")
    analysis = analyses_of("a")["naive"]
    assert f"naive: {analysis['verdict']}" in out
    assert analysis["sentences"][0]["text"] == "the [MASK] sat on the [MASK]"
    assert len(analysis["sentences"]) == 9
    assert all(sentence["text"][:40] in out for sentence in analysis["sentences"])
    first = analysis["sentences"][0]["masked"][0]
    assert (first["position"], first["true"]) == (1, None)
    guess = first["predictions"][0]
    assert f"{guess['token']} {guess['probability']:.2f}" in out
    out = command.ok(*naive, own, "hydra.run.dir=b")
    assert "the [MASK] sat on the [MASK]" in out
    assert analysis["verdict"] not in out
    assert analysis["sentences"][1]["text"][:40] not in out
    assert analyses_of("b") == {"naive": analysis}
    assert "[MASK]" not in command.ok(*naive, "hydra.run.dir=c")


class Closed(io.StringIO):
    """Standard output that nobody reads any more."""

    def write(self, text: str) -> int:
        raise BrokenPipeError("nobody reads")


class Poor(io.TextIOWrapper):
    """A terminal that knows little more than English."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [Closed, Poor])
def test_a_terminal_that_fails_costs_a_run_nothing(
    command: Commands, monkeypatch: pytest.MonkeyPatch, terminal: Callable[[], io.TextIOBase]
) -> None:
    redirect = contextlib.redirect_stdout
    monkeypatch.setattr(contextlib, "redirect_stdout", lambda _: redirect(terminal()))
    code, _, err = command("evaluate", "binarize=all", ALONE, "analysis=true", "hydra.run.dir=r")
    assert (code, metrics("r")["status"]) == (0, "ok"), err
    assert Path("r/results.html").is_file()
    code, _, err = command("evaluate", "-m", "binarize=none,all", ALONE, "hydra.sweep.dir=s")
    assert code == 0, err
    assert Path("s/results.md").is_file()


def test_a_line_of_the_log_has_no_escape_sequences() -> None:
    record = TextRecord("n", logging.INFO, "p", 1, "%s\nis done", ("a\x1b[31m",), None)
    assert record.getMessage() == "a\\x1b[31m\nis done"


def test_a_tracker_that_fails_costs_a_warning_that_says_how_to_repeat_it(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise PermissionError("Unable to write staging files")

    monkeypatch.setattr(Tracking, "summarize", fail)
    monkeypatch.setattr(launch, "write_card", fail)
    command.ok("train", "binarize=ffnn", ALONE, *SHORT, "hydra.run.dir=r")
    assert metrics("r")["status"] == "ok"
    failed = [line for line in Path("r/train.log").read_text().splitlines() if "failed" in line]
    again = "to repeat that: python train.py resume=r"
    for observer, line in zip(("model card", "tracker"), failed, strict=True):
        assert f"its {observer} failed: PermissionError: Unable to write" in line
        assert line.endswith(again)


def test_a_logger_that_does_not_close_costs_a_warning(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("gone")

    monkeypatch.setattr(CSVLogger, "finalize", fail)
    command.ok("evaluate", "binarize=ffnn", ALONE, "hydra.run.dir=r")
    assert metrics("r")["status"] == "ok"
    assert "the logger did not close: OSError: gone" in Path("r/evaluate.log").read_text()
