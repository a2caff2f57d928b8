"""What a comparison found, in words: for the headline of the page, and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bitmaps.errors import as_text
from bitmaps.report.comparison import Comparison, shown_values
from bitmaps.report.entries import KEPT, Entry
from bitmaps.report.kept import is_full_precision
from bitmaps.report.quality import Labelled, beats, headline_of
from bitmaps.runs.records import Role, columns, fields_with, measures
from bitmaps.vocabulary import RowKind, Status

SINGULAR = ("attention", "ffnn", "head", "word table")
GOOD = 90.0  # percent of full precision that a small model should keep


@dataclass(frozen=True)
class Finding:
    """The finding in one sentence, and what else must be known of it."""

    headline: str
    details: Sequence[str]

    @property
    def lines(self) -> list[str]:
        return [self.headline, *self.details]


def finding_of(comparison: Comparison) -> Finding:
    """What the binarized models keep of full precision: of several, the one that keeps most."""
    rows = comparison.comparable()
    binarized = final([pair for pair in rows if not is_full_precision(pair[1].facts)])
    compared = [(label, one) for label, one in binarized if one.kept]
    alone = len(binarized) - len(compared) if compared else 0
    details = [*without_reference(alone), *unfinished(comparison), *left_out(comparison)]
    if not rows:
        return Finding("There is no result yet", details)
    if not binarized:
        return Finding(f"Nothing is binarized here: {scored(*best_of(rows), rows)}", details)
    if not compared:
        missing = "nothing says what was kept: no row here is the same model in full precision"
        return Finding(f"{scored(*best_of(binarized), rows)}; {missing}", details)
    name = headline_of(rows)
    label, best = max(compared, key=lambda pair: rank(pair[1], name))
    if len(compared) == 1:
        guess = "" if beats_guessing(best, name) else ", no better than guessing"
        return Finding(in_one_sentence(best) + guess, details)
    count, lost = len(compared), sum(not beats_guessing(one, name) for _, one in compared)
    if lost == count:
        most = f"{label} keeps most: {amounts(best)}"
        headline = f"None of {count} binarized models is better than guessing"
        return Finding(headline, [most, *details])
    headline = f"Of {count} binarized models, {label} keeps most: {amounts(best)}"
    small, entry = smallest_good(compared, name) or (label, best)
    found = []
    if entry is not best:
        found.append(f"The smallest that keeps {GOOD:.0f} % is {small}: {amounts(entry)}")
    if lost:
        found.append(f"{lost} of {count} {'is' if lost == 1 else 'are'} no better than guessing")
    return Finding(headline, [*found, *details])


def final(entries: Labelled) -> list[tuple[str, Entry]]:
    """Without the models on the way to another one: a run that trains is about the trained model,
    and a packed model stands for the trained one that it was made from."""
    order = list(RowKind)
    last: dict[Path, RowKind] = {}
    for _, entry in entries:
        for run in entry.runs:
            assert run.kind is not None
            last[run.run] = max(run.kind, last.get(run.run, run.kind), key=order.index)
    found = []
    for label, entry in entries:
        kinds = [last[run.run] for run in entry.runs]
        is_packed = entry.kind is RowKind.trained and RowKind.packed in kinds
        if entry.kind in kinds and not is_packed:
            found.append((label, entry))
    return found


def rank(entry: Entry, name: str) -> tuple[bool, float, int]:
    """What makes an entry the best: it beats guessing, keeps most, and is the furthest on its way
    to a packed model."""
    assert entry.kept is not None
    assert entry.kind is not None
    return beats_guessing(entry, name), entry.kept.percent, list(RowKind).index(entry.kind)


def beats_guessing(entry: Entry, name: str) -> bool:
    score = entry.get(name)
    return score is None or beats(score, entry.get("guessing"), measures()[name].lower_is_better)


def smallest_good(entries: Labelled, name: str) -> tuple[str, Entry] | None:
    good = [
        pair
        for pair in entries
        if pair[1].kept and pair[1].kept.percent >= GOOD and beats_guessing(pair[1], name)
    ]
    return min(good, key=lambda pair: pair[1].get("memory_mib"), default=None)


def in_one_sentence(entry: Entry) -> str:
    what = entry.facts.components if entry.facts.components != "none" else "word table"
    stored = shown_values(entry.facts) or str(entry.facts.embeddings)
    verb = "keeps" if what in SINGULAR else "keep"
    return as_text(f"{what} in {stored}, {entry.kind}, {verb} {amounts(entry)}")


def amounts(entry: Entry) -> str:
    """How much is kept, in how much memory and time."""
    kept = entry.kept
    assert kept is not None
    share = f"{kept.percent:.1f}"
    if KEPT in entry.deviation:
        share += f" ± {entry.deviation[KEPT]:.1f}"
    amount = "nothing" if float(f"{kept.percent:.1f}") <= 0 else f"{share} %"
    sizes = f"{entry.get('memory_mib'):.1f} of {kept.whole.get('memory_mib'):.1f} MiB"
    speed = "" if (ratio := speedup(entry)) is None else f", {ratio:.1f} times as fast"
    score = columns()[kept.score].heading
    return f"{amount} of full precision's {score} in {sizes}{speed}"


def speedup(entry: Entry) -> float | None:
    """How many times as fast a packed model is; ``None`` for others, which compute in floats, and
    where the two were not timed alike."""
    if entry.kind is not RowKind.packed or entry.kept is None:
        return None
    whole = entry.kept.whole
    ours, theirs = entry.get("inference_ms"), whole.get("inference_ms")
    alike = all(entry.get(name) == whole.get(name) for name in fields_with(Role.timing))
    return theirs / ours if ours and theirs and alike else None


def best_of(rows: Labelled) -> tuple[str, Entry]:
    name = headline_of(rows)
    sign = -1 if measures()[name].lower_is_better else 1
    found = [pair for pair in rows if pair[1].get(name) is not None]
    return max(found or rows, key=lambda pair: sign * (pair[1].get(name) or 0.0))


def scored(label: str, entry: Entry, rows: Labelled) -> str:
    """The score and the size of an entry."""
    name = headline_of(rows)
    score = entry.get(name)
    column = measures()[name]
    found = "no score" if score is None else f"{column.heading} {score:{column.format}}"
    return f"{label} has {found} in {entry.get('memory_mib'):.1f} MiB"


def without_reference(count: int) -> list[str]:
    models = "binarized model has" if count == 1 else "binarized models have"
    return [f"{count} {models} nothing in full precision to be compared with"] if count else []


def unfinished(comparison: Comparison) -> list[str]:
    """How many runs have no result."""
    said = {Status.failed: "failed", Status.running: "not ended"}
    found = []
    for status, words in said.items():
        if count := sum(one.status is status for one in comparison.entries):
            found.append(f"{count} {'run has' if count == 1 else 'runs have'} {words}")
    return found


def left_out(comparison: Comparison) -> list[str]:
    """How many rows were scored on other text."""
    rows = [one for one in comparison.entries if one.row]
    count = len(rows) - len(comparison.comparable())
    were = "row was" if count == 1 else "rows were"
    return [f"{count} {were} scored on other text, and cannot be compared"] if count else []
