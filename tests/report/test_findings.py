"""What a comparison found, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.examples import facts, row

from bitmaps.report.comparison import comparison_of
from bitmaps.report.entries import Entry
from bitmaps.report.findings import Finding, finding_of
from bitmaps.runs.records import Row
from bitmaps.vocabulary import Status

GUESSING = {"guessing": 10.3, "memory_mib": 47.7, "inference_ms": None}


def found(*rows: tuple[str, Row], more: tuple[Entry, ...] = ()) -> Finding:
    return finding_of(comparison_of([*(Entry.of(one, Path(run)) for run, one in rows), *more]))


def whole(**changes: Any) -> Row:
    given = {**GUESSING, "memory_mib": 86.8, "accuracy": 0.5, "cross_entropy": 3.3} | changes
    return row("none", "unbinarized", **given)


def own(components: str = "layers", kind: str = "trained", **changes: Any) -> Row:
    return row(components, kind, **{**GUESSING, "accuracy": 0.4, "cross_entropy": 3.6} | changes)


BAD = {"accuracy": 0.0001, "cross_entropy": 12.5}
KEPT = "80.0 % of full precision's accuracy in 47.7 of 86.8 MiB"


def test_a_run_is_one_sentence() -> None:
    """Its naive model is there for comparison."""
    rows = [("a", whole()), ("a", own(kind="naive", **BAD)), ("a", own())]
    assert found(*rows) == Finding(f"layers in {{-1,1}}, trained, keep {KEPT}", [])


@pytest.mark.parametrize(
    ("components", "changes", "subject"),
    [
        ("ffnn", {}, "ffnn in {-1,1}, trained, keeps"),
        ("attention+ffnn", {"values": "01"}, "attention+ffnn in {0,1}, trained, keep"),
        ("none", {"embeddings": "bit", "values": "pm1"}, "word table in {-1,1}, trained, keeps"),
        ("none", {"embeddings": "int8", "values": None}, "word table in int8, trained, keeps"),
    ],
)
def test_the_sentence_says_what_was_stored_in_fewer_bits(
    components: str, changes: dict[str, Any], subject: str
) -> None:
    given = {"values": "pm1"} | changes
    assert found(("a", whole()), ("a", own(components, **given))).headline == f"{subject} {KEPT}"


def test_nothing_kept_is_called_nothing() -> None:
    lost = found(("a", whole()), ("a", own(kind="naive", **BAD))).headline
    kept = "nothing of full precision's accuracy in 47.7 of 86.8 MiB"
    assert lost == f"layers in {{-1,1}}, naive, keep {kept}, no better than guessing"
    old = found(("a", whole(guessing=None)), ("a", own(kind="naive", **BAD | {"guessing": None})))
    assert old.headline == f"layers in {{-1,1}}, naive, keep {kept}"
    worse = found(("a", whole()), ("a", own(cross_entropy=10.3)))
    assert worse.headline.endswith(f"keep {KEPT}, no better than guessing")


@pytest.mark.parametrize("accuracy", [None, 0.0])
def test_without_full_precision_nothing_is_claimed(accuracy: float | None) -> None:
    """Nor with one that is never right."""
    reference = [] if accuracy is None else [("a", whole(accuracy=accuracy, cross_entropy=9.9))]
    rows = [("b", own("all", cross_entropy=4.0)), ("c", own())]
    assert found(*reference, *rows).headline == (
        "layers {-1,1} trained has CE 3.6000 in 47.7 MiB; "
        "nothing says what was kept: no row here is the same model in full precision"
    )


def test_full_precision_alone_is_no_finding() -> None:
    headline = "Nothing is binarized here: none unbinarized has CE 3.3000 in 86.8 MiB"
    assert found(("a", whole())) == Finding(headline, [])


def test_runs_without_a_result_are_counted() -> None:
    failed = [Entry(Path(n), Status.failed, facts("all"), error="x") for n in "xy"]
    running = Entry(Path("z"), Status.running, facts("ffnn"))
    said = ["2 runs have failed", "1 run has not ended"]
    assert found(more=(*failed, running)) == Finding("There is no result yet", said)
    with_row = found(("a", whole()), ("a", own()), more=(failed[0],))
    assert with_row.lines == [f"layers in {{-1,1}}, trained, keep {KEPT}", "1 run has failed"]


def test_rows_on_other_text_are_counted_and_not_compared() -> None:
    best = own("ffnn", accuracy=0.49, data="ptb")
    finding = found(("a", whole()), ("a", own()), ("c", best), ("c", whole(data="ptb")), ("d", own("all")))  # fmt: skip
    assert "ffnn" not in finding.headline
    assert finding.details == ["2 rows were scored on other text, and cannot be compared"]


def test_models_without_a_reference_are_counted() -> None:
    finding = found(("a", whole()), ("a", own()), ("b", own("all", model="bert_base")))
    said = ["1 binarized model has nothing in full precision to be compared with"]
    assert finding == Finding(f"layers in {{-1,1}}, trained, keep {KEPT}", said)


def test_of_several_models_it_is_the_one_that_keeps_most_and_the_smallest_good_one() -> None:
    finding = found(
        ("a", whole()),
        ("b", own("ffnn", accuracy=0.49, memory_mib=60.7)),
        ("c", own("layers", accuracy=0.46)),
        ("d", own("all", accuracy=0.45, memory_mib=3.2)),
        ("e", own("all", accuracy=0.44, memory_mib=3.1, recipe="bwn")),
        ("f", own("all", "naive", memory_mib=2.7, **BAD)),
    )
    assert finding.lines == [
        "Of 5 binarized models, ffnn {-1,1} trained keeps most: "
        "98.0 % of full precision's accuracy in 60.7 of 86.8 MiB",
        "The smallest that keeps 90 % is all {-1,1} trained: "
        "90.0 % of full precision's accuracy in 3.2 of 86.8 MiB",
        "1 of 5 is no better than guessing",
    ]


def test_a_model_that_only_guesses_is_not_the_best() -> None:
    """It says the most frequent token, and is often right."""
    lucky = own("all", "naive", accuracy=0.45, cross_entropy=77.0)
    finding = found(("a", whole()), ("b", own()), ("c", lucky))
    assert finding.headline.startswith("Of 2 binarized models, layers {-1,1} trained keeps most")
    assert finding.details == ["1 of 2 is no better than guessing"]
    none = found(("a", whole()), ("b", own(**BAD)), ("c", lucky))
    assert none.lines == [
        "None of 2 binarized models is better than guessing",
        "all {-1,1} naive keeps most: 90.0 % of full precision's accuracy in 47.7 of 86.8 MiB",
    ]


def test_seeds_have_a_spread() -> None:
    rows = [(str(n), own(seed=n, accuracy=value)) for n, value in enumerate((0.4, 0.41))]
    assert "keep 81.0 ± 1.4 % of full" in found(("a", whole()), *rows).headline


def test_a_packed_model_stands_for_the_trained_one_with_its_time() -> None:
    timed = {"inference_ms": 9.0, "threads": 1}
    packed = own(kind="packed", memory_mib=48.1, **timed | {"inference_ms": 2.0})
    rows = [("a", whole(**timed)), ("a", own(**timed)), ("a", packed)]
    kept = "80.0 % of full precision's accuracy in 48.1 of 86.8 MiB, 4.5 times as fast"
    assert found(*rows) == Finding(f"layers in {{-1,1}}, packed, keep {kept}", [])
    # also if it was scored in another run, beside the floats that it stands for
    apart = [("a", whole(**timed)), ("a", own(**timed)), ("b", own(**timed)), ("b", packed)]
    merged = [Entry.of(one, Path(run)) for run, one in apart]
    merged[1] = Entry(merged[1].run, Status.ok, merged[1].facts, merged[1].row, also=(merged[2],))
    comparison = comparison_of([merged[0], merged[1], merged[3]])
    assert finding_of(comparison).headline == f"layers in {{-1,1}}, packed, keep {kept}"


@pytest.mark.parametrize(
    "change", [{"threads": 8}, {"inference_batch": 1}, {"inference_ms": None}, {"dtype": "bf16-true"}]
)  # fmt: skip
def test_times_of_other_conditions_are_not_compared(change: dict[str, Any]) -> None:
    timed = {"inference_ms": 9.0, "threads": 1, "inference_batch": 8}
    rows = [("a", whole(**timed)), ("a", own(kind="packed", **timed | {"inference_ms": 2.0} | change))]  # fmt: skip
    assert "times as fast" not in found(*rows).headline
    assert "times as fast" not in found(("a", whole(**timed)), ("a", own(**timed))).headline


def test_names_are_text() -> None:
    nasty = "a\x1b[31m\nb"
    for finding in (
        found(("a", whole()), ("a", own(nasty))),
        found(("a", whole()), ("a", own(nasty)), ("b", own("all"))),
        found(("a", own(nasty)), ("b", own("all"))),
    ):
        assert all(line.isprintable() for line in finding.lines)
