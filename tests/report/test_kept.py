"""What rows keep of full precision: which row they are compared with, and by which score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.examples import row

from bitmaps.report.comparison import Comparison, comparison_of
from bitmaps.report.entries import KEPT, Entry
from bitmaps.runs.records import Row, headline

VECTORS = {"task": "sentence_embedding", "cross_entropy": None, "mrr": None, "accuracy": None,
           "masked_tokens": None, "sentences": 40}  # fmt: skip
CLASSES = {"task": "classification", "mrr": None, "masked_tokens": None, "sentences": 40}


def compared(*rows: tuple[str, Row]) -> Comparison:
    return comparison_of(Entry.of(one, Path(run)) for run, one in rows)


def whole(**changes: Any) -> Row:
    return row("none", "unbinarized", **changes)


def percents(comparison: Comparison) -> list[float | None]:
    return [one.get(KEPT) for one in comparison.entries]


@pytest.mark.parametrize(
    ("task", "theirs", "ours", "score", "percent"),
    [
        ({}, {"cross_entropy": 4.0, "accuracy": 0.4, "mrr": 0.5},
         {"cross_entropy": 4.5, "accuracy": 0.3, "mrr": 0.4}, "accuracy", 75.0),
        (VECTORS, {"cosine": 1.0, "recall_at_10": 1.0, "spearman": 80.0},
         {"cosine": 0.9, "recall_at_10": 0.7, "spearman": 76.0}, "spearman", 95.0),
        (VECTORS, {"cosine": 1.0, "recall_at_10": 1.0},
         {"cosine": 0.9, "recall_at_10": 0.7}, "recall_at_10", 70.0),
        (CLASSES, {"accuracy": 0.8, "f1": 0.9}, {"accuracy": 0.6, "f1": 0.9}, "accuracy", 75.0),
    ],
)  # fmt: skip
def test_it_is_the_share_of_the_score_that_a_task_is_about(
    task: dict[str, Any], theirs: dict[str, Any], ours: dict[str, Any], score: str, percent: float
) -> None:
    found = compared(("a", whole(**task | theirs)), ("a", row(kind="trained", **task | ours)))
    kept = found.entries[1].kept
    assert kept is not None
    assert (kept.score, kept.whole.row) == (score, found.entries[0].row)
    assert percents(found) == [100.0, pytest.approx(percent)]
    if task:
        assert score == headline([one.row for one in found.entries if one.row])
    assert found.columns[KEPT].heading == "% of full precision"
    names = list(found.columns)
    costs = [name for name in names if name in ("inference_ms", "memory_mib")]
    assert names[names.index(KEPT) + 1 :] == costs  # quality first, then what it costs
    cells = dict(zip(names, found.cells(found.entries[1]), strict=True))
    assert cells[KEPT] == f"{percent:.1f}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "bert_base"}, {"weights": "random"}, {"data": "ptb"}, {"masked_tokens": 21},
        {"split": "test"}, {"settings": {"model.source": "another"}},
        {"settings": {"model.adapter": "another"}}, {"accuracy": 0.0}, {"embeddings": "int8"},
    ],
)  # fmt: skip
def test_another_model_or_text_is_no_reference(changes: dict[str, Any]) -> None:
    """Nor is one that is right nowhere, or stored in fewer bits."""
    found = compared(("a", whole(**changes)), ("b", row("all", "trained")))
    assert found.entries[1].kept is None
    assert KEPT not in found.columns


def test_settings_of_a_training_do_not_matter() -> None:
    settings = {"model.source": "x", "model.dropout": 0.1, "optimizer.lr": 0.1}
    trained = row("all", "trained", settings=settings, accuracy=0.25)
    found = compared(("a", whole(settings={"model.source": "x"}, accuracy=0.5)), ("b", trained))
    assert percents(found) == [100.0, 50.0]


@pytest.mark.parametrize("accuracy", [0.0, 5e-324, float("nan")])
def test_a_share_of_next_to_nothing_is_left_out(accuracy: float) -> None:
    found = compared(("a", whole(accuracy=accuracy)), ("a", row(kind="trained", accuracy=1.0)))
    assert KEPT not in found.columns


def test_full_precision_alone_has_no_column() -> None:
    assert KEPT not in compared(("a", whole())).columns


def test_each_model_of_a_report_has_its_own_reference() -> None:
    found = compared(
        ("a", whole(accuracy=0.5)), ("a", row(kind="trained", accuracy=0.25)),
        ("b", whole(accuracy=0.8, model="bert_base")),
        ("b", row(kind="trained", accuracy=0.2, model="bert_base")),
        ("c", row(kind="trained", accuracy=0.2, data="ptb")),
    )  # fmt: skip
    assert percents(found) == [100.0, 50.0, 100.0, pytest.approx(25.0), None]
    assert found.cells(found.entries[-1])[list(found.columns).index(KEPT)] == ""


def test_the_reference_of_the_same_run_comes_first() -> None:
    """Two machines round differently, and then two references are two rows."""
    found = compared(
        ("a", whole(accuracy=0.5)), ("b", whole(accuracy=0.4)),
        ("b", row(kind="trained", accuracy=0.2)), ("c", row("all", "trained", accuracy=0.25)),
    )  # fmt: skip
    assert percents(found)[2:] == [50.0, 50.0]


def test_seeds_become_mean_and_standard_deviation() -> None:
    rows = [row(kind="trained", accuracy=value, seed=n) for n, value in enumerate((0.2, 0.3))]
    found = compared(("a", whole(accuracy=0.5)), ("a", rows[0]), ("b", rows[1]))
    (_, mean) = found.entries
    assert [one.get(KEPT) for one in mean.seeds] == pytest.approx([40.0, 60.0])
    assert (mean.get(KEPT), mean.deviation[KEPT]) == pytest.approx((50.0, 200**0.5))
    assert found.cells(mean)[list(found.columns).index(KEPT)] == "50.0 ± 14.1"


def test_seeds_of_random_weights_are_compared_seed_by_seed() -> None:
    random = {"weights": "random"}
    wholes = [whole(seed=n, accuracy=value, **random) for n, value in enumerate((0.5, 0.8))]
    ours = [row(kind="trained", seed=n, accuracy=0.2, **random) for n in range(2)]
    pairs = list(zip(("a", "b"), zip(wholes, ours, strict=True), strict=True))
    entries = [(run, pair[0]) for run, pair in pairs] + [(run, pair[1]) for run, pair in pairs]
    assert [one.get(KEPT) for one in compared(*entries).entries[1].seeds] == [40.0, 25.0]
    third = row(kind="trained", seed=2, accuracy=0.2, **random)
    assert percents(compared(*entries, ("c", third)))[1] is None  # no such seed


def test_a_model_trained_in_full_precision_stands_in() -> None:
    """A classifier has no unbinarized row of its own where its teacher was trained elsewhere."""
    trained = row("none", "trained", recipe="bitmaps", accuracy=0.8, **CLASSES)
    ours = row(kind="trained", accuracy=0.6, **CLASSES)
    assert percents(compared(("a", trained), ("b", ours))) == [100.0, pytest.approx(75.0)]
    other = row("none", "trained", recipe="bwn", accuracy=0.9, **CLASSES)
    three = compared(("a", trained), ("b", ours), ("c", other))
    assert percents(three) == [100.0, None, 100.0]  # which of the two?
    unbinarized = whole(accuracy=0.5, **CLASSES)
    assert percents(compared(("a", trained), ("b", ours), ("d", unbinarized)))[:2] == (
        pytest.approx([160.0, 120.0])
    )
