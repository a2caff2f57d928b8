"""Differences between rows, with the intervals of a paired bootstrap over sentences.

``python -m bitmaps.report <folders> --against <row> --json <file>`` writes them.
"""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitmaps.errors import InputError
from bitmaps.report.comparison import Comparison
from bitmaps.report.entries import Entry
from bitmaps.report.files import markdown_table
from bitmaps.report.kept import partner
from bitmaps.report.picture import draw_both
from bitmaps.report.quality import Dot, chart, short_labels
from bitmaps.runs.files import read_json, write_json
from bitmaps.runs.folder import read_sentences, read_state
from bitmaps.runs.records import (
    Facts,
    Machine,
    Size,
    Timing,
    headline_of,
    measures,
    parse,
    score_names,
)
from bitmaps.vocabulary import Task

DRAWS = 2000
PARTS = ("value", "low", "high")  # of an interval


@dataclass(frozen=True)
class Interval:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


Differences = Mapping[str, Interval]
"""By score, row minus reference, such as ``accuracy``; and row over reference, as
``accuracy_ratio``. A ratio is missing where a resample of the reference scores 0."""


@dataclass(frozen=True)
class Seed:
    """One seed of a line.

    Attributes:
        seed: of training; ``None`` where it is not known.
        scores: those of its task, such as cross entropy, accuracy and MRR.
        against: the differences from each reference; ``None`` where it cannot be compared.
    """

    seed: int | None
    scores: Mapping[str, float]
    against: Mapping[str, Differences | None]


@dataclass(frozen=True)
class Line:
    """One row of the comparison, over its seeds.

    Attributes:
        label: what it is called.
        facts, size, machine, timing: of its first seed.
        masked_tokens: how many were scored, if the task has any.
        sentences: how many sentences, or pairs, were scored, for the other tasks.
        guessing: the score of who only guesses, if it is known.
        scores: the means over the seeds.
        against: the means of values and bounds over the seeds; ``None`` where a seed has none.
            Averaging the bounds is conservative: errors of different seeds partly cancel.
        seeds: what the means are of.
    """

    label: str
    facts: Facts
    size: Size
    machine: Machine
    masked_tokens: int | None
    scores: Mapping[str, float]
    against: Mapping[str, Differences | None]
    seeds: Sequence[Seed]
    sentences: int | None = None
    timing: Timing = field(default_factory=Timing)
    guessing: float | None = None


@dataclass(frozen=True)
class Results:
    """The lines of a comparison, and the labels of the references."""

    references: Sequence[str]
    lines: Sequence[Line]


def select(results: Results, patterns: Sequence[str]) -> Results:
    """The lines whose label matches one of these patterns, as in a shell; all without a pattern.

    Raises:
        InputError: when a pattern matches no line.
    """
    labels = [line.label for line in results.lines]
    for pattern in patterns:
        if not fnmatch.filter(labels, pattern):
            raise InputError(f"--line {pattern} matches none of {', '.join(labels)}")
    lines = [
        line
        for line in results.lines
        if not patterns or any(fnmatch.fnmatchcase(line.label, one) for one in patterns)
    ]
    return replace(results, lines=lines)


def compare_with(comparison: Comparison, names: Sequence[str]) -> Results:
    """The differences of every row from each of the named ones.

    Args:
        names: labels, or run folders; a folder stands for its run's own row.

    Raises:
        InputError: when a name fits no row or several, or a run has no scores by sentence.
    """
    references = {}
    for name in names:
        label, entry = find(comparison, name)
        references[label] = entry
    pairs = zip(comparison.labels, comparison.entries, strict=True)
    lines = [line_of(label, entry, references) for label, entry in pairs if entry.row]
    return Results(list(references), lines)


def find(comparison: Comparison, name: str) -> tuple[str, Entry]:
    """The row with this label, or the own row of the run in this folder."""
    pairs = list(zip(comparison.labels, comparison.entries, strict=True))
    found = [(label, entry) for label, entry in pairs if entry.row and label == name]
    found = found or [(label, entry) for label, entry in pairs if is_own_row(entry, name)]
    if len(found) == 1:
        return found[0]
    problem = "fits several rows" if found else "is no row and no run folder"
    valid = "; ".join(label for label, entry in pairs if entry.row)
    raise InputError(f"--against {name!r} {problem}; the rows are: {valid}")


def is_own_row(entry: Entry, name: str) -> bool:
    """Whether a folder of this name or path holds a run whose own row is this one."""
    return any(
        name in (run.run.name, str(run.run)) and run.kind is read_state(run.run).facts.row
        for run in entry.runs
        if run.row
    )


def line_of(label: str, entry: Entry, references: Mapping[str, Entry]) -> Line:
    assert entry.row is not None
    seeds = [seed_of(one, references) for one in entry.single]
    return Line(
        label,
        replace(entry.facts, seed=None),
        entry.row.size,
        entry.row.machine,
        entry.row.scores.masked_tokens,
        {name: statistics.fmean(one.scores[name] for one in seeds) for name in seeds[0].scores},
        {name: mean_differences([one.against[name] for one in seeds]) for name in references},
        seeds,
        entry.row.scores.sentences,
        entry.row.timing,
        entry.row.scores.guessing,
    )


def seed_of(entry: Entry, references: Mapping[str, Entry]) -> Seed:
    against = {
        name: None
        if (other := partner(entry, reference)) is None
        else compare_sentences(entry, other)
        for name, reference in references.items()
    }
    assert entry.row is not None
    scores = {name: entry.get(name) for name in score_names(entry.row.scores)}
    return Seed(entry.facts.seed, scores, against)


def compare_sentences(entry: Entry, other: Entry) -> Differences:
    try:
        return differences(sentence_sums(entry), sentence_sums(other))
    except InputError as error:
        raise InputError(f"{entry.run} and {other.run}: {error}") from error


def sentence_sums(entry: Entry) -> NDArray[Any]:
    """(sentences, 4): the masked tokens of each sentence, and the sums of their scores."""
    if entry.facts.task is not Task.masked_lm:
        raise InputError(f"{entry.run} is for {entry.facts.task}: intervals are for masked words")
    sums = read_sentences(entry.run)
    if entry.kind is None or entry.kind not in sums:
        raise InputError(f"{entry.run} has no scores by sentence of its row {entry.kind}")
    return sums[entry.kind]


def differences(
    ours: NDArray[Any], theirs: NDArray[Any], draws: int = DRAWS
) -> dict[str, Interval]:
    """Ours minus theirs, and ours over theirs, with the 95 % interval of a bootstrap that draws the
    same sentences for both.

    Args:
        ours, theirs: ``bitmaps.metrics.SentenceSums`` of the same masked sentences, (sentences, 4).
        draws: bootstrap samples.

    Raises:
        InputError: when the masked tokens are not the same.
    """
    if ours.shape != theirs.shape or (ours[:, 0] != theirs[:, 0]).any():
        raise InputError("only rows that were scored on the same masked sentences can be compared")
    weights = resamples(len(ours), draws)
    mine, other = weights @ ours, weights @ theirs
    found = {}
    for column, name in enumerate(score_names(), 1):
        a, b = mine[:, column] / mine[:, 0], other[:, column] / other[:, 0]
        found[name] = interval_of(a - b)
        if b.min() > 0:
            found[f"{name}_ratio"] = interval_of(a / b)
    return found


@lru_cache(maxsize=1)
def resamples(sentences: int, draws: int) -> NDArray[Any]:
    """How often each sentence counts: once in the first line, as drawn in the others."""
    shares = np.full(sentences, 1 / sentences)
    drawn = np.random.RandomState(0).multinomial(sentences, shares, draws)
    return np.concatenate([np.ones((1, sentences)), drawn])


def interval_of(values: NDArray[Any]) -> Interval:
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return Interval(float(values[0]), float(low), float(high))


def mean_differences(seeds: Sequence[Differences | None]) -> Differences | None:
    """The means of values and bounds of the differences that all seeds have."""
    found = [seed for seed in seeds if seed is not None]
    if len(found) < len(seeds):
        return None

    def mean(kind: str, part: str) -> float:
        return statistics.fmean(getattr(seed[kind], part) for seed in found)

    kinds = [kind for kind in found[0] if all(kind in seed for seed in found)]
    return {kind: Interval(*(mean(kind, part) for part in PARTS)) for kind in kinds}


def write(results: Results, path: Path) -> None:
    write_json(path, asdict(results))


def read(path: Path) -> Results:
    """What ``write`` wrote.

    Raises:
        InputError: when the file is missing or holds something else.
    """
    value = read_json(path)
    try:
        return parse(Results, value)
    except InputError as error:
        raise InputError(f"{path} is damaged or of another version: {error}") from error


def tables(results: Results) -> str:
    """Tables of the scores, of the differences, and of the spread over seeds, the best line first.

    Shares are those of the first reference's accuracy and MRR.
    """
    name = first_score(results.lines)
    sign = 1 if measures()[name].lower_is_better else -1

    def place(line: Line) -> float:
        return sign * line.scores[name] if name in line.scores else math.inf

    lines = sorted(results.lines, key=place)
    found = [scores_table(lines)]
    if results.references:
        found.append(differences_table(results.references, lines))
    if several := [line for line in lines if len(line.seeds) > 1]:
        found.append(spread_table(several))
    return "\n".join(found)


def first_score(lines: Sequence[Line]) -> str:
    """The score that these lines are compared by: cross entropy for masked words."""
    names = {name for line in lines for name in line.scores}
    return headline_of({line.facts.task for line in lines}, names)


def scores_table(lines: Sequence[Line]) -> str:
    names = {name for line in lines for name in line.scores}
    shown = {name: column for name, column in measures().items() if name in names}
    size = measures()["memory_mib"]
    headings = ["line", "seeds", *(column.heading for column in shown.values()), size.heading]
    cells = [
        [
            line.label,
            str(len(line.seeds)),
            *(score_text(line.scores.get(name), column.format) for name, column in shown.items()),
            f"{line.size.memory_mib:{size.format}}",
        ]
        for line in lines
    ]
    return markdown_table([(heading, heading != "line") for heading in headings], cells)


def differences_table(references: Sequence[str], lines: Sequence[Line]) -> str:
    above = [f"CE above {name}" for name in references]
    headings = ["line", *above, "accuracy kept, %", "MRR kept, %"]
    cells = []
    for line in lines:
        compared = {n: line.against.get(n) or {} for n in references if n != line.label}
        kept = compared.get(references[0], {})
        row = [interval_text(compared.get(name, {}).get("cross_entropy")) for name in references]
        row += [
            interval_text(kept.get(f"{name}_ratio"), ".1f", 100) for name in ("accuracy", "mrr")
        ]
        cells.append([line.label, *row])
    return markdown_table([(heading, heading != "line") for heading in headings], cells)


def spread_table(lines: Sequence[Line]) -> str:
    name = first_score(lines)
    column = measures()[name]
    first = f"{column.heading} of the lowest seed"
    headings = [("line", False), (first, True), ("of the highest seed", True)]
    cells = []
    for line in lines:
        found = [seed.scores.get(name, math.nan) for seed in line.seeds]
        cells.append([line.label, *(f"{end:{column.format}}" for end in (min(found), max(found)))])
    return markdown_table(headings, cells)


def score_text(score: float | None, form: str) -> str:
    return "" if score is None else format(score, form)


def interval_text(interval: Interval | None, form: str = "+.3f", factor: float = 1) -> str:
    """An interval as tables show it.

    >>> interval_text(Interval(0.25, 0.125, 0.5))
    '+0.250 (+0.125 to +0.500)'
    """
    if interval is None:
        return ""
    value, low, high = (format(factor * getattr(interval, part), form) for part in PARTS)
    return f"{value} ({low} to {high})"


def draw_sizes(results: Results, path: Path) -> None:
    """Size against the score that lines are compared by, one point a line, for light and for dark
    pages (``draw_both``).

    Raises:
        InputError: when no line has the score.
    """
    name = first_score(results.lines)
    kinds = [(one, one.facts.row) for one in results.lines if name in one.scores]
    shown = [(line, kind) for line, kind in kinds if kind is not None]
    if not shown:
        raise InputError(f"--sizes {path}: no line has the score {name}")
    labels = short_labels([(line.label, kind) for line, kind in shown])
    dots = [
        Dot(
            line.label,
            label,
            kind,
            line.size.memory_mib,
            line.scores[name],
            ms=line.timing.inference_ms,
            guessing=line.guessing,
        )
        for (line, kind), label in zip(shown, labels, strict=True)
    ]
    draw_both(chart(name, dots), path)
