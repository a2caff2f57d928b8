"""``python -m bitmaps.report``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bitmaps.report.__main__ import main
from bitmaps.runs.folder import Row, RunFolder

FILES = ["results.csv", "results.html", "results.md", "results.png"]


def finished(path: Path, **more: Row) -> Path:
    row: Row = {
        "row": "naive", "components": "layers", "values": "pm1", "seed": 0, "cross_entropy": 12.5, "accuracy": 0.01,
        "mrr": 0.02, "inference_ms": None, "memory_mib": 47.4, "data": "wiki",
    }  # fmt: skip
    folder = RunFolder(path)
    folder.claim("", {})
    folder.finish([row | more], {}, {})
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bitmaps.report", *map(str, arguments)])
    main()


def test_a_sweep_is_reported_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        finished(tmp_path / "sweep" / str(seed), seed=seed, row="trained", cross_entropy=4.0 + seed)  # type: ignore[arg-type]
    run(monkeypatch, tmp_path / "sweep")
    assert sorted(path.name for path in (tmp_path / "sweep").glob("results.*")) == FILES
    out = capsys.readouterr().out
    assert "4.5000 ± 0.7071" in out
    assert f"{tmp_path / 'sweep'}: results.html, results.csv, results.md, results.png" in out
    assert "4.5000 ± 0.7071" in (tmp_path / "sweep" / "results.html").read_text(encoding="utf-8")
    run(monkeypatch, tmp_path / "sweep")  # and again


def test_runs_and_sweeps_from_anywhere_are_reported_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = finished(tmp_path / "a & <b>" / "run")
    finished(tmp_path / "sweep" / "0", components="all")  # type: ignore[arg-type]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    run(monkeypatch, one, tmp_path / "sweep", "--output", tmp_path / "new" / "report")
    assert sorted(path.name for path in (tmp_path / "new" / "report").iterdir()) == FILES
    assert before == {path: path.read_bytes() for path in before}  # what was run is left as it is
    text = (tmp_path / "new" / "report" / "results.md").read_text(encoding="utf-8")
    assert text.index("| all |") < text.index("| layers |")
    assert "a &amp; &lt;b&gt;" in (tmp_path / "new" / "report" / "results.html").read_text(
        encoding="utf-8"
    )


def test_a_run_that_was_moved_is_reported_from_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path / "old").rename(tmp_path / "new")
    run(monkeypatch, tmp_path / "new")
    page = (tmp_path / "new" / "results.html").read_text(encoding="utf-8")
    assert str(tmp_path / "new") in page
    assert str(tmp_path / "old") not in page


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere is no folder: a run or a sweep is wanted"),
        ("file", "file is no folder"),
    ],
)
def test_a_folder_that_is_none_ends_in_one_line_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    (tmp_path / "file").touch()
    finished(tmp_path / "good")
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, tmp_path / "good", tmp_path / name, "--output", tmp_path / "output")
    assert str(caught.value.code).startswith("error: ")
    assert message in str(caught.value.code)
    assert not (tmp_path / "output").exists()


def test_folders_without_results_are_passed_over_as_long_as_one_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a command leaves them that ended before it had begun."""
    empty = [tmp_path / "one", tmp_path / "two"]
    for folder in empty:
        folder.mkdir()
        (folder / "train.log").touch()
    run(monkeypatch, *empty, finished(tmp_path / "good"), "--output", tmp_path / "output")
    assert (tmp_path / "output" / "results.html").is_file()
    assert "passed over: " in capsys.readouterr().err
    for folders in (empty, empty[:1]):
        with pytest.raises(SystemExit, match=r"error: .* hold.* results"):
            run(monkeypatch, *folders, "--output", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_where_nothing_can_be_written_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, finished(tmp_path / "run"), "--output", tmp_path / "file")
    assert "error: " in str(caught.value.code)
    assert "file" in str(caught.value.code)


def test_no_folder_at_all_is_a_mistake_in_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    assert caught.value.code == 2
    assert "folders" in capsys.readouterr().err
