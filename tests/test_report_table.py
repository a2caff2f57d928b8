"""The table of a sweep."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bitmaps.errors import InputError
from bitmaps.report.table import COLUMNS, collect, draw, markdown, order, print_table, write
from bitmaps.runs import Row, RunFolder

GROUPS = ["none", "all", "layers", "layers_except_attention", "layers_except_ffnn"]  # in the blog post's order
SCORES = {
    "cross_entropy": 262.123456789,
    "perplexity": None,
    "accuracy": 0.0321987,
    "mrr": 0.0543,
    "inference_ms": 1.2345,
    "memory_mib": 12.34,
}


def facts(components: str, values: str | None, **more: Any) -> Row:
    nothing = components == "none"
    return {
        "model": "minilm",
        "data": "wiki",
        "components": components,
        "values": None if nothing else values,
        "row": None,
        "scale": None if nothing else "none",
        "seed": 0,
        **more,
    }


def row(components: str, values: str | None, kind: str = "naive", **more: Any) -> Row:
    kind = "unbinarized" if components == "none" else kind
    return facts(components, values) | {"row": kind, "known": {"accuracy": 0.5}} | SCORES | more


def finished(path: Path, *rows: Row) -> Path:
    folder = RunFolder(path)
    folder.claim("", {})
    folder.finish(list(rows), {}, {})
    return path


def sweep(tmp_path: Path) -> list[Path]:
    """The blog post's ten jobs, in any order."""
    points = [(group, values) for group in GROUPS for values in ("01", "pm1")]
    random.Random(0).shuffle(points)
    return [finished(tmp_path / str(n), row(*point)) for n, point in enumerate(points)]


def table(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.get("components"), row.get("values"), row.get("row")) for row in rows]


def test_the_rows_come_in_the_blog_posts_order(tmp_path: Path) -> None:
    binarized = [(group, values, "naive") for group in GROUPS[1:] for values in ("01", "pm1")]
    assert table(collect(sweep(tmp_path))) == [("none", None, "unbinarized"), *binarized]


def test_a_training_sweep_has_its_reference_rows_once(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / values, row("none", None), row("ffnn", values), row("ffnn", values, "trained", steps=9))
        for values in ("pm1", "01")
    ]
    assert table(collect(folders)) == [
        ("none", None, "unbinarized"),
        ("ffnn", "01", "naive"),
        ("ffnn", "01", "trained"),
        ("ffnn", "pm1", "naive"),
        ("ffnn", "pm1", "trained"),
    ]


@pytest.mark.parametrize(
    "field",
    [
        "model",
        "data",
        "split",
        "scale",
        "seed",
        "mask_seed",
        "mask_sets",
        "limit",
        "steps",
        "recipe",
        "loss",
        "embeddings",
        "activations",
        "calibrated_on",
    ],
)
def test_rows_that_differ_in_what_was_run_both_stay(tmp_path: Path, field: str) -> None:
    folders = [finished(tmp_path / str(n), row("ffnn", "01") | {field: n}) for n in (2, 1)]
    assert {found[field] for found in collect(folders)} == {1, 2}


def test_what_has_no_scores_is_a_row_that_says_so(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("failed", "running", "empty", "corrupt")}
    for name, components in (("failed", "all"), ("running", "layers")):
        folder = RunFolder(paths[name])
        folder.claim("", facts(components, "01"))
        if name == "failed":
            folder.fail(InputError("data.dir=x is not a folder"), facts(components, "01"))
    paths["empty"].mkdir()
    paths["corrupt"].mkdir()
    (paths["corrupt"] / "metrics.json").write_text("{")
    found: list[Row] = []
    for path in paths.values():
        found += collect([path])
    assert [row["status"] for row in found] == ["failed", "running", "failed", "failed"]
    text = markdown(found).splitlines()[2:]
    assert "| all | {0,1} | failed: data.dir=x is not a folder |" in text[0]
    assert "| layers | {0,1} | running: no result yet |" in text[1]
    assert "empty is not a run folder" in text[2]
    assert "metrics.json is not JSON" in text[3]


def test_every_folder_that_cannot_be_read_has_a_row(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "good", row("all", "01"))]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders.append(tmp_path / name)
    text = markdown(collect(folders))
    assert "one is not a run folder" in text
    assert "two is not a run folder" in text


@pytest.mark.parametrize("content", [None, "{"])
def test_a_finished_run_whose_rows_cannot_be_read_is_a_row_that_says_so(tmp_path: Path, content: str | None) -> None:
    folder = finished(tmp_path / "run", row("all", "01"))
    (folder / "rows.json").unlink()
    if content is not None:
        (folder / "rows.json").write_text(content)
    (found,) = collect([folder])
    assert found["status"] == "failed"
    assert "rows.json" in found["error"]


def test_markdown_has_a_cell_a_column() -> None:
    lines = markdown([{"status": "ok"} | row("all", "01")]).splitlines()
    assert lines[0] == "| components | values | row | CE | accuracy | MRR | ms | MiB (pseudo) |"
    assert lines[1] == "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| all | {0,1} | naive | 262.1235 | 0.0322 | 0.0543 | 1.23 | 12.3 |"
    assert markdown([{"status": "ok"} | row("none", None)]).splitlines()[2].startswith("| none |  | unbinarized | 262")


def test_rows_of_a_run_stand_in_the_order_in_which_more_was_done() -> None:
    kinds = ["trained", "naive", "calibrated"]
    rows = [{"status": "ok"} | row("all", "01", kind) for kind in kinds] + [{"status": "ok"} | row("none", None)]
    assert [found["row"] for found in sorted(rows, key=order)] == ["unbinarized", "naive", "calibrated", "trained"]


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("recipe", "bit", "bwn"),
        ("loss", "common", "tokens"),
        ("embeddings", "int8", "bit"),
        ("activations", "float", "int8"),
        ("calibrated_on", 0, 512),
        ("mask_sets", 1, 5),
        ("seed", 0, 1),
    ],
)
def test_what_rows_differ_in_has_a_column(field: str, one: Any, other: Any) -> None:
    rows = [{"status": "ok"} | row("all", "01", "trained") | {field: value} for value in (one, other)]
    heading, _, *lines = markdown(rows).splitlines()
    assert heading.startswith(f"| {field.replace('_', ' ')} | components |")
    assert [line.split(" | ")[0] for line in lines] == [f"| {one}", f"| {other}"]
    assert markdown([rows[0], {"status": "ok"} | row("none", None, **{field: other})]).startswith("| components |")


def test_a_scale_shows_beside_the_row() -> None:
    assert "| naive, scale row |" in markdown([{"status": "ok"} | row("all", "pm1", scale="row")])


def test_a_measure_that_was_not_taken_is_blank_and_zero_is_not() -> None:
    (line,) = markdown([{"status": "ok"} | row("all", "01", inference_ms=None, mrr=0.0)]).splitlines()[2:]
    assert line == "| all | {0,1} | naive | 262.1235 | 0.0322 | 0.0000 |  | 12.3 |"


def test_an_error_cannot_break_the_markdown_table() -> None:
    rows = [{"status": "failed", "error": "a | b\nc"}]
    (line,) = markdown(rows).splitlines()[2:]
    assert r"failed: a \| b c" in line
    assert line.replace(r"\|", "").count("|") == len(COLUMNS) + 1


def test_a_report_is_csv_markdown_and_a_picture(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    rows = collect(sweep(tmp_path))
    write(rows, tmp_path / "report")
    assert (tmp_path / "report" / "results.md").read_text() == markdown(rows)
    with (tmp_path / "report" / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert table(read) == [(c, v or "", r) for c, v, r in table(rows)]
    assert {float(found["cross_entropy"]) for found in read} == {262.123456789}
    assert {found["perplexity"] for found in read} == {""}
    assert "known" not in read[0]
    picture = matplotlib.image.imread(tmp_path / "report" / "results.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05


def bars(rows: list[Row], path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[float, float]]]:
    """The heights of the bars that are drawn, as measured over and over again: (where, how long) by heading."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw(rows, path)
    return {
        axis.get_title(): [(bar.get_y(), bar.get_width()) for bar in axis.patches if isinstance(bar, Rectangle)]
        for axis in figures[0].axes
    }


def test_a_chart_leaves_out_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"status": "ok"} | row(*point, inference_ms=None) for point in (("all", "01"), ("all", "pm1"))]
    drawn = bars([*rows, {"status": "failed", "error": "x"}], tmp_path, monkeypatch)
    assert list(drawn) == ["CE", "accuracy", "MRR", "MiB (pseudo)"]
    assert [width for _, width in drawn["MRR"]] == [0.0543, 0.0543]


def test_rows_that_differ_in_the_seed_alone_have_bars_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"status": "ok"} | row("all", "01", seed=seed, mrr=0.1 * seed) for seed in (1, 2)]
    drawn = bars(rows, tmp_path, monkeypatch)["MRR"]
    assert len({where for where, _ in drawn}) == 2


def test_nothing_is_drawn_when_every_run_failed(tmp_path: Path) -> None:
    write([{"status": "failed", "error": "x"}], tmp_path)
    assert not (tmp_path / "results.png").exists()
    assert "failed: x" in (tmp_path / "results.md").read_text()


def test_the_terminal_shows_every_row_and_why_one_failed(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"status": "ok"} | row("all", "01"), {"status": "failed", "error": "no such folder"}], "A sweep")
    shown = capsys.readouterr().out
    assert "A sweep" in shown
    assert all(
        text in shown for text in ("{0,1}", "naive", "262.1235", "0.0322", "1.23", "12.3", "failed: no such folder")
    )
