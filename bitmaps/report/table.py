"""The table of a set of runs: in the terminal, and as CSV, Markdown and a picture."""

from __future__ import annotations

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitmaps.command.schema import GROUPS
from bitmaps.errors import InputError
from bitmaps.runs.folder import Row, read_metrics, read_rows

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
MEASURES = [name for name, (_, form) in COLUMNS.items() if form]  # the five of the comparison
VALUE_SETS = {"01": "{0,1}", "pm1": "{-1,1}", None: ""}
ROWS = ("unbinarized", "naive", "calibrated", "trained", "packed")
# columns of their own where rows differ in them
TIMED = ("dtype", "device", "threads", "inference_batch", "inference_length")
WHERE = ("model", "weights", "data", "split", "limit", "mask_seed", "mask_sets", *TIMED)
# the same where rows of one kind do: an untrained row has no recipe
HOW = (
    "scope",
    "recipe",
    "loss",
    "embeddings",
    "activations",
    "one_bit_inputs",
    "calibrated_on",
    "steps",
)
# what differs between two measurements of one row
MEASURED = (
    "run",
    "command",
    "commit",
    "versions",
    "inference_ms",
    "inference_masked_ms",
    "inference_repeats",
)
# two rows that differ here were scored on other text, and are not comparable
TEXT = ("data", "split", "limit", "mask_seed", "mask_sets", "masked_tokens")


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


def run_folders(folder: Path) -> list[Path]:
    """The runs in a folder: itself if it is one, else the folders right below it (a sweep's jobs), in the order of their names.

    Raises:
        InputError: when there is no such folder, or it holds no run.
    """
    if (folder / "metrics.json").is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: a run or a sweep is wanted")
    found = sorted(
        (f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")),
        key=lambda f: (len(f.name), f.name),
    )
    runs = {
        f for f in found if any((f / name).is_file() for name in ("metrics.json", "config.yaml"))
    }
    found = [
        f for f in found if f in runs or not (f / "results.html").is_file()
    ]  # a report is none
    if not runs:
        raise InputError(f"{folder} holds no results: neither it nor a folder in it is a run")
    return found


def rows_of(folder: Path) -> list[Row]:
    """The rows of a run folder, with their ``settings`` as fields too; one that failed, is not finished or cannot be read is a
    row that says so."""
    rows: list[Row]
    try:
        metrics = read_metrics(folder)
        rows = (
            [{"status": "ok"} | row for row in read_rows(folder)]
            if metrics["status"] == "ok"
            else [metrics]
        )
    except InputError as error:
        rows = [{"status": "failed", "error": str(error)}]
    return [row | row.get("settings", {}) | {"run": str(folder)} for row in rows]


def collect(folders: list[Path]) -> list[Row]:
    """The rows of these runs in order, each with the ``run`` that it is of. What several runs came to alike stands there once,
    the others ``also``: the unbinarized and the naive model beside their own row, whatever their seed, and what was run twice."""
    unique: dict[str, Row] = {}
    for folder in folders:
        for row in rows_of(folder):
            passed_over = (
                MEASURED if row.get("row") not in ("unbinarized", "naive") else (*MEASURED, "seed")
            )
            same = {name: value for name, value in row.items() if name not in passed_over}
            kept = unique.setdefault(
                json.dumps(same, sort_keys=True) if row["status"] == "ok" else str(folder), row
            )
            if kept is not row:
                kept.setdefault("also", []).append(row)
    return sorted(unique.values(), key=order)


def told_by(row: Row) -> Row:
    """What tells a row from all others, those of other seeds aside. How it was timed does if it was."""
    names = dict.fromkeys(("row", "components", "values", "scale", *HOW, *WHERE, *TEXT))
    passed_over = () if row.get("inference_ms") is not None else TIMED
    return {name: row.get(name) for name in names if name not in passed_over} | (
        row.get("settings") or {}
    )


def settings_of(rows: list[Row]) -> list[str]:
    """What was set by its key in any of these."""
    return list(dict.fromkeys(name for row in rows for name in row.get("settings") or ()))


def pooled(rows: list[Row]) -> list[Row]:
    """The rows, with those that differ in their seed alone as one: the mean of each measure, its standard deviation over the seeds
    (n - 1) as ``deviation``, and the rows themselves as ``seeds``."""
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        facts = told_by(row)
        if row["status"] != "ok":
            facts["alone"] = number
        # one that was run again with a seed that is there, and came to something else, is another row
        facts["again"] = 0
        while row.get("seed") in (other.get("seed") for other in groups.get(json.dumps(facts), ())):
            facts["again"] += 1
        groups.setdefault(json.dumps(facts), []).append(row)
    return [group[0] if len(group) == 1 else mean_of(group) for group in groups.values()]


def mean_of(rows: list[Row]) -> Row:
    measured = {name: [row[name] for row in rows if row.get(name) is not None] for name in MEASURES}
    return rows[0] | {
        "seed": ", ".join(str(row["seed"]) for row in rows),
        "seeds": rows,
        "deviation": {
            name: statistics.stdev(found) for name, found in measured.items() if len(found) > 1
        },
        **{name: statistics.mean(found) if found else None for name, found in measured.items()},
    }


def notes(rows: list[Row]) -> list[str]:
    """What has to be known of each row beside its numbers: that there are none, and why, or that it cannot be compared with the
    others, because it was scored on another text."""
    usual = usual_text(rows)
    found = []
    for row in rows:
        if row["status"] == "failed":
            found.append(str(row.get("error")))
        elif row["status"] != "ok":
            found.append(f"no result yet: {row['run']} is still running, or was stopped")
        else:
            other = {
                name: value for name, value in text_of(row).items() if usual.get(name) != value
            }
            found.append(f"not comparable: scored on {in_words(other)}" if other else "")
    return found


def usual_text(rows: list[Row]) -> Row:
    """What most rows were scored on."""
    texts = [json.dumps(text_of(row)) for row in rows if row["status"] == "ok"]
    usual: Row = json.loads(statistics.mode(texts)) if texts else {}
    return usual


def text_of(row: Row) -> Row:
    """What a row was scored on."""
    return {name: row.get(name) for name in TEXT}


def in_words(text: Row) -> str:
    """What was scored on, such as it is in ``text_of``.

    >>> in_words({"data": "wiki", "limit": None, "mask_seed": 481})
    'data wiki, limit none, mask seed 481'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {'none' if value is None else value}"
        for name, value in text.items()
    )


def columns(rows: list[Row]) -> dict[str, tuple[str, str]]:
    """Field -> heading and format: what tells the rows apart, then those of the blog post, without a measure that no row has."""
    kinds = {row.get("row") for row in rows}
    timed = [row for row in rows if row.get("inference_ms") is not None]

    def told_by_components(row: Row) -> bool:
        """Whether the word table is stored as the components say."""
        words = (
            "bit"
            if row.get("components") == "all" or "embeddings" in str(row.get("components"))
            else "fp32"
        )
        return row.get("embeddings") in (words, None)

    def differ(name: str, rows: list[Row]) -> bool:
        return len({json.dumps(row.get(name)) for row in rows} - {"null"}) > 1

    varying = [name for name in WHERE if differ(name, timed if name in TIMED else rows)]
    varying += [
        name
        for name in (*HOW, *settings_of(rows), "seed")
        if any(differ(name, [row for row in rows if row.get("row") == kind]) for kind in kinds)
        and not (name == "embeddings" and all(map(told_by_components, rows)))
    ]
    if any("deviation" in row for row in rows) and "seed" not in varying:
        varying.append("seed")
    missing = {name for name in MEASURES if all(row.get(name) is None for row in rows)}
    return {name: (name.replace("_", " "), "") for name in varying} | {
        n: c for n, c in COLUMNS.items() if n not in missing
    }


def cells(row: Row, names: dict[str, tuple[str, str]]) -> list[str]:
    """What stands in the table: a string a column. A row without scores has its status."""
    deviation = row.get("deviation", {})
    texts = []
    for name, (_, form) in names.items():
        value = row.get(name)
        if name == "values":
            texts.append(VALUE_SETS.get(value, str(value)))
        elif name == "row" and row["status"] != "ok":
            texts.append(row["status"])
        elif name == "row" and row.get("scale") not in (None, "none"):
            texts.append(f"{value}, scale {row['scale']}")
        elif name in deviation:
            texts.append(f"{value:{form}} ± {deviation[name]:{form}}")
        else:
            texts.append("" if value is None else format(value, form))
    return texts


def labels(rows: list[Row]) -> list[str]:
    """What tells each row from the others, in one line, as short as can be: components, values and kind, and of what else was run
    only that in which two that would be called alike differ. What was scored on other text than most is called so."""
    usual = usual_text(rows)
    found = []
    for row in rows:
        kind = row["row"] if row["status"] == "ok" else row["status"]
        texts = [row.get("components"), VALUE_SETS.get(row.get("values"), row.get("values")), kind]
        other_text = row["status"] == "ok" and text_of(row) != usual
        found.append(" ".join(filter(None, texts)) + (", other text" if other_text else ""))
    for name in ("scale", *WHERE, *HOW, *settings_of(rows), "seed", "run"):
        values: dict[str, set[str]] = defaultdict(set)
        for label, row in zip(found, rows, strict=True):
            values[label].add(json.dumps(row.get(name)))
        found = [
            f"{label}, {name.replace('_', ' ')} {row[name]}"
            if len(values[label]) > 1 and row.get(name) is not None
            else label
            for label, row in zip(found, rows, strict=True)
        ]
    return found


def remarks(rows: list[Row]) -> list[str]:
    """The notes that there are, each after its row's label."""
    return [
        f"{label}: {note}" for label, note in zip(labels(rows), notes(rows), strict=True) if note
    ]


def console() -> Console:
    found = Console()
    return Console(width=None if found.is_terminal else 160)  # a log file is not 80 characters wide


def print_table(rows: list[Row]) -> None:
    rows, table = pooled(rows), Table()
    names = columns(rows)
    for heading, form in names.values():
        table.add_column(
            heading, justify="right" if form else "left", overflow="fold", no_wrap=bool(form)
        )
    for row in rows:
        table.add_row(*cells(row, names))
    console().print(table)
    for remark in remarks(rows):
        console().print(remark, markup=False, highlight=False)


def splits(analysis: dict[str, Any]) -> Iterator[tuple[str, float | None]]:
    """The accuracies that an error analysis splits by: what of, and how much; ``None`` where there was no such token."""
    names = {"mask": "at [MASK]", "random": "random piece", "unchanged": "unchanged"}
    for kind, found in analysis["by_input"].items():
        yield names[kind], found["accuracy"]
    lowest = [found["at_least"] for found in analysis["by_frequency"]]
    for low, high, found in zip(lowest, [*lowest[1:], None], analysis["by_frequency"], strict=True):
        yield (f"{low}-{high - 1} times" if high else f"{low}+ times"), found["accuracy"]


def print_analyses(analyses: dict[str, Any]) -> None:
    """What each model predicts; the accuracy split by what stood in a token's place and by how often it is in the text."""
    table = Table(title="what is predicted", title_justify="left")
    for heading in (
        "row",
        "most frequent",
        "distinct",
        "confidence",
        *(n for n, _ in splits(next(iter(analyses.values())))),
    ):
        table.add_column(heading, overflow="fold")
    for row, found in analyses.items():
        most = " ".join(f"{p['token']} {100 * p['share']:.1f}%" for p in found["predicted"][:5])
        sure = f"{found['confidence']['mean']:.3f} ± {found['confidence']['std']:.3f}"
        split = ["" if share is None else f"{share:.4f}" for _, share in splits(found)]
        table.add_row(row, Text(most), str(found["distinct"]), sure, *split)
    console().print(table)
    for row, found in analyses.items():
        console().print(f"{row}: {found['verdict']}", markup=False, highlight=False)


def print_sentences(analyses: dict[str, Any], count: int | None) -> None:
    """The first so many sentences, or all: for each masked token the true one, and the five that each model finds most probable."""
    shown = [found["sentences"][:count] for found in analyses.values()]
    for same in zip(*shown, strict=True):
        table = Table(title=Text(same[0]["text"]), title_justify="left")
        for heading in ("token", "true", *analyses):
            table.add_column(heading, overflow="fold")
        for masked in zip(*(sentence["masked"] for sentence in same), strict=True):
            guesses = [
                " ".join(f"{p['token']} {p['probability']:.2f}" for p in found["predictions"])
                for found in masked
            ]
            first = masked[0]
            table.add_row(
                str(first["position"] + 1), Text(first["true"] or "?"), *map(Text, guesses)
            )
        console().print(table)


def markdown(rows: list[Row]) -> str:
    rows = pooled(rows)
    names = columns(rows)
    headings = [heading for heading, _ in names.values()]
    rules = ["---:" if form else "---" for _, form in names.values()]
    lines = [
        headings,
        rules,
        *([c.replace("|", "\\|").replace("\n", " ") for c in cells(row, names)] for row in rows),
    ]
    return "".join(
        [
            *(f"| {' | '.join(line)} |\n" for line in lines),
            *(f"\n{remark}\n" for remark in remarks(rows)),
        ]
    )


def write_csv(rows: list[Row], path: Path) -> None:
    """Every plain field of every row, at full precision."""
    names = list(COLUMNS) + sorted(
        {n for row in rows for n, v in row.items() if not isinstance(v, dict | list)} - set(COLUMNS)
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def draw(rows: list[Row], path: Path) -> None:
    """One bar chart a measure, one bar a row of those that can be compared; no file if there is nothing to draw."""
    from matplotlib.figure import Figure  # takes a second, so only when there is something to draw

    rows = pooled(rows)
    usual = usual_text(rows)
    rows = [row for row in rows if row["status"] == "ok" and text_of(row) == usual]
    measures = [name for name in MEASURES if any(row.get(name) is not None for row in rows)]
    if not measures:
        path.unlink(missing_ok=True)  # of other rows
        return
    figure = Figure(figsize=(3.2 * len(measures) + 3, 0.35 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, measures, strict=True):
        errors = [row.get("deviation", {}).get(name, 0.0) for row in rows]
        lengths = [row.get(name) or 0.0 for row in rows]
        bars = axis.barh(
            range(len(rows)), lengths, tick_label=labels(rows), xerr=errors if any(errors) else None
        )
        axis.bar_label(
            bars,
            [f"{row[name]:.4g}" if row.get(name) is not None else "" for row in rows],
            padding=2,
            fontsize=8,
        )
        axis.set_title(COLUMNS[name][0])
        axis.margins(x=0.25)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def write(rows: list[Row], folder: Path) -> list[str]:
    """``results.csv``, ``results.md`` and ``results.png`` of a sweep; gives the names of those that are there."""
    write_csv(rows, folder / "results.csv")
    (folder / "results.md").write_text(markdown(rows), encoding="utf-8")
    draw(rows, folder / "results.png")
    return [
        name for name in ("results.csv", "results.md", "results.png") if (folder / name).is_file()
    ]
