"""The table of a sweep: in the terminal, and as CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bitmaps.config import GROUPS
from bitmaps.errors import InputError
from bitmaps.runs import Row, read_metrics, read_rows

COLUMNS = {  # field -> heading and format
    "components": ("components", ""),
    "values": ("values", ""),
    "row": ("row", ""),
    "cross_entropy": ("CE", ".4f"),
    "accuracy": ("accuracy", ".4f"),
    "mrr": ("MRR", ".4f"),
    "inference_ms": ("ms", ".2f"),
    "memory_mib": ("MiB (pseudo)", ".1f"),
}
VALUE_SETS = {"01": "{0,1}", "pm1": "{-1,1}", None: ""}
ROWS = ("unbinarized", "naive", "calibrated", "trained", "packed")
# columns of their own where rows of one kind differ in them
VARYING = (
    "model", "weights", "data", "split", "limit", "scope", "recipe", "loss", "embeddings", "activations", "calibrated_on",
    "steps", "seed", "mask_seed", "mask_sets", "dtype",
)  # fmt: skip
# what differs between two measurements of one reference row
MEASURED = ("command", "seed", "inference_ms", "inference_masked_ms", "inference_repeats")


def order(row: Row) -> tuple[Any, ...]:
    """The blog post's: by group, within it by value set; then untrained before trained; anything else after."""
    groups, rows, values = list(GROUPS), list(ROWS), list(VALUE_SETS)

    def place(value: Any, known: list[Any]) -> int:
        return known.index(value) if value in known else len(known)

    components = row.get("components")
    return (
        str(row.get("model")), str(row.get("data")), place(components, groups), str(components),
        place(row.get("values"), values), place(row.get("row"), rows), str(row.get("scale")), row.get("seed") or 0,
    )  # fmt: skip


def rows_of(folder: Path) -> list[Row]:
    """The rows of a run folder; one that failed, is not finished or cannot be read is a row that says so."""
    try:
        metrics = read_metrics(folder)
        return [{"status": "ok"} | row for row in read_rows(folder)] if metrics["status"] == "ok" else [metrics]
    except InputError as error:
        return [{"status": "failed", "error": str(error)}]


def collect(folders: list[Path]) -> list[Row]:
    """The rows of these runs in order. What several runs have beside their own row, the unbinarized and the naive model, stands
    there once; so does the row that a job of a sweep took over from another one."""
    unique: dict[str, Row] = {}
    for folder in folders:
        *references, own = rows_of(folder)
        for row in references:
            unique.setdefault(json.dumps({k: v for k, v in row.items() if k not in MEASURED}), row)
        unique.setdefault(json.dumps([own, None if own["status"] == "ok" else str(folder)]), own)
    return sorted(unique.values(), key=order)


def columns(rows: list[Row]) -> dict[str, tuple[str, str]]:
    """Field -> heading and format: those of the blog post, after what else tells the rows apart."""
    kinds = {row.get("row") for row in rows}

    def told_by_components(row: Row) -> bool:
        """Whether the word table is stored as the components say."""
        words = "bit" if row.get("components") == "all" or "embeddings" in str(row.get("components")) else "fp32"
        return row.get("embeddings") in (words, None)

    varying = [
        name
        for name in VARYING
        if any(len({row.get(name) for row in rows if row.get("row") == kind} - {None}) > 1 for kind in kinds)
        and not (name == "embeddings" and all(map(told_by_components, rows)))
    ]
    return {name: (name.replace("_", " "), "") for name in varying} | COLUMNS


def cells(row: Row, names: dict[str, tuple[str, str]]) -> list[str]:
    """What stands in the table: a string a column. A row without scores has its status and error instead."""
    if row["status"] != "ok":
        row = row | {"row": f"{row['status']}: {row.get('error') or 'no result yet'}"}
    texts = []
    for name, (_, form) in names.items():
        value = row.get(name)
        if name == "values":
            texts.append(VALUE_SETS.get(value, str(value)))
        elif name == "row" and row.get("scale") not in (None, "none") and row["status"] == "ok":
            texts.append(f"{value}, scale {row['scale']}")
        else:
            texts.append("" if value is None else format(value, form))
    return texts


def print_table(rows: list[Row], title: str | None = None) -> None:
    table = Table(title=title, title_justify="left")
    names = columns(rows)
    for heading, form in names.values():
        table.add_column(heading, justify="right" if form else "left", overflow="fold", no_wrap=bool(form))
    for row in rows:
        table.add_row(*cells(row, names))
    console = Console()
    Console(width=None if console.is_terminal else 110).print(table)  # a log file is not 80 characters wide


def markdown(rows: list[Row]) -> str:
    names = columns(rows)
    headings = [heading for heading, _ in names.values()]
    rules = ["---:" if form else "---" for _, form in names.values()]
    lines = [headings, rules, *([c.replace("|", "\\|").replace("\n", " ") for c in cells(row, names)] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_csv(rows: list[Row], path: Path) -> None:
    """Every plain field of every row, at full precision."""
    names = list(COLUMNS) + sorted(
        {n for row in rows for n, v in row.items() if not isinstance(v, dict)} - set(COLUMNS)
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[Row], path: Path) -> None:
    """One bar chart a measure, one bar a row."""
    from matplotlib.figure import Figure  # takes a second, so only when there is something to draw

    rows = [row for row in rows if row["status"] == "ok"]
    measures = [name for name, (_, form) in COLUMNS.items() if form and any(row.get(name) is not None for row in rows)]
    if not measures:
        return
    names = {name: column for name, column in columns(rows).items() if not column[1]}
    labels = [" ".join(filter(None, cells(row, names))) for row in rows]
    figure = Figure(figsize=(3.2 * len(measures) + 3, 0.35 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, measures, strict=True):
        bars = axis.barh(range(len(rows)), [row.get(name) or 0.0 for row in rows], tick_label=labels)
        axis.bar_label(
            bars, [f"{row[name]:.4g}" if row.get(name) is not None else "" for row in rows], padding=2, fontsize=8
        )
        axis.set_title(COLUMNS[name][0])
        axis.margins(x=0.25)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def write_report(rows: list[Row], folder: Path) -> None:
    """``results.csv``, ``results.md`` and ``results.png`` of a sweep."""
    write_csv(rows, folder / "results.csv")
    (folder / "results.md").write_text(markdown(rows), encoding="utf-8")
    draw(rows, folder / "results.png")
