"""The one place that compares rows: which can be compared, what they differ in, and what they are
called.

``bitmaps.runs.records`` declares the columns and the role of every field. ``compare`` reads run
folders and gives a ``Comparison``, which the terminal, the files and the page show.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from bitmaps.errors import as_text
from bitmaps.report.entries import KEPT, Entry, merge, order, pool, read_entries
from bitmaps.report.kept import COLUMN, is_full_precision, with_kept
from bitmaps.runs.records import (
    Column,
    Facts,
    Role,
    Size,
    Timing,
    columns,
    fields_with,
    measures,
)
from bitmaps.vocabulary import VALUE_SETS, Component, Scale, Status, Task


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
    pooled = with_kept(pool(entries))
    text = usual_text(pooled)
    labels, notes = labels_of(pooled, text), notes_of(pooled, text)
    return Comparison(
        pooled, columns_of(pooled), [*map(as_text, labels)], [*map(as_text, notes)], text
    )


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
    if not any(entry.kept and not is_full_precision(entry.facts) for entry in entries):
        absent.append(KEPT)  # full precision is all of itself
    always = {name: column for name, column in table_columns().items() if name not in absent}
    return {name: Column(as_text(name.replace("_", " "))) for name in varying} | always


def table_columns() -> dict[str, Column]:
    """The columns that every table can have: quality first, then what it costs."""
    costs = {one.name for part in (Timing, Size) for one in fields(part)}
    quality = {name: column for name, column in columns().items() if name not in costs}
    return {**quality, KEPT: COLUMN, **columns()}


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
