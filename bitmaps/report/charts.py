"""The charts of ``results.html``, as Vega-Lite specifications.

Importing this module takes a second, so ``page`` does it only when it draws.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt

from bitmaps.report.comparison import Comparison, Entry
from bitmaps.runs.analysis import Analysis
from bitmaps.runs.records import Column, headline, measures
from bitmaps.vocabulary import RowKind

Labelled = Sequence[tuple[str, Entry]]
"""Entries, each after its label."""
Points = list[dict[str, Any]]

COLORS = {
    RowKind.unbinarized: "#9c755f",
    RowKind.naive: "#e45756",
    RowKind.calibrated: "#f58518",
    RowKind.trained: "#4c78a8",
    RowKind.packed: "#54a24b",
}
CURVES = {
    "val/cross_entropy": "cross entropy on validation text, nats",
    "val/recall_at_10": "recall at 10 on validation text",
    "val/loss": "loss on validation sentences",
    "train/loss": "training loss",
    "flips/all": "share of signs that flip per step",
}


def specifications(
    comparison: Comparison, analyses: Sequence[tuple[str, Analysis]]
) -> dict[str, list[dict[str, Any]]]:
    """The charts of each section of the page. Charts that compare leave out the rows that were
    scored on other text.

    Args:
        analyses: each after the label of its model.
    """
    comparable = comparison.comparable()
    pairs = zip(comparison.labels, comparison.entries, strict=True)
    finished = [(label, entry) for label, entry in pairs if entry.row]
    sections: dict[str, list[Any]] = {
        "quality": [size_against_quality(comparable)] if comparable else [],
        "measures": [
            bars(comparable, name, column)
            for name, column in measures().items()
            if any(entry.get(name) is not None for _, entry in comparable)
        ],
        "confidence": [confidence_histogram(label, one) for label, one in analyses],
        "curves": training_curves(finished),
    }
    return {name: [styled(chart) for chart in charts] for name, charts in sections.items()}


def styled(chart: Any) -> dict[str, Any]:
    """Colours for a light page and a dark one. Text takes the colour of the page."""
    quiet = {"gridColor": "#8883", "domainColor": "#888", "tickColor": "#888"}
    chart = chart.configure(background="transparent").configure_view(stroke=None)
    specification: dict[str, Any] = chart.configure_axis(**quiet).to_dict()
    return specification


def headline_of(entries: Labelled) -> str:
    """The score that is shown against the size."""
    return headline([entry.row for _, entry in entries if entry.row])


def pareto_front(entries: Labelled) -> list[tuple[str, Entry]]:
    """The entries that no other one beats: none is as good in both size and the headline score,
    and better in one. The smallest comes first. Of equal ones, the first counts."""
    name = headline_of(entries)
    sign = 1 if measures()[name].lower_is_better else -1
    entries = [pair for pair in entries if pair[1].get(name) is not None]

    def place(pair: tuple[str, Entry]) -> tuple[float, float]:
        return pair[1].get("memory_mib"), sign * pair[1].get(name)

    front: list[tuple[str, Entry]] = []
    for pair in sorted(entries, key=place):
        if not front or place(pair)[1] < place(front[-1])[1]:
            front.append(pair)
    return front


def kind_colors(entries: Labelled) -> alt.Scale:
    """A colour for each kind of row, the same on every page."""
    present = {entry.kind for _, entry in entries}
    shown = [kind for kind in COLORS if kind in present]
    return alt.Scale(domain=[str(kind) for kind in shown], range=[COLORS[kind] for kind in shown])


def size_against_quality(entries: Labelled) -> Any:
    """Size against the headline score, with the Pareto front."""
    name = headline_of(entries)
    column = measures()[name]
    scores = [name, *(["accuracy"] if name == "cross_entropy" else [])]
    fields = ("memory_mib", *scores, "row")

    def points(shown: Labelled) -> alt.Data:
        found = [{"model": label} | {n: entry.get(n) for n in fields} for label, entry in shown]
        return alt.Data(values=found)

    def axis(kind: Any, name: str, title: str, log: bool) -> Any:
        scale = {"nice": False, "padding": 20} | ({"type": "log"} if log else {"zero": False})
        return kind(f"{name}:Q", title=f"{title}, log scale" if log else title).scale(**scale)

    plain = column.title.removesuffix(", nats")
    x = axis(alt.X, "memory_mib", "size in MiB (pseudo)", log=True)
    y = axis(alt.Y, name, column.title.replace(", ", " in "), log=column.lower_is_better)
    titles = {one: measures()[one].title.removesuffix(", nats") for one in (*scores, "memory_mib")}
    tooltip = [
        alt.Tooltip("model:N"),
        *(alt.Tooltip(f"{n}:Q", title=t, format=measures()[n].format) for n, t in titles.items()),
    ]
    front = alt.Chart(points(pareto_front(entries))).mark_line(
        interpolate="step-after", strokeDash=[4, 4], color="#888"
    )
    dots = alt.Chart(points(entries)).mark_point(size=90, filled=True, opacity=0.9)
    kinds = kind_colors(entries)
    color = alt.Color("row:N", title=None, scale=kinds).legend(orient="top")
    shape = alt.Shape("row:N", title=None, scale=alt.Scale(domain=kinds["domain"]))
    description = (
        f"Size against {plain} of {len(entries)} models; the dashed line is the Pareto front."
    )
    return alt.layer(
        front.encode(x=x, y=y), dots.encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip)
    ).properties(width="container", height=320, description=description)


def bars(entries: Labelled, name: str, column: Column) -> Any:
    """One measure, a bar for each entry, with the standard deviation over seeds."""
    points: Points = []
    for label, entry in entries:
        if (value := entry.get(name)) is not None:
            spread = entry.deviation.get(name, 0.0)
            ends = {"low": value - spread, "high": value + spread}
            points.append({"model": label, "value": value, "kind": str(entry.kind), **ends})
    half = alt.expr("containerSize()[0] / 2")
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("model:N", title=None, sort=None).axis(labelLimit=half)
    )
    longest = max(point["high"] for point in points) or 1.0
    value = alt.X("value:Q", title=column.title).axis(tickCount=4)
    value = value.scale(domain=[0, 1.3 * longest], nice=False)  # leaves room for the number
    number = alt.Tooltip("value:Q", title=column.title, format=column.format)
    color = alt.Color("kind:N", legend=None, scale=kind_colors(entries))
    layers: list[Any] = [
        base.mark_bar().encode(x=value, color=color, tooltip=[alt.Tooltip("model:N"), number])
    ]
    if any(point["low"] < point["high"] for point in points):
        layers.append(base.mark_rule(color="#888", strokeWidth=2).encode(x="low:Q", x2="high:Q"))
    text = alt.Text("value:Q", format=column.format)
    layers.append(base.mark_text(align="left", dx=4).encode(x="high:Q", text=text))
    description = f"{column.title}, a bar for each of {len(points)} models"
    return alt.layer(*layers).properties(
        width="container", height=20 * len(points), description=description
    )


def confidence_histogram(label: str, analysis: Analysis) -> alt.Chart:
    """The probability of a model's own predictions: the share of the masked tokens in each of
    equal bins of 0 to 1."""
    counts = analysis.confidence.histogram
    width, total = 1 / len(counts), sum(counts)
    points: Points = [
        {"from": n * width, "to": (n + 1) * width, "share": count / total}
        for n, count in enumerate(counts)
    ]
    ends = [alt.Tooltip(f"{name}:Q", format=".2f") for name in ("from", "to")]
    share = alt.Y("share:Q", title="share").axis(tickCount=3, format="%")
    mean = f"{label}: mean confidence {analysis.confidence.mean:.3f}"
    return (
        alt.Chart(alt.Data(values=points), title=alt.TitleParams(label, limit=230, fontSize=11))
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="confidence").scale(domain=[0, 1]).axis(values=[0, 0.5, 1]),
            x2="to:Q",
            y=share.scale(domainMin=0, nice=True),
            y2=alt.datum(0),
            tooltip=[*ends, alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width="container", height=90, description=mean)
    )


def training_curves(entries: Labelled) -> list[alt.Chart]:
    """What was logged during each training: one line a seed, one colour an entry. The first chart
    has the legend, if there are as many colours as entries."""
    logged = [
        (label, str(one.run), name, points)
        for label, entry in entries
        for one in entry.single
        if one.kind is RowKind.trained
        for name, points in read_curves(one.run).items()
    ]
    models = list(dict.fromkeys(label for label, *_ in logged))
    colors = alt.Scale(domain=models, scheme="tableau10" if len(models) <= 10 else "tableau20")
    limit = alt.expr("containerSize()[0] - 80")
    charts: list[alt.Chart] = []
    for name, title in CURVES.items():
        points: Points = [
            {"model": label, "run": run, "step": step, "value": value}
            for label, run, measure, curve in logged
            if measure == name
            for step, value in curve
        ]
        if len({point["step"] for point in points}) < 2:
            continue
        named = not charts and len(models) <= 20
        legend = alt.Legend(orient="top", columns=1, labelLimit=limit) if named else None
        scale = {"type": "log"} if name == "flips/all" else {"zero": False}
        hover = [alt.Tooltip(f"{field}:N") for field in ("model", "run", "step")]
        chart = alt.Chart(alt.Data(values=points)).mark_line(point={"size": 18})
        charts.append(
            chart.encode(
                x=alt.X("step:Q", title="step"),
                y=alt.Y("value:Q", title=title).scale(**scale),
                color=alt.Color("model:N", title=None, scale=colors, legend=legend),
                detail="run:N",
                tooltip=[*hover, alt.Tooltip("value:Q", format=".4~g")],
            ).properties(width="container", height=220, description=f"{title}, by training step")
        )
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
