"""Which rows are the same, which are pooled, how they are ordered and what they are called."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report.examples import facts, finished, row, unfinished

from bitmaps.errors import InputError
from bitmaps.report.comparison import Comparison, compare, comparison_of
from bitmaps.report.entries import Entry, identity, run_folders
from bitmaps.runs.records import Row, measures
from bitmaps.vocabulary import GROUPS, Status


def entry(
    components: str = "all", kind: str = "trained", run: str = "runs/x", **more: Any
) -> Entry:
    return Entry.of(row(components, kind, **more), Path(run))


def compared(*entries: Entry) -> Comparison:
    return comparison_of(entries)


def names(comparison: Comparison) -> list[tuple[Any, ...]]:
    fields = ("components", "values", "row")
    return [tuple(one.get(name) for name in fields) for one in comparison.entries]


def test_the_entries_come_in_the_blog_posts_order(tmp_path: Path) -> None:
    rows = [row("ffnn", "naive", values=values) for values in ("pm1", "01")]
    rows += [row("none", "unbinarized")]
    rows += [row(group, "naive", values=values) for group in GROUPS for values in ("01", "pm1")][2:]
    random.Random(0).shuffle(rows)
    folders = [finished(tmp_path / str(n), one) for n, one in enumerate(rows)]
    binarized = [(g, v, "naive") for g in [*GROUPS, "ffnn"][1:] for v in ("01", "pm1")]
    assert names(compare(folders)) == [("none", None, "unbinarized"), *binarized]


def test_rows_of_one_model_come_in_the_order_of_what_was_done(tmp_path: Path) -> None:
    kinds = ["packed", "trained", "naive", "calibrated"]
    folder = finished(
        tmp_path / "0", *(row("all", kind) for kind in kinds), row("none", "unbinarized")
    )
    kinds_found = [one.kind for one in compare([folder]).entries]
    assert kinds_found == ["unbinarized", "naive", "calibrated", "trained", "packed"]


# What is one row


def test_identical_rows_are_merged_and_references_whatever_their_seed(tmp_path: Path) -> None:
    trained = row("ffnn", "trained", seed=1)
    folders = [
        finished(tmp_path / "a", row("none", "unbinarized")),
        finished(tmp_path / "b", row("none", "unbinarized", inference_ms=9.0, commit="another")),
        finished(tmp_path / "c", row("none", "unbinarized", seed=1), row("ffnn", seed=1), trained),
        finished(tmp_path / "d", row("ffnn", seed=2), row("ffnn", "trained", seed=1, command="x")),
        finished(tmp_path / "e", row("ffnn", "trained", seed=1, accuracy=0.5)),
    ]
    found = [
        (one.kind, one.run.name, [other.run.name for other in one.also])
        for one in compare(folders).entries
    ]
    # one seed with two results is no sample: e stays apart
    assert found == [
        ("unbinarized", "a", ["b", "c"]), ("naive", "c", ["d"]), ("trained", "c", ["d"]),
        ("trained", "e", []),
    ]  # fmt: skip


def test_what_older_files_lack_tells_no_rows_apart(tmp_path: Path) -> None:
    """The name of the processor, the time, and the score of guessing."""
    new = {"processor": "Abacus", "scored_at": "2026-07-11T10:12:30+00:00", "guessing": 10.3}
    folders = [
        finished(tmp_path / "old", row("all")),
        finished(tmp_path / "new", row("all", **new)),
        finished(tmp_path / "seed 1", row("ffnn", "trained", seed=1)),
        finished(tmp_path / "seed 2", row("ffnn", "trained", seed=2, **new)),
    ]
    found = compare(folders)
    naive, trained = found.entries
    assert [one.run.name for one in naive.also] == ["new"]
    assert trained.get("seed") == "1, 2"
    assert not new.keys() & found.columns.keys()


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("model", "minilm", "bert_base"), ("data", "wiki", "ptb"), ("split", "validation", "test"),
        ("limit", 9, None), ("mask_seed", 1, 2), ("mask_sets", 1, 5), ("scale", "row", "tensor"),
        ("recipe", "bit", "bwn"), ("loss", "common", "tokens"), ("embeddings", "int8", "bit"),
        ("activations", "float", "int8"), ("calibrated_on", 0, 512), ("steps", 1, 2),
        ("scope", "all", "matrices"), ("one_bit_inputs", "key", "query"),
    ],
)  # fmt: skip
def test_rows_that_differ_in_what_was_run_are_not_pooled(field: str, one: Any, other: Any) -> None:
    """Not even with different seeds."""
    found = compared(entry(**{field: one}), entry(**{field: other}, seed=1)).entries
    assert [one.get(field) for one in found] == [one, other]
    assert not any(one.seeds for one in found)


SETTINGS = {"optimizer.lr": 1e-4, "recipe.gradient": "identity", "data.length": 64}


@pytest.mark.parametrize(
    ("name", "other"), [("optimizer.lr", 0.3), ("recipe.gradient", "clipped"), ("data.length", 32)]
)
def test_a_setting_tells_rows_apart_in_the_table_and_the_label(name: str, other: Any) -> None:
    changed = SETTINGS | {name: other}
    found = compared(
        *(
            entry("ffnn", settings=given, seed=seed, accuracy=0.1 * seed)
            for seed, given in enumerate((SETTINGS, SETTINGS, changed, changed), 1)
        )
    )
    assert [one.get("accuracy") for one in found.entries] == pytest.approx([0.15, 0.35])
    assert [one.get("seed") for one in found.entries] == ["1, 2", "3, 4"]
    assert [heading for heading in found.columns if "." in heading] == [name]
    endings = [label.split(", ")[-1] for label in found.labels]
    assert endings == [f"{name} {SETTINGS[name]}", f"{name} {other}"]


def test_a_class_that_moved_is_the_same_setting(tmp_path: Path) -> None:
    old, new = "bitmaps.diagnostics.SignWatch", "bitmaps.training.sign_watch.SignWatch"
    folders = [
        finished(
            tmp_path / str(seed),
            row("ffnn", "trained", seed=seed, settings={"callbacks.signs._target_": name}),
        )
        for seed, name in enumerate((old, new))
    ]
    (found,) = compare(folders).entries
    assert found.get("seed") == "0, 1"
    assert found.get("callbacks.signs._target_") == new


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("device", ("cpu", "gpu")), ("threads", (1, 2)), ("inference_batch", (1, 8)),
        ("inference_length", (32, 64)), ("dtype", ("32-true", "bf16-mixed")),
    ],
)  # fmt: skip
def test_conditions_of_timing_count_for_timed_rows_alone(name: str, values: Any) -> None:
    timed = [
        entry(seed=seed, inference_ms=10.0 * (seed + 1), **{name: value})
        for seed, value in enumerate(values)
    ]
    found = compared(*timed)
    assert [one.get("inference_ms") for one in found.entries] == [10.0, 20.0]
    assert name in found.columns
    untimed = (
        entry(seed=seed, inference_ms=None, **{name: value}) for seed, value in enumerate(values)
    )
    (one,) = compared(*untimed).entries
    assert one.get("seed") == "0, 1"


def test_an_identity_has_what_was_run_and_the_settings_but_no_seed_or_score() -> None:
    timing = {"inference_batch", "inference_length", "device", "threads", "dtype"}
    flat = row(settings={"optimizer.lr": 0.1}, inference_ms=None).flat()
    untimed = identity(flat)
    assert {"data", "recipe", "scale", "masked_tokens", "optimizer.lr"} <= untimed.keys()
    assert not {"seed", "command", "versions", "accuracy", "memory_mib", *timing} & untimed.keys()
    assert identity(flat | {"inference_ms": 1.0}).keys() - untimed.keys() == timing


def test_seeds_become_mean_and_standard_deviation() -> None:
    values = [0.2, 0.26, 0.35]
    reference = entry("none", "unbinarized")
    rows = [
        entry("ffnn", seed=n, accuracy=value, inference_ms=None) for n, value in enumerate(values)
    ]
    found = compared(reference, *rows)
    first, mean = found.entries
    assert first.row is reference.row
    assert mean.get("accuracy") == pytest.approx(np.mean(values))
    assert mean.deviation["accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert mean.get("inference_ms") is None
    assert mean.get("seed") == "0, 1, 2"
    assert [one.row for one in mean.seeds] == [one.row for one in rows]
    cells = dict(zip(found.columns, found.cells(mean), strict=True))
    assert cells["accuracy"] == "0.2700 ± 0.0755"
    assert (cells["seed"], cells["inference_ms"]) == ("0, 1, 2", "")


@settings(deadline=None)
@given(
    st.lists(
        st.builds(
            row, st.sampled_from(list(GROUPS)), st.just("trained"), seed=st.integers(0, 3),
            recipe=st.sampled_from(["bit", "bwn"]), accuracy=st.floats(0, 1),
        ),
        max_size=12,
    ),
    st.integers(0, 2),
)  # fmt: skip
def test_every_row_is_in_one_mean_of_rows_like_it(rows: list[Row], failures: int) -> None:
    failed = [Entry(Path("x"), Status.failed, facts(), error="x")] * failures
    entries = [*(Entry.of(one, Path("x")) for one in rows), *failed]
    found = compared(*entries)
    parts = [one.single for one in found.entries]
    rows_found = [id(one.row) for part in parts for one in part]
    assert sorted(rows_found) == sorted(id(one.row) for one in entries)
    for mean, part in zip(found.entries, parts, strict=True):
        assert len({one.facts.seed for one in part}) == len(part)
        assert len({(one.facts.components, one.facts.recipe, one.status) for one in part}) == 1
        if mean.row:
            accuracy = np.mean([one.get("accuracy") for one in part])
            assert mean.get("accuracy") == pytest.approx(accuracy)
        else:
            assert len(part) == 1
    assert len(found.notes) == len(found.labels) == len(found.entries)


# Columns, labels and notes


def test_what_rows_differ_in_has_a_column() -> None:
    found = compared(entry(recipe="bit"), entry(recipe="bwn"))
    measured = [name for name in measures() if entry(recipe="bit").get(name) is not None]
    assert {"cross_entropy", "accuracy", "mrr", "inference_ms", "memory_mib"} == set(measured)
    always = ["components", "values", "row", *measured]
    assert list(found.columns) == ["recipe", *always]
    # rows of different kinds differ in how they were made: that is no column
    kept = [*always[:-2], "percent_of_full_precision", *always[-2:]]
    assert list(compared(entry(recipe="bit"), entry("none", "unbinarized")).columns) == kept
    other = entry("none", "unbinarized", model="bert_base")
    assert list(compared(entry(), other).columns) == ["model", *always]


def test_a_word_table_has_a_column_unless_the_components_imply_it() -> None:
    implied = [
        entry("all", embeddings="bit"),
        entry("embeddings+ffnn", embeddings="bit"),
        entry("ffnn"),
    ]
    assert "embeddings" not in compared(*implied).columns
    assert "embeddings" in compared(*implied, entry("ffnn", embeddings="int8")).columns


def test_a_measure_that_no_row_has_gets_no_column_and_zero_is_a_number() -> None:
    found = compared(entry(mrr=0.0, inference_ms=None), entry("layers", inference_ms=None))
    assert "inference_ms" not in found.columns
    cells = dict(zip(found.columns, found.cells(found.entries[0]), strict=True))
    assert cells["mrr"] == "0.0000"
    one = compared(entry(inference_ms=None), entry("layers"))
    assert [one.cells(each)[-2] for each in one.entries] == ["", "1.23"]


def test_a_label_starts_short_and_grows_until_it_is_unique() -> None:
    found = compared(
        entry("layers"), entry("ffnn", scale="row", recipe="bit"),
        entry("ffnn", scale="row", recipe="bwn"), entry("ffnn"),
        entry(run="runs/a"), entry(run="runs/b"), entry("all", "naive"),
        Entry(Path("runs/c"), Status.failed, facts(components=None, values=None), error="x"),
    )  # fmt: skip
    assert list(found.labels) == [
        "layers {-1,1} trained",
        "ffnn {-1,1} trained, scale row, recipe bit",
        "ffnn {-1,1} trained, scale row, recipe bwn",
        "ffnn {-1,1} trained, scale none",
        "all {-1,1} trained, run runs/a",
        "all {-1,1} trained, run runs/b",
        "all {-1,1} naive",
        "failed",
    ]


def test_rows_on_other_text_than_most_are_marked_and_not_comparable() -> None:
    found = compared(entry(), entry("layers"), entry(mask_sets=5, data="ptb"))
    note = "not comparable: scored on data ptb, mask sets 5"
    assert list(found.notes) == ["", "", note]
    assert found.labels[2] == "all {-1,1} trained, other text"
    assert found.remarks() == [f"all {{-1,1}} trained, other text: {note}"]
    assert list(found.columns)[:2] == ["data", "mask_sets"]
    assert [label for label, _ in found.comparable()] == list(found.labels[:2])


def test_the_number_of_tokens_alone_tells_texts_apart() -> None:
    """Two folders with different files have the same name, text."""
    counts = enumerate((90, 90, 91))
    found = compared(*(entry(data="text", masked_tokens=n, seed=seed) for seed, n in counts))
    assert [one.get("seed") for one in found.entries] == ["0, 1", 2]
    assert list(found.notes) == ["", "not comparable: scored on masked tokens 91"]


def test_seeds_count_once_when_the_usual_text_is_chosen() -> None:
    rows = [entry("layers", seed=seed) for seed in range(3)]
    others = [entry(components, data="ptb") for components in ("ffnn", "all")]
    assert [bool(note) for note in compared(*rows, *others).notes] == [True, False, False]


# Folders


def test_a_run_without_a_row_is_an_entry_that_says_why(tmp_path: Path) -> None:
    running = unfinished(tmp_path / "running", facts("layers"))
    failed = unfinished(tmp_path / "failed", facts("all"), InputError("data.dir=x is no folder"))
    (tmp_path / "empty").mkdir()
    other = finished(tmp_path / "other", row())
    (other / "metrics.json").write_text('{"format": 2, "status": "ok"}')
    found = compare([running, failed, tmp_path / "empty", other, finished(tmp_path / "ok", row())])
    notes = dict(zip(found.labels, found.notes, strict=True))
    assert notes["all {-1,1} failed"] == "data.dir=x is no folder"
    expected = f"no result yet: {running} is still running, or was stopped"
    assert notes["layers {-1,1} running"] == expected
    assert "empty holds no results" in notes[f"failed, run {tmp_path / 'empty'}"]
    assert "metrics.json is not of format 1" in notes[f"failed, run {other}"]
    assert notes["layers {-1,1} naive"] == ""


@pytest.mark.parametrize("content", [None, "{", "{}", "[]", "[1]", '[{"row": "naive"}]'])
def test_a_finished_run_with_damaged_rows_is_an_entry_that_says_so(
    tmp_path: Path, content: str | None
) -> None:
    folder = finished(tmp_path / "run", row("all"))
    (folder / "rows.json").unlink()
    if content is not None:
        (folder / "rows.json").write_text(content)
    (found,) = compare([folder]).entries
    assert found.status is Status.failed
    assert "rows.json" in str(found.error)


def test_the_jobs_of_a_sweep_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    jobs = ("10", "9", "binarize=ffnn,values=pm1", "0")
    for name in jobs:
        finished(tmp_path / name, row("all"))
    (tmp_path / "results.csv").touch()
    (tmp_path / "11").mkdir()  # a job that never started
    (tmp_path / "report").mkdir()  # a report is no job
    (tmp_path / "report" / "results.html").touch()
    (tmp_path / "9" / "results.html").touch()  # a single run has one too
    found = [path.name for path in run_folders(tmp_path)]
    assert found == ["0", "9", "10", "11", "binarize=ffnn,values=pm1"]
    assert run_folders(tmp_path / "9") == [tmp_path / "9"]


def test_a_folder_of_sweeps_holds_the_jobs_of_all(tmp_path: Path) -> None:
    found = [
        finished(tmp_path / sweep / name, row())
        for sweep in ("short", "long_one")
        for name in ("binarize=ffnn", "binarize=layers")
    ]
    (tmp_path / "short" / "results.html").touch()
    (tmp_path / "stray").mkdir()
    assert run_folders(tmp_path) == found
    teacher = finished(tmp_path / "teacher", row())
    (tmp_path / "stray").rmdir()
    assert set(run_folders(tmp_path)) == {*found, teacher}


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a folder"):
        run_folders(tmp_path / "nowhere")
    (tmp_path / "0").mkdir()
    with pytest.raises(InputError, match="holds no results: neither it nor a folder in it"):
        run_folders(tmp_path)
