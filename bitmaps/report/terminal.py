"""The comparison and the error analyses in the terminal. Every name is text: no markup, no escape
sequence."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitmaps.errors import as_text
from bitmaps.report.comparison import Comparison
from bitmaps.report.findings import finding_of
from bitmaps.runs.analysis import Analysis
from bitmaps.vocabulary import RowKind

INPUTS = {"mask": "at [MASK]", "random": "random piece", "unchanged": "unchanged"}


def escape_missing_characters() -> None:
    """Let standard output show the number of a character that its encoding lacks."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Terminal(Console):
    """Standard output. If nobody reads it any more, the command goes on without printing."""

    def on_broken_pipe(self) -> None:
        with contextlib.suppress(OSError):  # of an output that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    escape_missing_characters()
    wide = None if Console().is_terminal else 160  # a log file is wider than 80 columns
    return Terminal(width=wide)


def say(line: str) -> None:
    """Print one line."""
    console().print(as_text(line), markup=False, highlight=False, soft_wrap=True)


def print_table(comparison: Comparison) -> None:
    table = Table()
    for column in comparison.columns.values():
        numeric = bool(column.format)
        table.add_column(
            Text(column.heading),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric,
        )
    for entry in comparison.entries:
        table.add_row(*map(Text, comparison.cells(entry)))
    console().print(table)
    for remark in comparison.remarks():
        console().print(remark, markup=False, highlight=False)


def print_finding(comparison: Comparison) -> None:
    for line in finding_of(comparison).lines:
        say(line)


def accuracy_splits(analysis: Analysis) -> Iterator[tuple[str, float | None]]:
    """The accuracies of the subsets of an error analysis, each with a heading; ``None`` where a
    subset is empty."""
    for kind, subset in analysis.by_input.items():
        yield INPUTS[kind], subset.accuracy
    lowest = [subset.at_least for subset in analysis.by_frequency]
    for low, high, subset in zip(lowest, [*lowest[1:], None], analysis.by_frequency, strict=True):
        yield (f"{low}-{high - 1} times" if high else f"{low}+ times"), subset.accuracy


def print_analyses(analyses: Mapping[RowKind, Analysis]) -> None:
    """What each model predicts, and its accuracy by the input at a masked token and by how often
    the true token occurs in the text."""
    table = Table(title="Predictions", title_justify="left")
    splits = [name for name, _ in accuracy_splits(next(iter(analyses.values())))]
    for heading in ("row", "most frequent", "distinct", "confidence", *splits):
        table.add_column(heading, overflow="fold")
    for kind, found in analyses.items():
        frequent = " ".join(
            f"{as_text(one.token)} {100 * one.share:.1f}%" for one in found.predicted[:5]
        )
        confidence = f"{found.confidence.mean:.3f} ± {found.confidence.std:.3f}"
        shares = ["" if share is None else f"{share:.4f}" for _, share in accuracy_splits(found)]
        table.add_row(kind, Text(frequent), str(found.distinct), confidence, *shares)
    console().print(table)
    for kind, found in analyses.items():
        console().print(f"{kind}: {as_text(found.verdict)}", markup=False, highlight=False)


def print_sentences(analyses: Mapping[RowKind, Analysis], count: int | None) -> None:
    """The first ``count`` sentences, or all: at each masked token the true one, and the most
    probable ones of each model."""
    for same in zip(*(found.sentences[:count] for found in analyses.values()), strict=True):
        table = Table(title=Text(as_text(same[0].text)), title_justify="left")
        for heading in ("token", "true", *analyses):
            table.add_column(heading, overflow="fold")
        for tokens in zip(*(sentence.masked for sentence in same), strict=True):
            guesses = [
                Text(
                    " ".join(
                        f"{as_text(one.token)} {one.probability:.2f}" for one in token.predictions
                    )
                )
                for token in tokens
            ]
            first = tokens[0]
            table.add_row(str(first.position + 1), Text(as_text(first.true or "?")), *guesses)
        console().print(table)
