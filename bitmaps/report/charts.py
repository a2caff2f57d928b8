"""The charts of ``results.html``, as Vega-Lite specifications.

Importing this module takes a second, so ``page`` does it only when it draws.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

import altair as alt

from bitmaps.report.axes import Axis, axis_of
from bitmaps.report.comparison import Comparison
from bitmaps.report.palette import DASHES, LINES, NEUTRAL, STYLES
from bitmaps.report.quality import Dot, Labelled, Quality, quality_of
from bitmaps.runs.analysis import Analysis
from bitmaps.runs.records import Column, measures
from bitmaps.vocabulary import RowKind

Points = list[dict[str, Any]]

CURVES = {
    "val/cross_entropy": "cross entropy on validation text, nats",
    "val/recall_at_10": "recall at 10 on validation text",
    "val/loss": "loss on validation sentences",
    "train/loss": "training loss",
    "flips/all": "share of signs that flip per step",
}
FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
PLAIN = "'' + datum.value"  # a number as it is, where Vega would write 2.5e+2
TEXT, LINE = 12, 14  # pixels: the smallest text in a chart, and from one line to the next


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, and its specification."""

    caption: str
    specification: dict[str, Any]


@dataclass(frozen=True)
class Analysed:
    """An analysis, with the label and the kind of its model."""

    label: str
    kind: RowKind
    analysis: Analysis


def figures_of(comparison: Comparison, analyses: Sequence[Analysed]) -> dict[str, list[Figure]]:
    """The charts of each section of the page. Charts that compare leave out the rows that were
    scored on other text."""
    comparable = comparison.comparable()
    quality = quality_of(comparable)
    pairs = zip(comparison.labels, comparison.entries, strict=True)
    finished = [(label, entry) for label, entry in pairs if entry.row]
    shown = {
        name: column
        for name, column in measures().items()
        if any(entry.get(name) is not None for _, entry in comparable)
    }
    highest = max((max(shares_of(one.analysis)) for one in analyses), default=0.0)
    sections = {
        "quality": [("", size_against_quality(quality))] if quality else [],
        "measures": [
            (column.title, bars(comparable, name, column)) for name, column in shown.items()
        ],
        "confidence": [(one.label, confidence_histogram(one, highest)) for one in analyses],
        "curves": training_curves(finished),
    }
    return {
        name: [Figure(caption, styled(chart)) for caption, chart in charts]
        for name, charts in sections.items()
    }


def styled(chart: Any) -> dict[str, Any]:
    """Colours for a light page and a dark one. Text takes the colour of the page."""
    chart = (
        chart.configure(background="transparent", font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            gridColor="#8883", domainColor=NEUTRAL, tickColor=NEUTRAL, labelFontSize=TEXT,
            titleFontSize=TEXT, titleFontWeight="normal", titlePadding=8,
        )
        .configure_legend(labelFontSize=TEXT, titleFontSize=TEXT, titleFontWeight="normal")
        .configure_text(fontSize=TEXT)
    )  # fmt: skip
    specification: dict[str, Any] = chart.to_dict()
    return specification


def kind_colors(kinds: Sequence[RowKind]) -> alt.Scale:
    """A colour for each kind of row, the same on every page."""
    shown = [kind for kind in STYLES if kind in kinds]
    return alt.Scale(domain=[*map(str, shown)], range=[STYLES[kind].on_page for kind in shown])


def encoded(kind: Any, field: str, title: str | None, axis: Axis) -> Any:
    """A position on an axis with round ticks."""
    look: dict[str, Any] = {"labelExpr": PLAIN} if axis.format == "g" else {"format": axis.format}
    ticks = alt.Axis(values=list(axis.ticks), labelOverlap=False, **look)
    # an axis that need not begin at zero; to say so of a logarithmic one is a warning
    kind_of_scale: dict[str, Any] = {"type": "log"} if axis.log else {"zero": False}
    scale = alt.Scale(domain=[axis.low, axis.high], nice=False, **kind_of_scale)
    return kind(field, title=title, axis=ticks, scale=scale)


def size_against_quality(quality: Quality) -> Any:
    """Size against the headline score, with the Pareto front and who only guesses. The area of a
    dot is its time, where one was measured. ``page.js`` writes the labels beside the dots."""
    name = quality.name
    plain = quality.title.removesuffix(", nats")
    log = ", log scale"
    sizes, scores = quality.sizes, quality.scores
    x = encoded(alt.X, "mib:Q", f"size in MiB (pseudo){log if sizes.log else ''}", sizes)
    title = quality.title.replace(", ", " in ") + (log if scores.log else "")
    y = encoded(alt.Y, "score:Q", title, scores)
    layers: list[Any] = []
    if quality.guessing:
        levels = alt.Chart(alt.Data(values=[{"score": level} for level in quality.guessing]))
        line = levels.mark_rule(strokeDash=[2, 4], color=NEUTRAL, strokeWidth=1.5)
        words = levels.mark_text(align="left", baseline="bottom", dx=4, dy=-3, text="guessing")
        layers += [
            line.encode(y=y).properties(name="guessing"),
            words.encode(x=alt.value(0), y=y).properties(name="guess"),
        ]
    layers.append(front_line(quality, x, y))
    if any(dot.spread for dot in quality.dots):
        layers.append(spreads(quality, x))
    layers.append(dots(quality, x, y, measures()[name].format).properties(name="dots"))
    description = (
        f"Size against {plain} of {len(quality.dots)} models; the dashed line is the Pareto front."
    )
    return alt.layer(*layers).properties(
        width="container", height=440, description=description, usermeta={"labels": "short"}
    )


def front_line(quality: Quality, x: Any, y: Any) -> Any:
    front: Points = [{"mib": dot.mib, "score": dot.score} for dot in quality.front]
    line = alt.Chart(alt.Data(values=front)).mark_line(
        interpolate="step-after", strokeDash=[6, 4], color=NEUTRAL, strokeWidth=1.5
    )
    return line.encode(x=x, y=y).properties(name="front")


def spreads(quality: Quality, x: Any) -> Any:
    """The standard deviation over seeds."""
    points: Points = [
        {**point_of(dot), "low": dot.score - dot.spread, "high": dot.score + dot.spread}
        for dot in quality.dots
        if dot.spread
    ]
    color = alt.Color("row:N", scale=kind_colors([dot.kind for dot in quality.dots]), legend=None)
    chart = alt.Chart(alt.Data(values=points)).mark_rule(strokeWidth=1.5)
    return chart.encode(x=x, y="low:Q", y2="high:Q", color=color)


def dots(quality: Quality, x: Any, y: Any, form: str) -> Any:
    """The models. Those that were not timed among others that were are hollow."""
    points = [{**point_of(dot), "rank": rank} for rank, dot in enumerate(quality.dots)]
    points.sort(key=lambda point: -(point["ms"] or 0.0))  # small ones lie on large ones
    times = [dot.ms for dot in quality.dots if dot.ms is not None]
    kinds = kind_colors([dot.kind for dot in quality.dots])
    paths = alt.Scale(domain=kinds.domain, range=[STYLES[RowKind(k)].path for k in kinds.domain])
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("score:Q", title=quality.title.removesuffix(", nats"), format=form),
        alt.Tooltip("mib:Q", title="MiB (pseudo)", format=measures()["memory_mib"].format),
    ]
    chart = alt.Chart(alt.Data(values=points)).encode(
        x=x,
        y=y,
        shape=alt.Shape("row:N", scale=paths, legend=None),
    )
    if not times:
        color = alt.Color("row:N", scale=kinds, legend=None)
        return chart.mark_point(size=110, filled=True, opacity=1).encode(
            color=color, tooltip=tooltip
        )
    ticks = [tick for tick in axis_of([0, max(times)], log=False, margin=0).ticks if tick > 0]
    legend = alt.Legend(
        title="milliseconds a sequence", orient="top", values=[ticks[0], ticks[-1]],
        symbolType="circle", symbolFillColor=NEUTRAL, symbolStrokeColor=NEUTRAL, labelExpr=PLAIN,
    )  # fmt: skip
    area = alt.Scale(type="linear", domain=[0, max(times)], range=[60, 450])
    timed = "datum.ms !== null"
    own = alt.Color("row:N", scale=kinds, legend=None)
    edge = alt.value("var(--page)")
    tooltip.append(alt.Tooltip("ms:Q", title="ms", format=measures()["inference_ms"].format))
    return chart.mark_point(filled=False, opacity=1, strokeWidth=1.2, invalid="show").encode(
        size=alt.when("datum.ms === null")
        .then(alt.value(110))
        .otherwise(alt.Size("ms:Q", scale=area, legend=legend)),
        fill=alt.when(timed).then(own).otherwise(alt.value("transparent")),
        color=alt.when(timed).then(edge).otherwise(own),
        tooltip=tooltip,
    )


def point_of(dot: Dot) -> dict[str, Any]:
    return {
        "model": dot.label, "short": dot.short, "row": str(dot.kind), "mib": dot.mib,
        "score": dot.score, "ms": dot.ms,
    }  # fmt: skip


def bars(entries: Labelled, name: str, column: Column) -> Any:
    """One measure, a bar for each entry, with the standard deviation over seeds."""
    points: Points = []
    for label, entry in entries:
        if (value := entry.get(name)) is not None:
            spread = entry.deviation.get(name, 0.0)
            ends = {"low": value - spread, "high": value + spread}
            points.append({"model": label, "value": value, "kind": str(entry.kind), **ends})
    breaks = max(point["model"].count(", ") for point in points)
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("model:N", title=None, sort=None, axis=names_with(breaks))
    )
    longest = max(point["high"] for point in points)
    lowest = min(0.0, *(point["low"] for point in points))
    domain = [lowest, longest if longest > 0 else 1.0]
    room: Any = [0, alt.expr("width - 64")]  # pixels; the number is beside the bar
    scale = alt.Scale(domain=domain, range=room, nice=False)
    value = alt.X("value:Q", title=None, scale=scale).axis(tickCount=4)
    number = alt.Tooltip("value:Q", title=column.title, format=column.format)
    kinds = kind_colors([entry.kind for _, entry in entries if entry.kind])
    color = alt.Color("kind:N", legend=None, scale=kinds)
    layers: list[Any] = [
        base.mark_bar(size=18).encode(
            x=value, color=color, tooltip=[alt.Tooltip("model:N"), number]
        )
    ]
    if any(point["low"] < point["high"] for point in points):
        layers.append(base.mark_rule(color=NEUTRAL, strokeWidth=2).encode(x="low:Q", x2="high:Q"))
    text = alt.Text("value:Q", format=column.format)
    layers.append(base.mark_text(align="left", dx=4).encode(x="high:Q", text=text))
    description = f"{column.title}, a bar for each of {len(points)} models"
    height = (24 + LINE * breaks) * len(points)
    return alt.layer(*layers).properties(width="container", height=height, description=description)


def names_with(breaks: int) -> alt.Axis:
    """Names of models, with a line for each of their parts. A name stands in the middle of its bar.

    Args:
        breaks: the most that a name has between its lines.
    """
    middles = [
        {"test": f"length(split(datum.label, ', ')) === {n + 1}", "value": -LINE / 2 * n}
        for n in range(1, breaks + 1)
    ]
    return alt.Axis(
        labelLimit=alt.expr("containerSize()[0] / 2"),
        labelExpr="split(datum.label, ', ')",
        labelLineHeight=LINE,
        labelOffset={"condition": middles, "value": 0} if middles else 0,
    )


def shares_of(analysis: Analysis) -> list[float]:
    """The shares of the masked tokens in equal bins of confidence."""
    counts = analysis.confidence.histogram
    return [count / sum(counts) for count in counts]


def confidence_histogram(one: Analysed, highest: float) -> alt.Chart:
    """The probability of a model's own predictions: the share of the masked tokens in each of
    equal bins of 0 to 1.

    Args:
        highest: the largest share that any model has, so that all have one scale.
    """
    shares = shares_of(one.analysis)
    width = 1 / len(shares)
    points: Points = [
        {"from": n * width, "to": (n + 1) * width, "share": share} for n, share in enumerate(shares)
    ]
    ends = [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("from", "to")]
    share = alt.Y("share:Q", title=None).axis(tickCount=3, format="%")
    mean = f"{one.label}: mean confidence {one.analysis.confidence.mean:.3f}"
    return (
        alt.Chart(alt.Data(values=points))
        .mark_rect(color=STYLES[one.kind].on_page)
        .encode(
            x=alt.X("from:Q", title="confidence").scale(domain=[0, 1]).axis(values=[0, 0.5, 1]),
            x2="to:Q",
            y=share.scale(domain=[0, highest], nice=True),
            y2=alt.datum(0),
            tooltip=[*ends, alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width="container", height=90, description=mean)
    )


def training_curves(entries: Labelled) -> list[tuple[str, alt.Chart]]:
    """What was logged during each training: one line a seed, one colour and dash an entry. The
    first chart has the legend, unless there are more entries than colours and dashes."""
    logged = [
        (label, str(one.run), name, points)
        for label, entry in entries
        for one in entry.single
        if one.kind is RowKind.trained
        for name, points in read_curves(one.run).items()
    ]
    models = list(dict.fromkeys(label for label, *_ in logged))
    looks = list(product(DASHES, LINES))
    repeated = list(islice(cycle(looks), len(models)))
    colors = alt.Scale(domain=models, range=[color for _, color in repeated])
    dashes = alt.Scale(domain=models, range=[list(dash) for dash, _ in repeated])
    limit = alt.expr("containerSize()[0] - 80")
    charts: list[tuple[str, alt.Chart]] = []
    for name, title in CURVES.items():
        points: Points = [
            {"model": label, "run": run, "step": step, "value": value}
            for label, run, measure, curve in logged
            if measure == name
            for step, value in curve
        ]
        if len({point["step"] for point in points}) < 2:
            continue
        named = not charts and len(models) <= len(looks)
        look: dict[str, Any] = {"orient": "top", "columns": 1, "symbolType": "stroke"}
        legend = alt.Legend(**look, labelLimit=limit, symbolSize=500) if named else None
        axis = axis_of([point["value"] for point in points], log=name == "flips/all", margin=0.04)
        hover = [alt.Tooltip(f"{field}:N") for field in ("model", "run", "step")]
        seen = {"opacity": 0, "size": 60}  # what a pointer finds
        chart = alt.Chart(alt.Data(values=points)).mark_line(strokeWidth=2, point=seen)
        encodings = {
            "x": alt.X("step:Q", title="step").axis(tickCount=6, tickMinStep=1),
            "y": encoded(alt.Y, "value:Q", None, axis),
            "color": alt.Color("model:N", title=None, scale=colors, legend=legend),
            "strokeDash": alt.StrokeDash("model:N", title=None, scale=dashes, legend=legend),
            "detail": "run:N",
            "tooltip": [*hover, alt.Tooltip("value:Q", format=".4~g")],
        }
        curve = chart.encode(**encodings).properties(
            width="container", height=220, description=f"{title}, by training step"
        )
        charts.append((f"{title}, log scale" if axis.log else title, curve))
    return charts


def read_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each of ``CURVES`` in the CSV logs of a run.

    There is one file a start. A resumed run goes on from a step of an earlier start, and replaces
    what that one logged afterwards.
    """
    curves: dict[str, dict[int, float]] = {}
    files = run.glob("logs/version_*/metrics.csv")
    for file in sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_"))):
        with file.open(encoding="utf-8", newline="") as lines:
            points = [
                (name, int(line["step"]), float(line[name]))
                for line in csv.DictReader(lines)
                for name in CURVES
                if line.get(name) and line.get("step")
            ]
        start = min((step for _, step, _ in points), default=0)
        for name, curve in curves.items():
            curves[name] = {step: value for step, value in curve.items() if step < start}
        for name, step, value in points:
            if value > 0 or name != "flips/all":  # its axis is logarithmic
                curves.setdefault(name, {})[step] = value
    return {name: sorted(curve.items()) for name, curve in curves.items()}
