"""The one place that compares rows: which are the same, which are pooled, and what they differ in.

``bitmaps.runs.records`` declares the columns and the role of every field. ``compare`` reads run
folders and gives a ``Comparison``, which the terminal, the files and the page show.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bitmaps.errors import InputError, as_text
from bitmaps.runs.folder import read_rows, read_state
from bitmaps.runs.records import Column, Facts, Role, Row, columns, fields_with, measures
from bitmaps.runs.search import runs_below
from bitmaps.vocabulary import GROUPS, VALUE_SETS, Component, RowKind, Scale, Status, Task, ValueSet

REFERENCES = (RowKind.unbinarized, RowKind.naive)  # the seed of a training leaves them as they are


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

    @classmethod
    def of(cls, row: Row, run: Path) -> Entry:
        return cls(run, Status.ok, row.facts, row)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """The flat row, or the facts of a run without one, with each setting as a field."""
        state = {"run": str(self.run), "status": self.status}
        error = {"error": self.error} if self.error else {}
        flat = asdict(self.facts) if self.row is None else self.row.flat()
        return {**flat, **self.facts.settings, **state, **error, **self.pooled}

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
    def text(self) -> dict[str, Any]:
        """What the row was scored on."""
        return {name: self.get(name) for name in fields_with(Role.text)}


@dataclass(frozen=True)
class Comparison:
    """Entries in the order of the table, pooled over seeds.

    Attributes:
        entries: the lines of the table.
        columns: the fields that the table shows.
        labels: a name for each entry, as short as tells it from the others.
        notes: for each entry why it has no numbers, or why they are not comparable; else empty.
        text: what most entries were scored on.
    """

    entries: Sequence[Entry]
    columns: Mapping[str, Column]
    labels: Sequence[str]
    notes: Sequence[str]
    text: Mapping[str, Any]

    def remarks(self) -> list[str]:
        """The notes that are not empty, each after its label."""
        pairs = zip(self.labels, self.notes, strict=True)
        return [f"{label}: {note}" for label, note in pairs if note]

    def comparable(self) -> list[tuple[str, Entry]]:
        """The entries with a row that was scored on the same text as most, and their labels."""
        pairs = zip(self.labels, self.entries, strict=True)
        return [(label, one) for label, one in pairs if one.row and one.text == self.text]

    def cells(self, entry: Entry) -> list[str]:
        """A line of the table: one string a column."""
        return [as_text(cell(entry, name, column.format)) for name, column in self.columns.items()]


def compare(folders: Iterable[Path]) -> Comparison:
    """Compare the rows of these run folders.

    Identical rows are merged; the other runs are listed under ``also``. So are the unbinarized and
    the naive model of runs that differ in their seed alone. Other rows that differ in the seed
    alone are pooled. A folder that cannot be read is an entry with the reason.
    """
    found = [entry for folder in folders for entry in read_entries(folder)]
    return comparison_of(sorted(merge(found), key=order))


def comparison_of(entries: Iterable[Entry]) -> Comparison:
    """Pool entries over seeds, in the order in which they come."""
    pooled = pool(entries)
    text = usual_text(pooled)
    labels, notes = labels_of(pooled, text), notes_of(pooled, text)
    return Comparison(
        pooled, columns_of(pooled), [*map(as_text, labels)], [*map(as_text, notes)], text
    )


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
    return json.dumps(replace(row, facts=facts, timing=timing).flat(), sort_keys=True)


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


def usual_text(entries: Sequence[Entry]) -> dict[str, Any]:
    """What most entries were scored on."""
    texts = [tuple(entry.text.items()) for entry in entries if entry.row]
    return dict(statistics.mode(texts)) if texts else {}


def in_words(text: Mapping[str, Any]) -> str:
    """What was scored on, as ``Entry.text`` gives it.

    >>> in_words({"data": "wiki", "limit": None, "mask_seed": 481})
    'data wiki, limit none, mask seed 481'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {'none' if value is None else value}"
        for name, value in text.items()
        if (name, value) != ("task", Task.masked_lm)
    )


def notes_of(entries: Sequence[Entry], usual: Mapping[str, Any]) -> list[str]:
    notes = []
    for entry in entries:
        other = {name: value for name, value in entry.text.items() if usual.get(name) != value}
        if entry.status is Status.failed:
            notes.append(str(entry.error))
        elif entry.row is None:
            notes.append(f"no result yet: {entry.run} is still running, or was stopped")
        else:
            notes.append(f"not comparable: scored on {in_words(other)}" if other else "")
    return notes


def setting_names(entries: Iterable[Entry]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.facts.settings))


def columns_of(entries: Sequence[Entry]) -> dict[str, Column]:
    """First the fields in which entries differ, then those that every table has, without a measure
    that no entry has."""
    varying = list(varying_fields(entries))
    if any(entry.deviation for entry in entries) and "seed" not in varying:
        varying.append("seed")
    absent = [name for name in measures() if all(one.get(name) is None for one in entries)]
    always = {name: column for name, column in columns().items() if name not in absent}
    return {name: Column(as_text(name.replace("_", " "))) for name in varying} | always


def varying_fields(entries: Sequence[Entry]) -> Iterator[str]:
    """The fields in which entries differ, beyond those that every table shows."""
    timed = [entry for entry in entries if entry.get("inference_ms") is not None]
    kinds = {entry.kind for entry in entries}
    for name in fields_with(Role.where):
        if differ(name, entries):
            yield name
    for name in fields_with(Role.timing):
        if differ(name, timed):
            yield name
    implied = all(is_word_table_implied(entry.facts) for entry in entries)
    for name in (*fields_with(Role.how), *setting_names(entries), "seed"):
        alike = ([one for one in entries if one.kind is kind] for kind in kinds)
        if any(differ(name, some) for some in alike) and not (name == "embeddings" and implied):
            yield name


def differ(name: str, entries: Iterable[Entry]) -> bool:
    return len({json.dumps(entry.get(name)) for entry in entries} - {"null"}) > 1


def is_word_table_implied(facts: Facts) -> bool:
    """Whether the word table is stored as the components alone imply."""
    components = facts.components or ""
    binarized = components == "all" or Component.embeddings in components.split("+")
    return facts.embeddings in ("bit" if binarized else "fp32", None)


def labels_of(entries: Sequence[Entry], usual: Mapping[str, Any]) -> list[str]:
    """Start with components, values and kind; add a setting only where two labels would otherwise
    be equal. Rows on other text than most say so."""
    labels = []
    for entry in entries:
        parts = [entry.facts.components, shown_values(entry.facts), entry.kind or entry.status]
        other = ", other text" if entry.row and entry.text != usual else ""
        labels.append(" ".join(filter(None, parts)) + other)
    more = (*fields_with(Role.where), *fields_with(Role.timing), *fields_with(Role.how))
    for name in ("scale", *more, *setting_names(entries), "seed", "run"):
        values: dict[str, set[str]] = defaultdict(set)
        for label, entry in zip(labels, entries, strict=True):
            values[label].add(json.dumps(entry.get(name)))
        labels = [
            f"{label}, {name.replace('_', ' ')} {entry.get(name)}"
            if len(values[label]) > 1 and entry.get(name) is not None
            else label
            for label, entry in zip(labels, entries, strict=True)
        ]
    return labels


def shown_values(facts: Facts) -> str:
    return "" if facts.values is None else VALUE_SETS[facts.values]


def cell(entry: Entry, name: str, form: str) -> str:
    """A field as the table shows it. A run without a row has its status in place of the kind."""
    value = entry.get(name)
    if name == "values":
        return shown_values(entry.facts)
    if name == "row":
        scale = entry.facts.scale
        scaled = f", scale {scale}" if scale not in (None, Scale.none) else ""
        return entry.status if entry.row is None else f"{value}{scaled}"
    if name in entry.deviation:
        return f"{value:{form}} ± {entry.deviation[name]:{form}}"
    return "" if value is None else format(value, form)
