"""``results.html``: the comparison as one file that needs no network, with the table, charts, and
what the models predict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from bitmaps.errors import InputError
from bitmaps.report.comparison import Comparison, Entry, in_words
from bitmaps.report.terminal import accuracy_splits
from bitmaps.runs.analysis import Analysis, Guess, Sentence
from bitmaps.runs.files import replace_text
from bitmaps.runs.folder import read_analyses
from bitmaps.runs.records import measures
from bitmaps.vocabulary import Task

TITLE = "Binarized transformers, compared"


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its text, and the number that sorts it."""

    text: str
    value: Any
    numeric: bool


@dataclass(frozen=True)
class PageLine:
    """A line of the table.

    Attributes:
        label: what the entry is called.
        example: the same with the seed whose predictions are shown.
        analysis: of that seed; ``None`` where there is none.
        verdict: of the analysis, in words.
        note: what else must be known of the entry.
    """

    entry: Entry
    label: str
    example: str
    cells: Sequence[Cell]
    analysis: Analysis | None
    verdict: str
    note: str

    @property
    def splits(self) -> list[tuple[str, float | None]]:
        return list(accuracy_splits(self.analysis)) if self.analysis else []


@dataclass(frozen=True)
class Piece:
    """A piece of a sentence: whether it continues a word, and its number if it is masked."""

    text: str
    joined: bool
    number: int | None


@dataclass(frozen=True)
class FilledSentence:
    """A sentence, its true tokens, and for each model its guesses at each masked token."""

    pieces: Sequence[Piece]
    trues: Sequence[str | None]
    models: list[tuple[str, Sequence[Sequence[Guess]]]]


@dataclass(frozen=True)
class Origin:
    """Runs with the same commit, versions and machine."""

    commit: str | None
    versions: Mapping[str, str]
    device: str | None
    threads: int | None
    runs: list[Entry]


def write_page(comparison: Comparison, path: Path) -> list[PageLine]:
    """Write the page. Returns the lines of its table."""
    from bitmaps.report import charts  # altair takes a second to import

    lines = lines_of(comparison)
    analyses = [(line.example, line.analysis) for line in lines if line.analysis]
    sections = charts.specifications(comparison, analyses)
    specs = json.dumps([spec for section in sections.values() for spec in section])
    text = template().render(
        title=TITLE,
        scored_on=in_words({n: value for n, value in comparison.text.items() if value is not None}),
        front=charts.pareto_front(comparison.comparable()),
        headline=charts.headline_of(comparison.comparable()),
        lower_is_better=measures()[charts.headline_of(comparison.comparable())].lower_is_better,
        columns=comparison.columns,
        lines=lines,
        analysed=[line for line in lines if line.analysis],
        sentences=sentences_of(analyses),
        charts=sections,
        specs=specs.replace("<", "\\u003c"),
        script=bundle() if any(sections.values()) else "",
        origins=origins_of(comparison),
    )
    replace_text(path, text)
    return lines


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bitmaps.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, as a script inside the page."""
    import vl_convert  # loads a JavaScript engine

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def lines_of(comparison: Comparison) -> list[PageLine]:
    lines = []
    entries = zip(comparison.entries, comparison.labels, comparison.notes, strict=True)
    for entry, label, note in entries:
        analysis, missing = analysis_of(entry)
        seed = f"seed {entry.facts.seed}" if entry.seeds else ""  # the first of several is shown
        columns = comparison.columns.items()
        cells = [
            Cell(text, entry.get(name) if column.format else None, bool(column.format))
            for text, (name, column) in zip(comparison.cells(entry), columns, strict=True)
        ]
        verdict = ": ".join(filter(None, (seed, analysis.verdict))) if analysis else ""
        example = ", ".join(filter(None, (label, seed)))
        notes = "; ".join(filter(None, (note, missing)))
        lines.append(PageLine(entry, label, example, cells, analysis, verdict, notes))
    return lines


def analysis_of(entry: Entry) -> tuple[Analysis | None, str]:
    """The error analysis of a row, or ``None`` and why there is none."""
    if entry.kind is None or entry.facts.task is not Task.masked_lm:
        return None, ""
    try:
        return read_analyses(entry.run)[entry.kind], ""
    except (InputError, KeyError):
        return None, "no error analysis in its folder: evaluate it again"


def origins_of(comparison: Comparison) -> list[Origin]:
    """What made the rows."""
    rows = [one for entry in comparison.entries for one in entry.single]
    runs = {run.run: run for row in rows for run in (row, *row.also)}
    found: dict[str, Origin] = {}
    for run in runs.values():
        commit, versions = run.facts.commit, run.facts.versions
        device, threads = run.get("device"), run.get("threads")
        key = json.dumps([commit, dict(versions), device, threads], sort_keys=True)
        found.setdefault(key, Origin(commit, versions, device, threads, [])).runs.append(run)
    return list(found.values())


def sentences_of(analyses: Sequence[tuple[str, Analysis]]) -> list[FilledSentence]:
    """Every sentence that some model was shown, with the guesses of each."""
    found: dict[str, FilledSentence] = {}
    for label, analysis in analyses:
        for sentence in analysis.sentences:
            positions = sorted(token.position for token in sentence.masked)
            key = json.dumps([sentence.pieces, positions])
            trues = [token.true for token in sentence.masked]
            filled = found.setdefault(key, FilledSentence(pieces_of(sentence), trues, []))
            filled.models.append((label, [token.predictions for token in sentence.masked]))
    return list(found.values())


def pieces_of(sentence: Sentence) -> list[Piece]:
    numbers = {token.position: number for number, token in enumerate(sentence.masked, 1)}
    return [
        Piece(
            text=piece.removeprefix("##") if place else piece,
            joined=place > 0 and piece.startswith("##"),
            number=numbers.get(place),
        )
        for place, piece in enumerate(sentence.pieces)
    ]
