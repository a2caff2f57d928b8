"""Models, dates and machines at the top of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from report.examples import facts, row

from bitmaps.report.comparison import comparison_of
from bitmaps.report.entries import Entry
from bitmaps.report.origins import about, machine_of, origins_of
from bitmaps.vocabulary import Status

NEW = {"processor": "Abacus 9", "scored_at": "2026-07-11T10:12:30+00:00"}


def told(*changes: dict[str, Any]) -> dict[str, str]:
    rows = (row(seed=n, kind="trained", **one) for n, one in enumerate(changes))
    return about(comparison_of(Entry.of(one, Path(f"runs/{n}")) for n, one in enumerate(rows)))


def test_a_reader_is_told_what_the_numbers_are_of() -> None:
    assert told(NEW | {"settings": {"model.source": "package:x/model"}}) == {
        "Model": "minilm (package:x/model)",
        "Scored on": "data wiki, split validation, mask seed 481, mask sets 1, masked tokens 20",
        "Date": "2026-07-11 10:12 UTC",
        "Machine": "Abacus 9 with 2 threads",
    }


def test_older_files_do_not_know_all_of_it() -> None:
    found = told({"device": None})
    assert found.keys() == {"Model", "Scored on"}
    assert told({})["Machine"] == "cpu with 2 threads"
    failed = Entry(Path("x"), Status.failed, facts(model=None), error="x")
    assert about(comparison_of([failed])) == {}


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (("2026-07-11T23:12:30+00:00", "2026-07-11T10:12:59+00:00"), "2026-07-11 10:12 to 23:12 UTC"),
        (("2026-07-12T00:12:30+00:00", "2026-07-11T10:12:59+00:00"), "2026-07-11 to 2026-07-12"),
        (("2026-07-12T00:12:30+00:00", None), "2026-07-12 00:12 UTC"),
    ],
)  # fmt: skip
def test_dates_are_those_of_all_rows(times: tuple[str | None, ...], said: str) -> None:
    assert told(*({"scored_at": time} for time in times))["Date"] == said


def test_several_models_and_machines_are_listed() -> None:
    found = told(NEW, NEW, {"processor": "Slide rule", "threads": 1, "model": "bert_base"})
    assert found["Model"] == "minilm; bert_base"
    assert found["Machine"] == "Abacus 9 with 2 threads; Slide rule with 1 thread"


def test_a_gpu_is_named_with_its_processor() -> None:
    one = Entry.of(row(device="GPU 3000", processor="Abacus 9", threads=8), Path("x"))
    assert machine_of(one) == "GPU 3000 and Abacus 9 with 8 threads"


def test_runs_are_listed_by_what_made_them() -> None:
    rows = [row(seed=n, kind="trained", processor=name) for n, name in enumerate(("a", "b", "a"))]
    found = origins_of(
        comparison_of(Entry.of(one, Path(f"runs/{n}")) for n, one in enumerate(rows))
    )
    assert [(one.machine, [run.run.name for run in one.runs]) for one in found] == [
        ("a with 2 threads", ["0", "2"]), ("b with 2 threads", ["1"]),
    ]  # fmt: skip
