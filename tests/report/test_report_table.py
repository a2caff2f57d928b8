"""The table of a sweep."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bitmaps.errors import InputError
from bitmaps.report.table import (
    COLUMNS,
    collect,
    columns,
    draw,
    labels,
    markdown,
    notes,
    order,
    pooled,
    print_analyses,
    print_sentences,
    print_table,
    run_folders,
    splits,
    write,
)
from bitmaps.runs.folder import Row, RunFolder

GROUPS = [
    "none",
    "all",
    "layers",
    "layers_except_attention",
    "layers_except_ffnn",
]  # in the blog post's order
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
        finished(
            tmp_path / values,
            row("none", None),
            row("ffnn", values),
            row("ffnn", values, "trained", steps=9),
        )
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
    folders = [
        finished(tmp_path / str(n), row("ffnn", "01", "trained") | {field: n}) for n in (2, 1)
    ]
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
    text = markdown(found)
    assert "| all | {0,1} | failed |" in text
    assert "| layers | {0,1} | running |" in text
    assert "\nall {0,1} failed: data.dir=x is not a folder\n" in text
    assert (
        f"\nlayers {{0,1}} running: no result yet: {paths['running']} is still running, or was stopped\n"
        in text
    )
    assert "empty holds no results" in text
    assert "metrics.json is not JSON" in text


def test_every_folder_that_cannot_be_read_has_a_row(tmp_path: Path) -> None:
    folders = [finished(tmp_path / "good", row("all", "01"))]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        folders.append(tmp_path / name)
    text = markdown(collect(folders))
    assert "one holds no results" in text
    assert "two holds no results" in text


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", "[1]"])
def test_a_finished_run_whose_rows_cannot_be_read_is_a_row_that_says_so(
    tmp_path: Path, content: str | None
) -> None:
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
    assert (
        markdown([{"status": "ok"} | row("none", None)])
        .splitlines()[2]
        .startswith("| none |  | unbinarized | 262")
    )


def test_rows_of_a_run_stand_in_the_order_in_which_more_was_done() -> None:
    kinds = ["trained", "naive", "calibrated"]
    rows = [{"status": "ok"} | row("all", "01", kind) for kind in kinds] + [
        {"status": "ok"} | row("none", None)
    ]
    assert [found["row"] for found in sorted(rows, key=order)] == [
        "unbinarized",
        "naive",
        "calibrated",
        "trained",
    ]


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("recipe", "bit", "bwn"),
        ("loss", "common", "tokens"),
        ("embeddings", "int8", "bit"),
        ("activations", "float", "int8"),
        ("calibrated_on", 0, 512),
    ],
)
def test_what_rows_differ_in_has_a_column(field: str, one: Any, other: Any) -> None:
    rows = [
        {"status": "ok"} | row("all", "01", "trained") | {field: value} for value in (one, other)
    ]
    heading, _, *lines = markdown(rows).splitlines()
    assert heading.startswith(f"| {field.replace('_', ' ')} | components |")
    assert [line.split(" | ")[0] for line in lines] == [f"| {one}", f"| {other}"]
    assert markdown([rows[0], {"status": "ok"} | row("none", None, **{field: other})]).startswith(
        "| components |"
    )


def scored(components: str = "all", kind: str = "trained", **more: Any) -> Row:
    return {"status": "ok", "run": "runs/x"} | row(components, "pm1", kind) | more


def test_what_was_scored_on_other_text_says_so() -> None:
    rows = [scored(mask_sets=1), scored("layers", mask_sets=1), scored(mask_sets=5, data="ptb")]
    assert notes(rows) == ["", "", "not comparable: scored on data ptb, mask sets 5"]
    assert labels(rows) == [
        "all {-1,1} trained",
        "layers {-1,1} trained",
        "all {-1,1} trained, other text",
    ]
    text = markdown(rows)
    assert text.startswith("| data | mask sets | components |")
    assert text.endswith(
        "\nall {-1,1} trained, other text: not comparable: scored on data ptb, mask sets 5\n"
    )


def test_other_text_is_found_out_by_its_tokens_alone() -> None:
    """Two folders with other files go by the same name, text."""
    rows = [
        scored(data="text", masked_tokens=count, seed=seed)
        for seed, count in enumerate((90, 90, 91))
    ]
    shown = pooled(rows)
    assert [found["seed"] for found in shown] == ["0, 1", 2]
    assert notes(shown) == ["", "not comparable: scored on masked tokens 91"]


def test_a_label_is_as_short_as_tells_the_rows_apart() -> None:
    rows = [
        scored("layers"), scored("ffnn", scale="row", recipe="bit"), scored("ffnn", scale="row", recipe="bwn"),
        scored("ffnn"), scored(run="runs/a"), scored(run="runs/b"), scored("all", "naive"),
        {"status": "failed", "error": "x", "run": "runs/c"},
    ]  # fmt: skip
    assert labels(rows) == [
        "layers {-1,1} trained",
        "ffnn {-1,1} trained, scale row, recipe bit",
        "ffnn {-1,1} trained, scale row, recipe bwn",
        "ffnn {-1,1} trained, scale none",
        "all {-1,1} trained, run runs/a",
        "all {-1,1} trained, run runs/b",
        "all {-1,1} naive",
        "failed",
    ]


def test_seeds_become_mean_and_standard_deviation() -> None:
    values = [0.2, 0.26, 0.35]
    rows = [
        scored("ffnn", seed=seed, accuracy=value, inference_ms=None)
        for seed, value in enumerate(values)
    ]
    reference = scored("none", "unbinarized", seed=0)
    first, mean = pooled([reference, *rows])
    assert first is reference
    assert mean["accuracy"] == pytest.approx(np.mean(values))
    assert mean["deviation"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert mean["inference_ms"] is None
    assert (mean["seed"], mean["seeds"]) == ("0, 1, 2", rows)
    lines = markdown([reference, *rows]).splitlines()
    assert lines[0].startswith("| seed | components |")
    assert lines[3].startswith(
        "| 0, 1, 2 | ffnn | {-1,1} | trained | 262.1235 ± 0.0000 | 0.2700 ± 0.0755 |"
    )


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            scored, st.sampled_from(GROUPS), seed=st.integers(0, 3), recipe=st.sampled_from(["bit", "bwn"]),
            accuracy=st.floats(0, 1), status=st.sampled_from(["ok", "ok", "failed"]),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_every_row_is_in_one_mean_of_rows_like_it(rows: list[Row]) -> None:
    shown = pooled(rows)
    parts = [found.get("seeds", [found]) for found in shown]
    assert sorted(map(id, (one for part in parts for one in part))) == sorted(map(id, rows))
    for found, part in zip(shown, parts, strict=True):
        assert len({one["seed"] for one in part}) == len(part)
        assert len({(one["status"], one["components"], one["recipe"]) for one in part}) == 1
        assert len(part) == 1 or found["status"] == "ok"
        assert found["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in part]))
    assert len(notes(shown)) == len(labels(shown)) == len(shown)


def test_what_was_run_twice_alike_is_one_row(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "a", row("none", None)),
        finished(tmp_path / "b", row("none", None, inference_ms=9.0)),
        finished(tmp_path / "c", row("none", None, seed=1), row("ffnn", "01", "trained", seed=1)),
        finished(tmp_path / "d", row("ffnn", "01", "trained", seed=1, command="again")),
        finished(tmp_path / "e", row("ffnn", "01", "trained", seed=1, accuracy=0.5)),
    ]
    found = collect(folders)
    assert [(one["row"], Path(one["run"]).name) for one in found] == [
        ("unbinarized", "a"), ("trained", "c"), ("trained", "e"),
    ]  # fmt: skip
    assert len(pooled(found)) == 3  # one seed is no sample


def test_the_runs_of_a_sweep_come_in_the_order_of_its_jobs(tmp_path: Path) -> None:
    for name in ("10", "9", "b", "0"):
        finished(tmp_path / name, row("all", "01"))
    (tmp_path / "results.csv").touch()
    (tmp_path / "11").mkdir()  # it never began
    assert [path.name for path in run_folders(tmp_path)] == ["0", "9", "b", "10", "11"]
    assert run_folders(tmp_path / "9") == [tmp_path / "9"]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is no folder"):
        run_folders(tmp_path / "nowhere")
    (tmp_path / "0").mkdir()
    with pytest.raises(
        InputError, match="holds no results: neither it nor a folder in it is a run"
    ):
        run_folders(tmp_path)


def test_a_scale_shows_beside_the_row() -> None:
    assert "| naive, scale row |" in markdown([{"status": "ok"} | row("all", "pm1", scale="row")])


def test_a_measure_that_was_not_taken_is_blank_and_zero_is_not() -> None:
    rows = [scored(mrr=0.0, inference_ms=None), scored("layers")]
    line, other = (line.split(" | ")[-3:-1] for line in markdown(rows).splitlines()[2:])
    assert line == ["0.0000", ""]
    assert "" not in other


def test_a_measure_that_no_row_has_gets_no_column() -> None:
    heading, _, line = markdown([scored(inference_ms=None, mrr=0.0)]).splitlines()
    assert heading == "| components | values | row | CE | accuracy | MRR | MiB (pseudo) |"
    assert line == "| all | {-1,1} | trained | 262.1235 | 0.0322 | 0.0000 | 12.3 |"


def test_a_name_cannot_break_the_markdown_table() -> None:
    rows = [scored(model=model) for model in ("a | b\nc", "d")]
    line = markdown(rows).splitlines()[2]
    assert line.startswith(r"| a \| b c | all |")
    assert line.replace(r"\|", "").count("|") == len(COLUMNS) + 2


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


def bars(
    rows: list[Row], path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[tuple[float, float]]]:
    """The heights of the bars that are drawn, as measured over and over again: (where, how long) by heading."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw(rows, path)
    return {
        axis.get_title(): [
            (bar.get_y(), bar.get_width()) for bar in axis.patches if isinstance(bar, Rectangle)
        ]
        for axis in figures[0].axes
    }


def test_a_chart_leaves_out_what_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"status": "ok"} | row(*point, inference_ms=None)
        for point in (("all", "01"), ("all", "pm1"))
    ]
    drawn = bars([*rows, {"status": "failed", "error": "x"}], tmp_path, monkeypatch)
    assert list(drawn) == ["CE", "accuracy", "MRR", "MiB (pseudo)"]
    assert [width for _, width in drawn["MRR"]] == [0.0543, 0.0543]


def test_seeds_are_one_bar_with_their_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw([scored(seed=seed, mrr=0.1 * seed) for seed in (1, 2)] + [scored("layers")], tmp_path)
    (axis,) = (axis for axis in figures[0].axes if axis.get_title() == "MRR")
    assert [bar.get_width() for bar in axis.patches if isinstance(bar, Rectangle)] == pytest.approx(
        [0.15, 0.0543]
    )
    spread = axis.collections[0].get_segments()[0]  # type: ignore[attr-defined]
    assert sorted(x for x, _ in spread) == pytest.approx(
        [0.15 - 0.05 * 2**0.5, 0.15 + 0.05 * 2**0.5]
    )


def test_what_was_scored_on_other_text_is_not_drawn_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    draw([scored("layers"), scored("ffnn"), scored("all", data="ptb", mrr=0.9)], tmp_path)
    (axis,) = (axis for axis in figures[0].axes if axis.get_title() == "MRR")
    assert [bar.get_width() for bar in axis.patches if isinstance(bar, Rectangle)] == pytest.approx(
        [0.0543, 0.0543]
    )


def test_the_picture_leaves_out_what_the_table_says_is_not_comparable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seeds of one row count once: two other rows on another text are the usual ones."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
    rows = [scored("layers", seed=seed) for seed in range(3)]
    rows += [scored(components, data="ptb", mrr=0.9) for components in ("ffnn", "all")]
    assert [bool(note) for note in notes(pooled(rows))] == [True, False, False]
    draw(rows, tmp_path)
    (axis,) = (axis for axis in figures[0].axes if axis.get_title() == "MRR")
    assert [bar.get_width() for bar in axis.patches if isinstance(bar, Rectangle)] == pytest.approx(
        [0.9, 0.9]
    )


SETTINGS = {"optimizer.lr": 1e-4, "recipe.gradient": "identity", "data.length": 64}


@pytest.mark.parametrize(
    ("name", "other"), [("optimizer.lr", 0.3), ("recipe.gradient", "clipped"), ("data.length", 32)]
)
def test_rows_that_differ_in_a_setting_stay_apart_and_say_in_which(
    tmp_path: Path, name: str, other: Any
) -> None:
    rows = [
        row("ffnn", "01", "trained", settings=settings, seed=seed, accuracy=0.1 * seed)
        for seed, settings in (
            (1, SETTINGS),
            (2, SETTINGS),
            (3, SETTINGS | {name: other}),
            (4, SETTINGS | {name: other}),
        )
    ]
    first, second = pooled(
        collect([finished(tmp_path / str(n), one) for n, one in enumerate(rows)])
    )
    assert [(first["seed"], first["accuracy"]), (second["seed"], second["accuracy"])] == [
        ("1, 2", pytest.approx(0.15)),
        ("3, 4", pytest.approx(0.35)),
    ]
    assert [heading for heading in columns([first, second]) if "." in heading] == [name]
    assert [label.split(", ")[-1] for label in labels([first, second])] == [
        f"{name} {SETTINGS[name]}",
        f"{name} {other}",
    ]


def test_models_of_different_kinds_of_rows_are_told_apart() -> None:
    rows = [
        scored("none", "unbinarized", model="minilm"),
        scored("layers", "naive", model="bert_base"),
    ]
    assert "model" in columns(rows)


@pytest.mark.parametrize(
    "name", ["device", "threads", "inference_batch", "inference_length", "dtype"]
)
def test_times_of_other_conditions_are_not_averaged(name: str) -> None:
    rows = [scored("ffnn", seed=seed, inference_ms=10.0 * seed, **{name: seed}) for seed in (1, 2)]
    assert [found["inference_ms"] for found in pooled(rows)] == [10.0, 20.0]
    assert name in columns(pooled(rows))
    (one,) = pooled(
        [found | {"inference_ms": None} for found in rows]
    )  # where nothing was timed they do not matter
    assert one["seed"] == "1, 2"


def test_a_report_in_a_folder_of_runs_is_no_run(tmp_path: Path) -> None:
    run = finished(tmp_path / "0", row("ffnn", "01"))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.html").touch()
    (tmp_path / "empty").mkdir()  # a job that never began
    assert run_folders(tmp_path) == [run, tmp_path / "empty"]


def test_nothing_is_drawn_when_every_run_failed(tmp_path: Path) -> None:
    (tmp_path / "results.png").touch()  # of rows that are no more
    assert write([{"status": "failed", "error": "x"}], tmp_path) == ["results.csv", "results.md"]
    assert not (tmp_path / "results.png").exists()
    assert "failed: x" in (tmp_path / "results.md").read_text()


def test_the_terminal_shows_every_row_and_why_one_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    failed = {"status": "failed", "error": "no [such] folder", "run": "runs/y"}
    print_table(
        [
            scored(),
            scored("layers", seed=1, accuracy=0.1),
            scored("layers", seed=2, accuracy=0.2),
            failed,
        ]
    )
    shown = capsys.readouterr().out
    expected = (
        "{-1,1}",
        "trained",
        "262.1235",
        "0.0322",
        "1.23",
        "12.3",
        "0.1500 ± 0.0707",
        "1, 2",
    )
    assert all(text in shown for text in expected)
    assert "failed: no [such] folder" in shown


def analysis(verdict: str, token: str, accuracy: float | None = 0.25) -> dict[str, Any]:
    split = {"masked_tokens": 4, "accuracy": accuracy}
    guess = [{"token": token, "probability": 0.75}, {"token": "[SEP]", "probability": 0.125}]
    masked = [{"position": 1, "true": "cat", "predictions": guess}]
    own = {
        "text": "the [MASK] sat",
        "pieces": ["the", "[MASK]", "sat"],
        "masked": [masked[0] | {"true": None}],
    }
    other = {"text": "a [MASK] ran", "pieces": ["a", "[MASK]", "ran"], "masked": masked}
    return {
        "verdict": verdict,
        "predicted": [
            {
                "token": token,
                "share": 0.5,
                "true_share": 0.1,
                "confidence": 0.4,
                "confidence_std": 0.2,
            }
        ],
        "distinct": 7,
        "entropy": 1.5,
        "confidence": {"mean": 0.4, "std": 0.2, "histogram": [1, 3]},
        "by_input": {"mask": split, "random": split, "unchanged": split},
        "by_frequency": [{"at_least": low, **split} for low in (1, 10)],
        "sentences": [own, other],
    }


def test_the_terminal_shows_what_each_model_predicts(capsys: pytest.CaptureFixture[str]) -> None:
    print_analyses(
        {
            "unbinarized": analysis("predicts much", "[x]"),
            "naive": analysis("[collapsed]", ".", None),
        }
    )
    shown = capsys.readouterr().out
    assert "[x] 50.0%" in shown
    assert ". 50.0%" in shown
    assert shown.count("0.400 ± 0.200") == 2
    assert (
        shown.count("0.2500") == 5
    )  # those of the naive one, where there was no such token, are blank
    assert "unbinarized: predicts much\n" in shown
    assert "naive: [collapsed]\n" in shown


def test_the_terminal_shows_sentences_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    analyses = {"unbinarized": analysis("", "dog"), "naive": analysis("", "[MASK]")}
    print_sentences(analyses, None)
    shown = capsys.readouterr().out
    assert "the [MASK] sat" in shown
    assert "a [MASK] ran" in shown
    lines = [line for line in shown.splitlines() if "0.75" in line]
    assert ["?" in lines[0], "cat" in lines[1]] == [True, True]
    assert all(
        line.index("dog 0.75 [SEP] 0.12") < line.index("[MASK] 0.75 [SEP] 0.12") for line in lines
    )
    print_sentences(analyses, 1)
    assert "a [MASK] ran" not in capsys.readouterr().out


def test_splits_say_how_often_a_token_occurs() -> None:
    assert list(splits(analysis("", ""))) == [
        ("at [MASK]", 0.25), ("random piece", 0.25), ("unchanged", 0.25), ("1-9 times", 0.25), ("10+ times", 0.25),
    ]  # fmt: skip
