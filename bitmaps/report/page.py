"""``results.html``: the comparison as one file that needs no network, with the table, charts, and
what the models predict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from bitmaps.errors import InputError
from bitmaps.report.comparison import Comparison
from bitmaps.report.entries import KEPT, Entry
from bitmaps.report.findings import finding_of
from bitmaps.report.origins import about, origins_of
from bitmaps.report.palette import STYLES
from bitmaps.report.quality import quality_of
from bitmaps.report.terminal import accuracy_splits
from bitmaps.runs.analysis import Analysis, Guess, Sentence
from bitmaps.runs.files import replace_text
from bitmaps.runs.folder import read_analyses
from bitmaps.runs.records import measures
from bitmaps.vocabulary import RowKind, Task

TITLE = "Binarized transformers, compared"
NAMED = ("components", "values", "row")  # columns that every label has


@dataclass(frozen=True)
class Cell:
    """A cell of the table: its column, its text, and the number that sorts it."""

    name: str
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
    def kind(self) -> RowKind | None:
        return self.entry.kind

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


def write_page(comparison: Comparison, path: Path) -> list[PageLine]:
    """Write the page. Returns the lines of its table."""
    from bitmaps.report import charts  # altair takes a second to import

    lines = lines_of(comparison)
    analysed = [line for line in lines if line.analysis]
    analyses = [
        charts.Analysed(line.example, line.kind, line.analysis)
        for line in lines
        if line.analysis is not None and line.kind is not None
    ]
    figures = charts.figures_of(comparison, analyses)
    specs = json.dumps([one.specification for found in figures.values() for one in found])
    text = template().render(
        title=TITLE,
        finding=finding_of(comparison),
        about=about(comparison),
        quality=quality_of(comparison.comparable()),
        styles=STYLES,
        kinds=[kind for kind in STYLES if any(entry.kind is kind for entry in comparison.entries)],
        columns=comparison.columns,
        named=NAMED,
        kept=KEPT,
        kept_scores=kept_scores(comparison),
        lines=lines,
        remarks=heading_of_remarks(lines),
        mask_heading=mask_heading,
        analysed=analysed,
        sentences=sentences_of(analysed),
        figures=figures,
        specs=specs.replace("<", "\\u003c"),
        script=bundle() if any(figures.values()) else "",
        origins=origins_of(comparison),
    )
    replace_text(path, text)
    return lines


def kept_scores(comparison: Comparison) -> list[str]:
    """The headings of the scores whose share is in the column of what is kept."""
    names = dict.fromkeys(one.kept.score for one in comparison.entries if one.kept)
    return [measures()[name].heading for name in names]


def heading_of_remarks(lines: Sequence[PageLine]) -> str:
    """The heading of the column of verdicts and notes; empty if there are none."""
    if any(line.verdict for line in lines):
        return "predictions"
    return "remarks" if any(line.note for line in lines) else ""


def mask_heading(number: int, true: str | None) -> str:
    """What a column of guesses is about.

    >>> mask_heading(1, "cat"), mask_heading(2, None)
    ('mask 1, true: cat', 'mask 2')
    """
    return f"mask {number}" if true is None else f"mask {number}, true: {true}"


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bitmaps.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template("page.html")


def unbroken(text: str) -> str:
    """A text in which a number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=%|MiB|times)|(?<=±) | (?=±)", "\N{NO-BREAK SPACE}", text)


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
            Cell(name, text, entry.get(name) if column.format else None, bool(column.format))
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


def sentences_of(lines: Sequence[PageLine]) -> list[FilledSentence]:
    """Every sentence that some model was shown, with the guesses of each."""
    found: dict[str, FilledSentence] = {}
    for line in lines:
        for sentence in line.analysis.sentences if line.analysis else ():
            positions = sorted(token.position for token in sentence.masked)
            key = json.dumps([sentence.pieces, positions])
            trues = [token.true for token in sentence.masked]
            filled = found.setdefault(key, FilledSentence(pieces_of(sentence), trues, []))
            filled.models.append((line.example, [token.predictions for token in sentence.masked]))
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
