"""The results of one machine: their file and their tables."""

from __future__ import annotations

import importlib.util
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean

import torch
from rich.console import Console
from rich.table import Table

from bitmaps.bench import linear
from bitmaps.bench.timing import Ratio
from bitmaps.errors import InputError
from bitmaps.packed.kernels import REFERENCE, kernels


@dataclass(frozen=True)
class Results:
    """Rows measured on one machine. The fields are the keys of the JSON file.

    Attributes:
        machine: the processor and the versions that the rows belong to (``machine``).
        rows: in the order of measurement.
    """

    machine: str
    rows: list[Ratio]


@dataclass(frozen=True)
class Mean:
    """The geometric mean of the ratios of one contender over the shapes of matrices."""

    tokens: str
    threads: int
    contender: str
    ratio: float


def machine() -> str:
    """The architecture, the instruction set of torch and of the kernels, and the versions."""
    found = kernels()
    packages = ["torch", "transformers"]
    if importlib.util.find_spec("onnxruntime"):
        packages.append("onnxruntime")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, "
        f"kernels {found.name if found else REFERENCE}, "
        f"{versions}, Python {platform.python_version()}"
    )


def read(path: Path | None) -> Results:
    """The results in a file, to be continued; no rows without a file.

    Raises:
        InputError: when the file holds something else, or results of another machine.
    """
    here = machine()
    if path is None or not path.exists():
        return Results(here, [])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Ratio(**row) for row in content["rows"]]
        measured = content["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--output {path} exists, and is no result of this command: {error}"
        ) from error
    if measured != here:
        raise InputError(f"--output {path} is from {measured}, and this machine is {here}")
    return Results(measured, rows)


def means(rows: list[Ratio]) -> list[Mean]:
    """The means over the shapes, for each number of tokens and of threads, and each contender."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        if row.part == linear.PART:
            _, tokens = row.what.split(", ")
            groups.setdefault((tokens, row.threads, row.contender), []).append(row.median)
    return [Mean(*key, geometric_mean(found)) for key, found in groups.items()]


def print_tables(results: Results) -> None:
    console = Console()
    console = Console(width=None if console.is_terminal else 140)
    console.print(table_of_rows(results))
    if found := means(results.rows):
        console.print(table_of_means(found))


def table_of_rows(results: Results) -> Table:
    table = Table(title=f"speed relative to the peer; {results.machine}", title_justify="left")
    for heading in ("work", "threads", "peer", "contender", "ratio", "quartiles", "peer ms", "ms"):
        words = heading in ("work", "peer", "contender")
        table.add_column(heading, justify="left" if words else "right")
    for row in results.rows:
        table.add_row(
            row.what,
            str(row.threads),
            row.peer,
            row.contender,
            f"{row.median:.2f}",
            f"{row.lower:.2f} - {row.upper:.2f}",
            f"{row.peer_ms:.3g}",
            f"{row.contender_ms:.3g}",
        )
    return table


def table_of_means(found: list[Mean]) -> Table:
    title = "matrices relative to torch fp32, geometric means over the shapes"
    table = Table(title=title, title_justify="left")
    for heading in ("tokens", "threads", "contender", "ratio"):
        table.add_column(heading)
    for mean in found:
        table.add_row(mean.tokens, str(mean.threads), mean.contender, f"{mean.ratio:.2f}")
    return table
