"""The lines of a comparison: which rows of run folders are the same, and which are pooled."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitmaps.errors import InputError
from bitmaps.runs.folder import read_rows, read_state
from bitmaps.runs.records import Facts, Role, Row, fields_with, measures
from bitmaps.runs.search import runs_below
from bitmaps.vocabulary import GROUPS, RowKind, Status, ValueSet

REFERENCES = (RowKind.unbinarized, RowKind.naive)  # the seed of a training leaves them as they are
KEPT = "percent_of_full_precision"


@dataclass(frozen=True)
class Kept:
    """What a row keeps of the same model in full precision.

    Attributes:
        percent: of its score; over seeds, the mean.
        score: the name of that score (``kept_score``).
        whole: the entry in full precision.
    """

    percent: float
    score: str
    whole: Entry


@dataclass(frozen=True)
class Entry:
    """One line of the comparison: a row, the mean of several, or a run without a row.

    Attributes:
        run: the folder of the run.
        status: of the run.
        facts: what was run.
        row: what was measured; ``None`` unless the run ended well.
        error: why there is no row.
        also: entries of other runs with the same row.
        seeds: the entries behind a mean over seeds; empty for a single row.
        pooled: the fields that ``seeds`` replace: the means of the measures, and all seeds.
        deviation: the standard deviation (n - 1) of each measure over the seeds.
        kept: what it keeps of full precision; ``None`` where there is nothing to compare with.
    """

    run: Path
    status: Status
    facts: Facts
    row: Row | None = None
    error: str | None = None
    also: Sequence[Entry] = ()
    seeds: Sequence[Entry] = ()
    pooled: Mapping[str, Any] = field(default_factory=dict)
    deviation: Mapping[str, float] = field(default_factory=dict)
    kept: Kept | None = None

    @classmethod
    def of(cls, row: Row, run: Path) -> Entry:
        return cls(run, Status.ok, row.facts, row)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The flat row, or the facts of a run without one, with each setting as a field."""
        state = {"run": str(self.run), "status": self.status}
        error = {"error": self.error} if self.error else {}
        flat = asdict(self.facts) if self.row is None else self.row.flat()
        kept = {KEPT: self.kept.percent} if self.kept else {}
        return {**flat, **self.facts.settings, **state, **error, **self.pooled, **kept}

    def get(self, name: str) -> Any:
        """A field of the row, a setting such as ``optimizer.lr``, or ``None``."""
        return self.fields.get(name)

    @property
    def kind(self) -> RowKind | None:
        return None if self.row is None else self.row.kind

    @property
    def single(self) -> Sequence[Entry]:
        """The rows of the entry, one per seed."""
        return self.seeds or (self,)

    @property
    def runs(self) -> list[Entry]:
        """The runs behind the entry: one per seed, and those with the same row."""
        return [run for one in self.single for run in (one, *one.also)]

    @property
    def text(self) -> dict[str, Any]:
        """What the row was scored on."""
        return {name: self.get(name) for name in fields_with(Role.text)}


def run_folders(folder: Path) -> list[Path]:
    """The runs in a folder: itself if it is a run, and all below it, in the order of their names.

    Raises:
        InputError: when there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name a run or a sweep")
    own = [folder] if (folder / "metrics.json").is_file() else []
    if found := own + runs_below(folder):
        return found
    raise InputError(f"{folder} holds no results: neither it nor a folder in it is a run")


def read_entries(folder: Path) -> list[Entry]:
    """The rows of a run; one entry without a row if it failed, is not finished or is damaged."""
    try:
        state = read_state(folder)
        if state.row is None:
            return [Entry(folder, state.status, state.facts, error=state.error)]
        return [Entry.of(row, folder) for row in read_rows(folder)]
    except InputError as error:
        return [Entry(folder, Status.failed, Facts(), error=str(error))]


def merge(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for all runs with the same row."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        key = str(entry.run) if entry.row is None else contents(entry.row)
        groups.setdefault(key, []).append(entry)
    return [replace(first, also=tuple(others)) for first, *others in groups.values()]


def contents(row: Row) -> str:
    """A row without what differs from one measurement of it to the next."""
    seed = None if row.kind in REFERENCES else row.facts.seed
    facts = replace(row.facts, command="", versions={}, commit=None, seed=seed)
    timing = replace(
        row.timing, inference_ms=None, inference_masked_ms=None, inference_repeats=None
    )
    machine = replace(row.machine, processor=None, scored_at=None)
    scores = replace(row.scores, guessing=None)  # older files lack these three
    same = replace(row, facts=facts, timing=timing, machine=machine, scores=scores)
    return json.dumps(same.flat(), sort_keys=True)


def order(entry: Entry) -> tuple[Any, ...]:
    """The blog post's order: by group, then value set, then untrained before trained. Components
    that are no group come last."""
    facts = entry.facts

    def place(value: Any, known: Sequence[Any]) -> int:
        return known.index(value) if value in known else len(known)

    return (
        str(facts.model),
        str(facts.data),
        place(facts.components, list(GROUPS)),
        str(facts.components),
        place(facts.values, list(ValueSet)),
        place(facts.row, list(RowKind)),
        str(facts.scale),
        facts.seed or 0,
    )


def identity(flat: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a row from all others, except from those that differ in the seed alone. The
    conditions of timing count only where something was timed.

    Args:
        flat: ``Row.flat``, or the fields of ``Facts`` while there is no row.
    """
    roles = Role.label | Role.text | Role.where | Role.how
    if flat.get("inference_ms") is not None:
        roles |= Role.timing
    return {name: flat.get(name) for name in fields_with(roles)} | flat["settings"]


def pool(entries: Iterable[Entry]) -> list[Entry]:
    """One entry for all that differ in the seed alone. A second row with the same seed and other
    numbers is no sample of the same mean: it starts another entry."""
    groups: dict[tuple[str, int], list[Entry]] = {}
    for number, entry in enumerate(entries):
        key = (
            str(number)
            if entry.row is None
            else json.dumps(identity(entry.row.flat()), sort_keys=True)
        )
        repeat = 0
        while any(one.facts.seed == entry.facts.seed for one in groups.get((key, repeat), ())):
            repeat += 1
        groups.setdefault((key, repeat), []).append(entry)
    return [group[0] if len(group) == 1 else mean_over_seeds(group) for group in groups.values()]


def mean_over_seeds(entries: Sequence[Entry]) -> Entry:
    pooled: dict[str, Any] = {"seed": ", ".join(str(one.facts.seed) for one in entries)}
    deviation = {}
    for name in measures():
        values = [one.get(name) for one in entries if one.get(name) is not None]
        pooled[name] = statistics.mean(values) if values else None
        if len(values) > 1:
            deviation[name] = statistics.stdev(values)
    return replace(entries[0], seeds=tuple(entries), pooled=pooled, deviation=deviation)
