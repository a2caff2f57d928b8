"""``python -m bitmaps.report``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from report.examples import finished, row

from bitmaps.report import intervals
from bitmaps.report.__main__ import main

FILES = ["results.csv", "results.html", "results.md", "results.png"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bitmaps.report", *map(str, arguments)])
    main()


def results_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("results.*"))


def test_a_sweep_is_reported_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for seed in (0, 1):
        finished(sweep / f"seed={seed}", row(kind="trained", seed=seed, cross_entropy=4.0 + seed))
    run(monkeypatch, sweep)
    assert results_in(sweep) == FILES
    out = capsys.readouterr().out
    assert "4.5000 ± 0.7071" in out
    assert f"{sweep}: results.html, results.csv, results.md, results.png" in out
    assert "4.5000 ± 0.7071" in (sweep / "results.html").read_text(encoding="utf-8")
    run(monkeypatch, sweep)  # a report does not hinder the next one


def test_runs_and_sweeps_are_reported_together_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = finished(tmp_path / "a & <b>" / "run", row())
    finished(tmp_path / "sweep" / "0", row("all"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    output = tmp_path / "new" / "report"
    run(monkeypatch, one, tmp_path / "sweep", "--output", output)
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert before == {path: path.read_bytes() for path in before}
    text = (output / "results.md").read_text(encoding="utf-8")
    assert text.index("| all |") < text.index("| layers |")
    assert "a &amp; &lt;b&gt;" in (output / "results.html").read_text(encoding="utf-8")


def test_a_single_run_that_was_moved_is_reported_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "old", row()).rename(tmp_path / "new")
    run(monkeypatch, tmp_path / "new")
    page = (tmp_path / "new" / "results.html").read_text(encoding="utf-8")
    assert str(tmp_path / "new") in page
    assert str(tmp_path / "old") not in page


def test_rows_are_compared_and_stored_and_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bit", "bwn"):
        finished(tmp_path / "sweep" / f"recipe={name}", row(kind="trained", recipe=name))
    stored, picture = tmp_path / "results.json", tmp_path / "sizes.png"
    run(monkeypatch, tmp_path / "sweep", "--against", "recipe=bit", "--json", stored)
    out = capsys.readouterr().out
    label = "layers {-1,1} trained, recipe bit"
    assert f"| line | CE above {label} |" in out
    assert list(intervals.read(stored).references) == [label]
    run(monkeypatch, stored, "--line", "*bwn", "--sizes", picture)
    shown = capsys.readouterr().out
    assert "recipe bwn | +0.000 (+0.000 to +0.000) |" in shown
    assert f"| {label} |" not in shown
    assert picture.is_file()
    assert (tmp_path / "sizes-dark.png").is_file()


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_folder_that_is_none_ends_in_one_line_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    (tmp_path / "file").touch()
    good = finished(tmp_path / "good", row())
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, good, tmp_path / name, "--output", tmp_path / "output")
    assert re.search(f"^error: .*{name} is not a folder", capsys.readouterr().err)
    assert not (tmp_path / "output").exists()


def test_folders_without_results_are_skipped_as_long_as_one_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that ended before its run began leaves such a folder."""
    empty = [tmp_path / "one", tmp_path / "two"]
    for folder in empty:
        folder.mkdir()
        (folder / "train.log").touch()
    run(monkeypatch, *empty, finished(tmp_path / "good", row()), "--output", tmp_path / "output")
    assert (tmp_path / "output" / "results.html").is_file()
    assert "skipped: " in capsys.readouterr().err
    for folders in (empty, empty[:1]):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, *folders, "--output", tmp_path / "none")
        assert re.search("error: .* hold.* results", capsys.readouterr().err)
    assert not (tmp_path / "none").exists()


def test_an_output_that_is_a_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = finished(tmp_path / "run", row())
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, folder, "--output", tmp_path / "file")
    assert re.search("error: .*file", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "sources"),
        (("results.json", "--against", "x"), "a JSON file is shown alone"),
        (("results.json", "folder"), "a JSON file is shown alone"),
    ],
)
def test_a_mistake_in_usage_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
