"""The comparison as files: ``results.csv``, ``results.md`` and ``results.png``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from bitmaps.report.comparison import Comparison
from bitmaps.runs.records import columns, measures


def write_results(comparison: Comparison, folder: Path) -> list[str]:
    """Write CSV, Markdown and a picture, and give the names of the files. There is no picture if
    no row can be drawn."""
    write_csv(comparison, folder / "results.csv")
    (folder / "results.md").write_text(markdown(comparison), encoding="utf-8")
    names = ["results.csv", "results.md"]
    picture = folder / "results.png"
    if comparison.comparable():
        draw_measures(comparison, picture)
        return [*names, picture.name]
    picture.unlink(missing_ok=True)  # it shows other rows
    return names


def write_csv(comparison: Comparison, path: Path) -> None:
    """Every plain field of every row at full precision, one line a seed."""
    rows = [one.fields for entry in comparison.entries for one in entry.single]
    plain = {name for row in rows for name, v in row.items() if not isinstance(v, dict | list)}
    names = [*columns(), *sorted(plain - set(columns()))]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def markdown(comparison: Comparison) -> str:
    """The table, and below it the remarks."""
    headings = [(column.heading, bool(column.format)) for column in comparison.columns.values()]
    lines = [comparison.cells(entry) for entry in comparison.entries]
    remarks = "".join(f"\n{remark}\n" for remark in comparison.remarks())
    return markdown_table(headings, lines) + remarks


def markdown_table(headings: Sequence[tuple[str, bool]], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        headings: each with whether its column holds numbers, which are aligned to the right.
        lines: as many cells each.
    """
    rules = ["---:" if numeric else "---" for _, numeric in headings]
    escaped = ([text.replace("|", "\\|").replace("\n", " ") for text in line] for line in lines)
    table = [[heading for heading, _ in headings], rules, *escaped]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def draw_measures(comparison: Comparison, path: Path) -> None:
    """One bar chart a measure, one bar an entry that can be compared."""
    from matplotlib.figure import Figure  # takes a second to import

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
    figure.savefig(path, dpi=120)
