"""The comparison as files: ``results.csv``, ``results.md`` and ``results.png``."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitmaps.errors import as_text
from bitmaps.report.comparison import Comparison
from bitmaps.runs.files import replace_text, replaced
from bitmaps.runs.records import columns, measures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet takes for a formula
MARKDOWN = re.compile(
    r"[\\`*\[\]~|$]|(?<![^\W_])_|_(?![^\W_])"
)  # what Markdown does not take for text
BLOCK = re.compile(r"^(\d*)([.)#=+-])")  # or does not at the start of a line


def write_results(comparison: Comparison, folder: Path) -> list[str]:
    """Write CSV, Markdown and a picture, and give the names of the files. There is no picture if
    no row can be drawn."""
    write_csv(comparison, folder / "results.csv")
    replace_text(folder / "results.md", markdown(comparison))
    names = ["results.csv", "results.md"]
    picture = folder / "results.png"
    if comparison.comparable():
        draw_measures(comparison, picture)
        return [*names, picture.name]
    picture.unlink(missing_ok=True)  # it shows other rows
    return names


def write_csv(comparison: Comparison, path: Path) -> None:
    """Every plain field of every row at full precision, one line a seed. A text that a spreadsheet
    would run as a formula gets an apostrophe in front."""
    rows = [one.fields for entry in comparison.entries for one in entry.single]
    plain = {name for row in rows for name, v in row.items() if not isinstance(v, dict | list)}
    names = [*columns(), *sorted(plain - set(columns()))]
    lines: list[list[Any]] = [names, *([row.get(name) for name in names] for row in rows)]
    with (
        replaced(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        csv.writer(file).writerows([harmless(value) for value in line] for line in lines)


def harmless(value: Any) -> Any:
    """A value that no spreadsheet runs. Numbers stay numbers."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown(comparison: Comparison) -> str:
    """The table, and below it the remarks."""
    headings = [(column.heading, bool(column.format)) for column in comparison.columns.values()]
    lines = [comparison.cells(entry) for entry in comparison.entries]
    remarks = [BLOCK.sub(r"\1\\\2", plain(remark)) for remark in comparison.remarks()]
    return markdown_table(headings, lines) + "".join(f"\n{remark}\n" for remark in remarks)


def plain(text: str) -> str:
    """Markdown that shows this text as it is, on one line.

    >>> plain("a|b <c>")
    'a\\\\|b &lt;c&gt;'
    """
    return MARKDOWN.sub(r"\\\g<0>", html.escape(as_text(text), quote=False))


def markdown_table(headings: Sequence[tuple[str, bool]], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        headings: each with whether its column holds numbers, which are aligned to the right.
        lines: as many cells each.
    """
    rules = ["---:" if numeric else "---" for _, numeric in headings]
    table = [
        [plain(heading) for heading, _ in headings],
        rules,
        *([plain(text) for text in line] for line in lines),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def draw_measures(comparison: Comparison, path: Path) -> None:
    """One bar chart a measure, one bar an entry that can be compared."""
    from matplotlib import rc_context  # takes a second to import

    with rc_context({"text.parse_math": False}), replaced(path) as draft:
        figure_of(comparison).savefig(draft, dpi=120, format="png")


def figure_of(comparison: Comparison) -> Figure:
    from matplotlib.figure import Figure

    labels, entries = zip(*comparison.comparable(), strict=True)
    shown = {
        name: column
        for name, column in measures().items()
        if any(entry.get(name) is not None for entry in entries)
    }
    size = (3.2 * len(shown) + 3, 0.35 * len(entries) + 1.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, (name, column) in zip(axes, shown.items(), strict=True):
        values = [entry.get(name) for entry in entries]
        spread = [entry.deviation.get(name, 0.0) for entry in entries]
        bars = axis.barh(
            range(len(entries)),
            [value or 0.0 for value in values],
            tick_label=labels,
            xerr=spread if any(spread) else None,
        )
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        axis.bar_label(bars, numbers, padding=2, fontsize=8)
        axis.set_title(column.heading)
        axis.margins(x=0.25)
    axes[0].invert_yaxis()
    return figure
