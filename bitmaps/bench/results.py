"""The results of one machine: their file and their tables."""

from __future__ import annotations

import importlib.util
import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean

import torch
from rich.console import Console
from rich.table import Table

from bitmaps.bench import linear
from bitmaps.bench.deployments import PEERS, openvino_precision
from bitmaps.bench.footprint import Footprint
from bitmaps.bench.quality import Quality
from bitmaps.bench.timing import Ratio
from bitmaps.errors import InputError
from bitmaps.packed.kernels import REFERENCE, kernels


@dataclass(frozen=True)
class Results:
    """Rows measured on one machine. The fields are the keys of the JSON file.

    Attributes:
        machine: the processor and the versions that the rows belong to (``machine``).
        rows: times, in the order of measurement.
        footprints: sizes and memory.
        qualities: scores.
    """

    machine: str
    rows: list[Ratio]
    footprints: list[Footprint] = field(default_factory=list)
    qualities: list[Quality] = field(default_factory=list)


@dataclass(frozen=True)
class Mean:
    """The geometric mean of the ratios of one contender over the shapes of matrices."""

    tokens: str
    threads: int
    contender: str
    ratio: float


def machine() -> str:
    """The architecture, the instruction set of torch and of the kernels, the versions, and the
    precision that OpenVINO chooses."""
    found = kernels()
    peers = {name for peer in PEERS for name in peer.packages}
    packages = ["torch", "transformers", *sorted(filter(importlib.util.find_spec, peers))]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    if "openvino" in packages:
        versions += f", OpenVINO in {openvino_precision()}"
    return (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, "
        f"kernels {found.name if found else REFERENCE}, "
        f"{versions}, Python {platform.python_version()}"
    )


def read(path: Path | None) -> Results:
    """The results in a file, to be continued; none without a file.

    Raises:
        InputError: when the file holds something else, or results of another machine.
    """
    here = machine()
    if path is None or not path.exists():
        return Results(here, [])
    try:
        found = read_file(path)
    except InputError as error:
        raise InputError(f"--output {path} exists: {error}") from error
    if found.machine != here:
        raise InputError(f"--output {path} is from {found.machine}, and this machine is {here}")
    return found


def read_file(path: Path) -> Results:
    """The results in a file, of any machine.

    Raises:
        InputError: when it is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Results(
            content["machine"],
            [Ratio(**row) for row in content["rows"]],
            [Footprint(**row) for row in content.get("footprints", ())],
            [Quality(**row) for row in content.get("qualities", ())],
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no result of this command: {error}") from error


def means(rows: list[Ratio]) -> list[Mean]:
    """The means over the shapes, for each number of tokens and of threads, and each contender."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        if row.part == linear.PART:
            _, tokens = row.what.split(", ")
            groups.setdefault((tokens, row.threads, row.contender), []).append(row.median)
    return [Mean(*key, geometric_mean(found)) for key, found in groups.items()]


def print_tables(results: Results) -> None:
    """Print a table of each kind of results that there are."""
    console = Console()
    console = Console(width=None if console.is_terminal else 140)
    if results.rows:
        console.print(table_of_rows(results))
    if found := means(results.rows):
        console.print(table_of_means(found))
    if results.footprints:
        console.print(table_of_footprints(results.footprints))
    if results.qualities:
        console.print(table_of_qualities(results.qualities))


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


def table_of_footprints(found: list[Footprint]) -> Table:
    title = "MiB of the files, and of a process that has predicted"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "deployment", "files", "resident", "peak"):
        table.add_column(heading, justify="left" if heading in ("model", "deployment") else "right")
    for one in found:
        sizes = (one.file_bytes, one.resident_bytes, one.peak_bytes)
        table.add_row(one.model, one.deployment, *(f"{size / 2**20:.1f}" for size in sizes))
    return table


def table_of_qualities(found: list[Quality]) -> Table:
    table = Table(title="scores on masked tokens", title_justify="left")
    for heading in ("text", "model", "deployment", "MiB", "cross entropy", "accuracy", "MRR"):
        words = heading in ("text", "model", "deployment")
        table.add_column(heading, justify="left" if words else "right")
    for one in found:
        scores = (one.cross_entropy, one.accuracy, one.mrr)
        numbers = [f"{one.file_bytes / 2**20:.1f}", *(f"{score:.4f}" for score in scores)]
        table.add_row(one.text, one.source, one.deployment, *numbers)
    return table
