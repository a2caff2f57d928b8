"""What models keep of full precision."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from bitmaps.report.entries import KEPT, Entry, Kept
from bitmaps.runs.records import Column, Facts, headline
from bitmaps.vocabulary import RowKind, Storage, Task

COLUMN = Column("% of full precision", ".1f", "% of full precision", lower_is_better=False)


def with_kept(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, each with what it keeps of its model in full precision, if that is here."""
    return [
        entry if (whole := in_full_precision(entry, entries)) is None else keeping(entry, whole)
        for entry in entries
    ]


def in_full_precision(entry: Entry, entries: Iterable[Entry]) -> Entry | None:
    """The row of the same weights, scored on the same text, with nothing stored in fewer bits: that
    of the same run, if there are several.

    It is the unbinarized model, or else, as for classifiers, one that was trained in full
    precision. ``None`` where there is none, or where several were trained in other runs.
    """
    if entry.row is None:
        return None
    runs = {run.run for run in entry.runs}
    same = [one for one in entries if one.text == entry.text and start_of(one) == start_of(entry)]
    for kind in (RowKind.unbinarized, RowKind.trained):
        found = [one for one in same if one.kind is kind and is_full_precision(one.facts)]
        own = [one for one in found if runs & {run.run for run in one.runs}]
        if len(found) > 1 and not own and kind is RowKind.trained:
            return None
        if found:
            return (own or found)[0]
    return None


def start_of(entry: Entry) -> dict[str, Any]:
    """The weights that a row started from."""
    settings = entry.facts.settings.items()
    model = {name: value for name, value in settings if name.startswith("model.")}
    model.pop("model.dropout", None)  # which only a training has
    return model | {"model": entry.facts.model, "weights": entry.facts.weights}


def is_full_precision(facts: Facts) -> bool:
    return facts.values is None and facts.embeddings in (Storage.fp32, None)


def keeping(entry: Entry, whole: Entry) -> Entry:
    """An entry with what it keeps of ``whole``, and so each of its seeds."""
    score = kept_score(entry, whole)
    seeds = tuple(keeping(one, whole) for one in entry.seeds)
    if seeds:
        found = [one.kept.percent for one in seeds if one.kept]
    else:
        ours, other = entry.get(score), partner(entry, whole)
        theirs = other and other.get(score)
        share = 100 * ours / theirs if ours is not None and theirs and theirs > 0 else math.nan
        found = [share] if math.isfinite(share) else []
    if not found or len(found) < len(seeds):
        return entry
    deviation = {KEPT: statistics.stdev(found)} if len(found) > 1 else {}
    return replace(
        entry,
        seeds=seeds,
        deviation={**entry.deviation, **deviation},
        kept=Kept(statistics.mean(found), score, whole),
    )


def kept_score(entry: Entry, whole: Entry) -> str:
    """The score whose share is kept: the accuracy of masked words, which unlike their cross entropy
    has the same zero for all models, and what a chart shows of any other task."""
    if entry.facts.task is Task.masked_lm:
        return "accuracy"
    return headline([one.row for one in (entry, whole) if one.row])


def partner(entry: Entry, reference: Entry) -> Entry | None:
    """The row of the reference with the same seed, or its only one; ``None`` if there is none on
    the same text."""
    same = [one for one in reference.single if one.facts.seed == entry.facts.seed]
    only = reference.single if len(reference.single) == 1 else ()
    found = next(iter((*same, *only)), None)
    return found if found is not None and found.text == entry.text else None
