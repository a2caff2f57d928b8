"""Size against quality: what the first chart of the page, ``results.png`` and ``--sizes`` draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bitmaps.report.axes import Axis, axis_of
from bitmaps.report.entries import Entry
from bitmaps.runs.records import headline, measures
from bitmaps.vocabulary import RowKind

Labelled = Sequence[tuple[str, Entry]]
"""Entries, each after its label."""


@dataclass(frozen=True)
class Dot:
    """A model.

    Attributes:
        label: its whole name.
        short: without what colour and shape say, if that is enough (``short_labels``).
        mib: its size.
        score: its quality.
        spread: the standard deviation of the score over seeds, or 0.
        ms: milliseconds a sequence; ``None`` where it was not timed.
        guessing: the score of who only guesses; ``None`` where it is not known.
    """

    label: str
    short: str
    kind: RowKind
    mib: float
    score: float
    spread: float = 0.0
    ms: float | None = None
    guessing: float | None = None


@dataclass(frozen=True)
class Quality:
    """A chart of models.

    Attributes:
        name: of the score.
        dots: the models, the most important labels first: those on the front, and then those
            furthest on the way to a packed model.
        front: the best ones, from the smallest to the largest.
        guessing: the scores of who only guesses; several if models choose among differently many
            tokens.
    """

    name: str
    dots: Sequence[Dot]
    front: Sequence[Dot]
    guessing: Sequence[float]

    @property
    def title(self) -> str:
        return measures()[self.name].title

    @property
    def lower_is_better(self) -> bool:
        return measures()[self.name].lower_is_better

    @property
    def is_timed(self) -> bool:
        return any(dot.ms is not None for dot in self.dots)

    @property
    def sizes(self) -> Axis:
        return axis_of([dot.mib for dot in self.dots], log=True)

    @property
    def scores(self) -> Axis:
        ends = [dot.score + sign * dot.spread for dot in self.dots for sign in (-1, 1)]
        return axis_of([*ends, *self.guessing], log=self.lower_is_better)


def quality_of(entries: Labelled) -> Quality | None:
    """The chart of these entries; ``None`` if none has a score."""
    name = headline_of(entries)
    shorts = short_labels([(label, entry.kind) for label, entry in entries])
    found = [
        Dot(
            label,
            short,
            entry.kind,
            entry.get("memory_mib"),
            entry.get(name),
            entry.deviation.get(name, 0.0),
            entry.get("inference_ms"),
            entry.get("guessing"),
        )
        for (label, entry), short in zip(entries, shorts, strict=True)
        if entry.kind and entry.get(name) is not None
    ]
    return chart(name, found) if found else None


def chart(name: str, dots: Sequence[Dot]) -> Quality:
    front = pareto_front(dots, measures()[name].lower_is_better)
    kinds = list(RowKind)
    ordered = sorted(dots, key=lambda dot: (dot not in front, -kinds.index(dot.kind)))
    levels = sorted({dot.guessing for dot in dots if dot.guessing is not None})
    return Quality(name, ordered, front, levels)


def headline_of(entries: Labelled) -> str:
    """The score that is shown against the size."""
    return headline([entry.row for _, entry in entries if entry.row])


def short_labels(labelled: Sequence[tuple[str, RowKind | None]]) -> list[str]:
    """Labels without the kind of row, if that leaves all of them unique."""
    shorts = []
    for label, kind in labelled:
        start, found, end = label.partition(f" {kind}")
        is_plain = found and kind is RowKind.unbinarized
        shorts.append(f"{found.strip()}{end}" if is_plain else start + end)
    unique = len(set(shorts)) == len(shorts)
    return [
        short if unique or kind is RowKind.unbinarized else label
        for short, (label, kind) in zip(shorts, labelled, strict=True)
    ]


def beats(score: float, other: float | None, lower_is_better: bool) -> bool:
    """Whether a score is better than another one, or there is no other."""
    return other is None or (score < other if lower_is_better else score > other)


def pareto_front(dots: Sequence[Dot], lower_is_better: bool) -> list[Dot]:
    """The models that no other one beats: none is as good in both size and score, and better in
    one. The smallest comes first. Of equal ones, the first counts. Who is no better than guessing
    is no model to choose."""
    sign = 1 if lower_is_better else -1
    better = [dot for dot in dots if beats(dot.score, dot.guessing, lower_is_better)]
    front: list[Dot] = []
    for dot in sorted(better, key=lambda dot: (dot.mib, sign * dot.score)):
        if not front or sign * dot.score < sign * front[-1].score:
            front.append(dot)
    return front
