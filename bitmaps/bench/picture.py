"""A picture of speed, accuracy and size, from the file of one machine.

    python -m bitmaps.bench picture <results.json> <name.svg or .png>

Writes the picture, and beside it ``<name>-dark`` for dark pages.
Speeds are those of MiniLM in batches of 32 with the head, with the fewest threads that were timed.
The file must hold the parts ``model`` and ``quality``. The size of a dot is that of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from bitmaps.bench import model
from bitmaps.bench.deployments import FUSED
from bitmaps.bench.results import Results, read_file
from bitmaps.errors import InputError
from bitmaps.report.axes import axis_of
from bitmaps.report.palette import DARK, LIGHT, POINTS, STYLES, Paper
from bitmaps.report.picture import dark_path, set_ticks, soften, write
from bitmaps.vocabulary import RowKind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHAT = model.work("MiniLM", *model.SIZES[0], "with head")
SUFFIXES = (".svg", ".png")
ONE_BIT, PEER = STYLES[RowKind.packed], STYLES[RowKind.unbinarized]
AREA_OF_A_MIB = 5.0  # in square points
LINES = 25  # of text, between the slowest and the fastest dot


@dataclass(frozen=True)
class Dot:
    """One deployment.

    Attributes:
        speed: relative to ``transformers`` with fused attention.
        accuracy: the share of masked tokens that are right.
        mib: the size of its files.
    """

    name: str
    speed: float
    accuracy: float
    mib: float


def dots(results: Results) -> list[Dot]:
    """The deployments of which both speed and accuracy are known.

    Raises:
        InputError: when there are none.
    """
    rows = [row for row in results.rows if row.what == WHAT and row.peer == FUSED]
    fewest = min((row.threads for row in rows), default=0)
    speeds = {row.contender: row.median for row in rows if row.threads == fewest} | {FUSED: 1.0}
    found = [
        Dot(one.deployment, speeds[one.deployment], one.accuracy, one.file_bytes / 2**20)
        for one in results.qualities
        if one.deployment in speeds
    ]
    if not rows or not found:
        raise InputError(
            f"there is nothing to draw: the file needs the parts model ({WHAT!r}) and quality"
        )
    return found


def draw(results: Path, picture: Path) -> None:
    """Write the picture.

    Raises:
        InputError: for another kind of file, or results without speeds or scores.
    """
    if picture.suffix not in SUFFIXES:
        raise InputError(f"{picture} is no picture: valid endings are {', '.join(SUFFIXES)}")
    if not picture.parent.is_dir():
        raise InputError(f"{picture}: there is no folder {picture.parent}")
    shown = dots(read_file(results))
    write(figure_of(shown, LIGHT), picture)
    write(figure_of(shown, DARK), dark_path(picture))


def heights_of_names(shown: list[Dot]) -> dict[str, float]:
    """Where each name is written: at the speed of its dot, or above the name below it."""
    speeds = [dot.speed for dot in shown]
    step = max(max(speeds) / min(speeds), 1.5) ** (1 / LINES)
    heights: dict[str, float] = {}
    for dot in sorted(shown, key=lambda dot: dot.speed):
        below = [height for height in heights.values() if height * step > dot.speed]
        heights[dot.name] = max(below) * step if below else dot.speed
    return heights


def figure_of(shown: list[Dot], paper: Paper) -> Figure:
    """Accuracy to the right, speed upwards on a logarithmic scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", facecolor=paper.page)
    axis = figure.subplots()
    heights = heights_of_names(shown)
    middle = (min(dot.accuracy for dot in shown) + max(dot.accuracy for dot in shown)) / 2
    speeds = axis_of([dot.speed for dot in shown], log=True, margin=0.15)
    for dot in shown:
        style = ONE_BIT if dot.name.startswith("one bit") else PEER
        x, is_right = 100 * dot.accuracy, dot.accuracy > middle  # names stay inside of the frame
        area = AREA_OF_A_MIB * dot.mib
        beside = sqrt(area) / 2 + 4
        axis.scatter(
            x, dot.speed, s=area, marker=style.marker, facecolor=style.on(paper),
            edgecolor=paper.page, linewidths=0.6,
        )  # fmt: skip
        axis.annotate(
            f"{dot.name}, {dot.mib:.0f} MiB", (x, heights[dot.name]),
            (-beside if is_right else beside, 0), textcoords="offset points", color=paper.ink,
            ha="right" if is_right else "left", va="center", fontsize=POINTS,
        )  # fmt: skip
    axis.set(yscale="log", ylim=(speeds.low, speeds.high))
    set_ticks(axis.yaxis, speeds)
    soften(axis, paper)
    axis.set_xlabel("accuracy on masked tokens of PTB validation, %")
    axis.set_ylabel(f"times as fast as {FUSED}, log scale")
    axis.set_title("area of a dot: size of the files", fontsize=POINTS, loc="left", color=paper.ink)
    axis.margins(x=0.2)
    return figure
