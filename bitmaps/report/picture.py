"""Size against quality as a picture: ``results.png``, and that of ``--sizes``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitmaps.errors import as_text
from bitmaps.report.axes import Axis, linear_ticks
from bitmaps.report.palette import DARK, LIGHT, NEUTRAL, POINTS, STYLES, Paper
from bitmaps.report.quality import Dot, Quality
from bitmaps.runs.files import replaced
from bitmaps.vocabulary import RowKind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

INCHES, DPI = (7.5, 4.8), 200  # 750 pixels wide at 100 pixels an inch, and sharp on fine screens
AREA, AREAS = 60.0, (18.0, 220.0)  # of a dot without a time, and of the fastest and the slowest one
PLACES = [  # of a label: the way from its dot, in points
    (1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8),
    (1, 2), (1, -2), (-1, 2), (-1, -2),
]  # fmt: skip


def draw(quality: Quality, path: Path, paper: Paper = LIGHT) -> None:
    """Write the picture, a PNG file."""
    write(figure_of(quality, paper), path)


def draw_both(quality: Quality, path: Path) -> None:
    """Write the picture for light pages, and beside it ``<name>-dark.png`` for dark ones."""
    draw(quality, path)
    draw(quality, dark_path(path), DARK)


def dark_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-dark{path.suffix}")


def write(figure: Figure, path: Path) -> None:
    """Write a figure: as SVG where the path ends so, and else as PNG."""
    form = "svg" if path.suffix == ".svg" else "png"
    with replaced(path) as draft:
        figure.savefig(draft, dpi=DPI, format=form)


def figure_of(quality: Quality, paper: Paper = LIGHT) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained", facecolor=paper.page)
    axis = figure.subplots()
    prepare(axis, quality, paper)
    for level in quality.guessing:
        axis.axhline(level, color=NEUTRAL, linestyle=(0, (1, 3)), linewidth=1.2)
    front = quality.front
    axis.step(
        [dot.mib for dot in front], [dot.score for dot in front], where="post", color=NEUTRAL,
        linestyle=(0, (5, 3)), linewidth=1.2, gid="front",
    )  # fmt: skip
    slowest = max((dot.ms for dot in quality.dots if dot.ms is not None), default=0.0)
    for dot in sorted(quality.dots, key=lambda dot: -area_of(dot, slowest)):  # small ones on top
        draw_dot(axis, dot, slowest, paper)
    figure.legend(
        handles=legend_of(quality, slowest, paper), loc="outside upper left", ncols=4,
        frameon=False, fontsize=POINTS, labelcolor=paper.ink, handletextpad=0.4, columnspacing=1.4,
    )  # fmt: skip
    figure.draw_without_rendering()  # so that it is known where everything lies
    words = [
        axis.annotate(
            "guessing", (0, level), xycoords=axis.get_yaxis_transform(), xytext=(4, 3),
            textcoords="offset points", color=paper.quiet, fontsize=POINTS,
        )
        for level in quality.guessing
    ]  # fmt: skip
    marks = [(dot.mib, dot.score, dot.short, radius_of(dot, slowest)) for dot in quality.dots]
    taken = [text.get_window_extent() for text in words]
    place_labels(axis, marks, [*taken, *boxes_of(axis, quality)], paper)
    return figure


def prepare(axis: Axes, quality: Quality, paper: Paper) -> None:
    """Axes with round ticks."""
    sizes, scores = quality.sizes, quality.scores
    for shown, side, title in (
        (sizes, axis.xaxis, "size in MiB (pseudo)"),
        (scores, axis.yaxis, quality.title.replace(", ", " in ")),
    ):
        side.axes.set(**{f"{side.axis_name}scale": "log" if shown.log else "linear"})
        set_ticks(side, shown)
        side.set_label_text(f"{title}, log scale" if shown.log else title)
    axis.set(xlim=(sizes.low, sizes.high), ylim=(scores.low, scores.high))
    soften(axis, paper)


def soften(axis: Axes, paper: Paper) -> None:
    """Nothing but data catches the eye."""
    for side in (axis.xaxis, axis.yaxis):
        side.label.set(color=paper.quiet, fontsize=POINTS)
    axis.set_facecolor(paper.page)
    axis.tick_params(labelsize=POINTS, color=NEUTRAL, labelcolor=paper.ink)
    axis.grid(color=paper.grid, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(NEUTRAL)


def set_ticks(side: Any, shown: Axis) -> None:
    side.set_ticks(list(shown.ticks), [f"{tick:{shown.format}}" for tick in shown.ticks])
    side.set_ticks([], minor=True)


def area_of(dot: Dot, slowest: float) -> float:
    """The area of a dot in square points: its time, if it was timed."""
    if dot.ms is None:
        return AREA
    least, most = AREAS
    return least + (most - least) * dot.ms / slowest


def radius_of(dot: Dot, slowest: float) -> float:
    return sqrt(area_of(dot, slowest)) / 2


def draw_dot(axis: Axes, dot: Dot, slowest: float, paper: Paper) -> None:
    """A dot, hollow if it was not timed among others that were, with its spread over seeds."""
    style = STYLES[dot.kind]
    color = style.on(paper)
    hollow = dot.ms is None and slowest > 0
    if dot.spread:
        axis.errorbar(dot.mib, dot.score, dot.spread, color=color, linewidth=1.5, capsize=2.5)
    axis.scatter(
        dot.mib, dot.score, s=area_of(dot, slowest), marker=style.marker,
        facecolor=paper.page if hollow else color, edgecolor=color if hollow else paper.page,
        linewidth=1.5 if hollow else 0.6, zorder=3,
    )  # fmt: skip


def legend_of(quality: Quality, slowest: float, paper: Paper) -> list[Any]:
    """The kinds of rows, the lines, and which area is how much time."""
    from matplotlib.lines import Line2D

    def mark(label: str, **look: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, markeredgewidth=0, **look)

    kinds = {dot.kind for dot in quality.dots}
    found = [
        mark(str(kind), marker=style.marker, color=style.on(paper), markersize=7)
        for kind, style in STYLES.items()
        if kind in kinds
    ]
    if len(quality.front) > 1:
        dashes = (0, (3, 2))
        found.append(Line2D([], [], color=NEUTRAL, linestyle=dashes, label="best for their size"))
    if slowest:
        ticks = [tick for tick in linear_ticks(0, slowest) if tick > 0]
        for ms in dict.fromkeys((ticks[0], ticks[-1])):
            example = Dot("", "", RowKind.trained, 1.0, 1.0, ms=ms)
            size = 2 * radius_of(example, slowest)
            label = f"{ms:g} ms a sequence"
            found.append(mark(label, marker="o", color=NEUTRAL, markersize=size))
    return found


def boxes_of(axis: Axes, quality: Quality) -> list[Bbox]:
    """Where the lines lie, in pixels."""
    from matplotlib.transforms import Bbox

    sizes = quality.sizes
    lines = [((sizes.low, level), (sizes.high, level)) for level in quality.guessing]
    for dot, after in pairwise(quality.front):
        corner = (after.mib, dot.score)
        lines += [((dot.mib, dot.score), corner), (corner, (after.mib, after.score))]
    return [Bbox(axis.transData.transform(sorted(line))).padded(1) for line in lines]


def place_labels(
    axis: Axes,
    marks: Sequence[tuple[float, float, str, float]],
    taken: Iterable[Bbox],
    paper: Paper,
) -> None:
    """Write labels beside their marks, where they cover neither a mark nor another label. What fits
    nowhere is left out, so the most important marks come first.

    Args:
        marks: each at (x, y), with its label, and its radius in points.
        taken: what else is not to be covered, in pixels.
    """
    from matplotlib.transforms import Bbox

    figure = axis.get_figure(root=True)
    assert figure is not None
    pixels = figure.dpi / 72
    centers = axis.transData.transform([(x, y) for x, y, _, _ in marks])
    boxes = [
        Bbox.from_extents(
            x - radius * pixels, y - radius * pixels, x + radius * pixels, y + radius * pixels
        )
        for (x, y), (_, _, _, radius) in zip(centers, marks, strict=True)
    ]
    boxes += taken
    frame = axis.get_window_extent()
    for x, y, label, radius in marks:
        text = axis.annotate(
            as_text(label), (x, y), (0, 0), textcoords="offset points", color=paper.ink,
            fontsize=POINTS, parse_math=False,
        )  # fmt: skip
        for right, up in PLACES:
            text.set_horizontalalignment(side_of(right, ("right", "center", "left")))
            text.set_verticalalignment(side_of(up, ("top", "center", "bottom")))
            text.set_position((right * (radius + 3), up * (radius + 3)))
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
            if inside and box.y1 <= frame.y1 and not box.count_overlaps(boxes):
                boxes.append(box)
                break
        else:
            text.remove()


def side_of(number: float, names: tuple[str, str, str]) -> Any:
    """The name for a negative number, for 0, or for a positive one."""
    return names[1 + (number > 0) - (number < 0)]
