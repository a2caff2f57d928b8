"""The comparison as files: ``results.csv``, ``results.md`` and ``results.png``."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitmaps.errors import as_text
from bitmaps.report.comparison import Comparison, table_columns
from bitmaps.report.picture import draw
from bitmaps.report.quality import quality_of
from bitmaps.runs.files import replace_text, replaced

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
    if (quality := quality_of(comparison.comparable())) is not None:
        draw(quality, picture)
        return [*names, picture.name]
    picture.unlink(missing_ok=True)  # it shows other rows
    return names


def write_csv(comparison: Comparison, path: Path) -> None:
    """Every plain field of every row at full precision, one line a seed. A text that a spreadsheet
    would run as a formula gets an apostrophe in front."""
    rows = [one.fields for entry in comparison.entries for one in entry.single]
    plain = {name for row in rows for name, v in row.items() if not isinstance(v, dict | list)}
    names = [*table_columns(), *sorted(plain - set(table_columns()))]
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
