"""The comparison in the terminal, and as CSV, Markdown and a picture."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
from report.examples import MEASURED, analysis, facts, finished, row

from bitmaps.launch import show_sweep
from bitmaps.report.comparison import Comparison, comparison_of
from bitmaps.report.entries import Entry
from bitmaps.report.files import markdown, write_results
from bitmaps.report.terminal import (
    accuracy_splits,
    print_analyses,
    print_finding,
    print_sentences,
    print_table,
)
from bitmaps.runs.analysis import FrequentToken
from bitmaps.runs.records import Row
from bitmaps.vocabulary import RowKind, Status


def compared(*rows: Row) -> Comparison:
    failed = Entry(Path("runs/y"), Status.failed, facts("all"), error="no [such] folder")
    return comparison_of([*(Entry.of(one, Path("runs/x")) for one in rows), failed])


def test_markdown_has_a_cell_a_column_and_the_reasons_below() -> None:
    half = MEASURED["accuracy"] / 2
    text = markdown(compared(row("none", "unbinarized"), row("all", scale="row", accuracy=half)))
    assert text == (
        "| components | values | row | CE | accuracy | MRR | % of full precision | ms |"
        " MiB (pseudo) |\n"
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| none |  | unbinarized | 12.5000 | 0.0322 | 0.0543 | 100.0 | 1.23 | 12.3 |\n"
        "| all | {-1,1} | naive, scale row | 12.5000 | 0.0161 | 0.0543 | 50.0 | 1.23 | 12.3 |\n"
        "| all | {-1,1} | failed |  |  |  |  |  |  |\n"
        "\nall {-1,1} failed: no \\[such\\] folder\n"
    )


def test_a_name_cannot_break_the_markdown_table() -> None:
    found = compared(row(model="a | b\nc"), row(model="d"))
    line = markdown(found).splitlines()[2]
    assert line.startswith(r"| a \| b c | layers |")
    assert line.replace(r"\|", "").count("|") == len(found.columns) + 1


def test_the_terminal_shows_every_row_and_why_one_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seeds = [row("all", "trained", seed=seed, accuracy=0.1 * seed) for seed in (1, 2)]
    print_table(compared(row(), *seeds))
    shown = capsys.readouterr().out
    for text in ("{-1,1}", "trained", "12.5000", "0.0322", "1.23", "0.1500 ± 0.0707", "1, 2"):
        assert text in shown
    assert "all {-1,1} failed: no [such] folder" in shown
    assert "full precision" not in shown  # nothing to compare with
    print_table(compared(row("none", "unbinarized"), *seeds))
    shown = capsys.readouterr().out
    assert "% of full precision" in shown
    assert "465.9 ± 219.6" in shown


def test_the_terminal_ends_with_the_finding(capsys: pytest.CaptureFixture[str]) -> None:
    half = row("layers", accuracy=MEASURED["accuracy"] / 2)
    print_finding(compared(row("none", "unbinarized"), half))
    shown = capsys.readouterr().out.splitlines()
    kept = "50.0 % of full precision's accuracy in 12.3 of 12.3 MiB"
    assert shown == [f"layers in {{-1,1}}, naive, keep {kept}", "1 run has failed"]


def test_results_are_csv_markdown_and_a_picture(tmp_path: Path) -> None:
    comparison = compared(
        row("none", "unbinarized", perplexity=None, settings={"optimizer.lr": 0.1}),
        row("all", "trained", seed=1),
        row("all", "trained", seed=2),
    )
    assert write_results(comparison, tmp_path) == ["results.csv", "results.md", "results.png"]
    assert (tmp_path / "results.md").read_text() == markdown(comparison)
    with (tmp_path / "results.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert list(reader.fieldnames or ())[:4] == ["components", "values", "row", "cross_entropy"]
    assert [(one["components"], one["seed"], one["status"]) for one in rows] == [
        ("none", "0", "ok"), ("all", "1", "ok"), ("all", "2", "ok"), ("all", "0", "failed"),
    ]  # fmt: skip
    assert [float(one["accuracy"]) for one in rows[:3]] == [0.0321987] * 3
    kept = [one["percent_of_full_precision"] for one in rows]
    assert kept == ["100.0", "100.0", "100.0", ""]
    assert (rows[0]["perplexity"], rows[0]["optimizer.lr"]) == ("", "0.1")
    assert rows[3]["error"] == "no [such] folder"
    assert not {"known", "settings", "versions"} & rows[0].keys()
    picture = matplotlib.image.imread(tmp_path / "results.png")
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


def test_there_is_no_picture_if_every_run_failed(tmp_path: Path) -> None:
    (tmp_path / "results.png").touch()  # shows older rows
    assert write_results(compared(), tmp_path) == ["results.csv", "results.md"]
    assert not (tmp_path / "results.png").exists()


# Error analyses


def test_the_terminal_shows_what_each_model_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = {
        RowKind.unbinarized: analysis("[x]", verdict="predicts much"),
        RowKind.naive: analysis(".", accuracy=None, verdict="[collapsed]"),
    }
    print_analyses(analyses)
    shown = capsys.readouterr().out
    assert "[x] 100.0%" in shown
    assert ". 100.0%" in shown
    assert shown.count("0.019 ± 0.010") == 2
    assert shown.count("0.2500") == 4  # where a subset is empty, the cell is
    assert "unbinarized: predicts much\n" in shown
    assert "naive: [collapsed]\n" in shown


def test_a_sweep_names_the_token_of_each_collapsed_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = replace(
        analysis(verdict="predicts 9 distinct tokens"),
        predicted=[FrequentToken("cat", 0.2, 0.1, 0.5)],
    )
    finished(tmp_path / "none", row("none", "unbinarized"), analyses={RowKind.unbinarized: fine})
    finished(tmp_path / "all", row("all"))
    show_sweep(tmp_path)
    shown = capsys.readouterr().out
    assert "\nall {-1,1} naive: predicts '.': collapsed\n" in shown
    assert "distinct" not in shown


def test_the_terminal_shows_sentences_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = {RowKind.unbinarized: analysis("dog"), RowKind.naive: analysis("[MASK]")}
    print_sentences(analyses, None)
    shown = capsys.readouterr().out
    assert "a [MASK]s sat" in shown
    assert "the [MASK] dog" in shown
    lines = [line for line in shown.splitlines() if "0.50" in line]
    assert len(lines) == 2
    for line in lines:
        assert "cat" in line
        assert line.index("dog 0.50 cat 0.25") < line.index("[MASK] 0.50 cat 0.25")
    print_sentences(analyses, 1)
    assert "the [MASK] dog" not in capsys.readouterr().out


def test_splits_say_how_often_a_token_occurs() -> None:
    assert list(accuracy_splits(analysis())) == [
        ("at [MASK]", 0.2), ("random piece", 0.2), ("unchanged", 0.2), ("1-9 times", 0.25),
        ("10-99 times", 0.25), ("100-999 times", 0.25), ("1000+ times", 0.25),
    ]  # fmt: skip
