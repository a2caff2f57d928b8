"""Size against quality: which models are the best, and what they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from report.examples import row

from bitmaps.report.comparison import comparison_of
from bitmaps.report.entries import Entry
from bitmaps.report.quality import Dot, Quality, pareto_front, quality_of, short_labels
from bitmaps.runs.records import Row
from bitmaps.vocabulary import RowKind

integers = st.integers(1, 6)


def quality(*rows: Row) -> Quality:
    comparison = comparison_of(Entry.of(one, Path("runs/x")) for one in rows)
    found = quality_of(comparison.comparable())
    assert found is not None
    return found


def test_a_label_that_does_not_name_its_kind_stays_as_it_is() -> None:
    given = [("full precision", RowKind.unbinarized), ("none unbinarized", RowKind.unbinarized),
             ("layers packed", RowKind.packed), ("mine", RowKind.trained)]  # fmt: skip
    assert short_labels(given) == ["full precision", "unbinarized", "layers", "mine"]


def dot(mib: float, score: float, **changes: Any) -> Dot:
    return Dot(**{"label": "", "short": "", "kind": RowKind.trained, "mib": mib, "score": score, **changes})  # fmt: skip


@given(st.lists(st.tuples(integers, integers, st.none() | integers), max_size=12), st.booleans())
def test_nothing_beats_the_pareto_front(
    points: list[tuple[int, int, int | None]], lower_is_better: bool
) -> None:
    """And nothing on it is as bad as guessing."""
    sign = 1 if lower_is_better else -1
    dots = [dot(mib, score, guessing=guess) for mib, score, guess in points]
    front = [(one.mib, one.score) for one in pareto_front(dots, lower_is_better)]
    good = {
        (mib, score) for mib, score, guess in points if guess is None or sign * score < sign * guess
    }

    def beaten(point: tuple[int, int]) -> bool:
        return any(
            other != point and other[0] <= point[0] and sign * other[1] <= sign * point[1]
            for other in good
        )

    assert front == sorted({point for point in good if not beaten(point)})


def test_the_chart_has_the_headline_score_and_the_line_of_guessing() -> None:
    rows = [
        row("none", "unbinarized", memory_mib=86.8, cross_entropy=3.3, guessing=10.3),
        row("layers", memory_mib=47.4, cross_entropy=12.3, guessing=10.3),
        row("all", memory_mib=2.7, cross_entropy=9.0),  # of an older file
    ]
    found = quality(*rows)
    assert (found.name, found.lower_is_better, found.guessing) == ("cross_entropy", True, [10.3])
    assert [one.label for one in found.front] == ["all {-1,1} naive", "none unbinarized"]
    assert found.scores.low < 3.3
    assert found.scores.high > 12.3
    classes = {"task": "classification", "mrr": None, "masked_tokens": None, "sentences": 9}
    scored = quality(
        *(row(name, accuracy=0.6, guessing=0.68, **classes) for name in ("all", "ffnn"))
    )
    assert (scored.name, scored.lower_is_better, scored.guessing) == ("accuracy", False, [0.68])
    assert scored.front == []


def test_vocabularies_of_two_sizes_have_two_lines() -> None:
    rows = [row("all", model=name, guessing=guess) for name, guess in (("a", 10.3), ("b", 11.5))]
    assert quality(*rows).guessing == [10.3, 11.5]


def test_the_line_lies_within_the_axis_if_all_are_better() -> None:
    assert quality(row(cross_entropy=3.0, guessing=10.3)).scores.high > 10.3


def test_seeds_are_a_dot_with_a_spread() -> None:
    seeds = [row(kind="trained", seed=n, cross_entropy=3.0 + n) for n in (0, 1)]
    (one,) = quality(*seeds).dots
    assert (one.score, one.spread, one.ms) == (3.5, 0.5**0.5, 1.2345)


def test_a_label_says_what_colour_and_shape_do_not() -> None:
    naive = [row("none", "unbinarized"), row("all"), row("layers", values="01")]
    shorts = {one.label: one.short for one in quality(*naive).dots}
    assert shorts == {
        "none unbinarized": "unbinarized", "all {-1,1} naive": "all {-1,1}",
        "layers {0,1} naive": "layers {0,1}",
    }  # fmt: skip
    both = quality(*naive, row("all", "packed")).dots  # two labels would be the same
    assert {one.short for one in both} == {
        "unbinarized", "all {-1,1} naive", "all {-1,1} packed", "layers {0,1} naive",
    }  # fmt: skip


def test_the_best_models_are_labelled_first_then_packed_ones() -> None:
    rows = [
        row("none", "unbinarized", memory_mib=90.0, cross_entropy=3.0),
        row("all", memory_mib=3.0, cross_entropy=13.0, guessing=10.0),
        row("all", "trained", memory_mib=3.2, cross_entropy=4.0),
        row("all", "packed", memory_mib=3.5, cross_entropy=4.1),
    ]
    kinds = [str(one.kind) for one in quality(*rows).dots]
    assert kinds == ["trained", "unbinarized", "packed", "naive"]


def test_rows_without_the_score_are_no_dots() -> None:
    vectors = {"task": "sentence_embedding", "cross_entropy": None, "accuracy": None, "mrr": None,
               "masked_tokens": None, "sentences": 9}  # fmt: skip
    assert quality_of([]) is None
    found = quality(row("all", recall_at_10=0.5, **vectors), row("ffnn", cosine=0.5, **vectors))
    assert [one.short for one in found.dots] == ["all {-1,1}"]
