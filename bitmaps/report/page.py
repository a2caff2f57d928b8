"""``results.html``: what a set of runs came to, as one file that needs no network: the table, pictures, and what the models say."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from bitmaps.errors import InputError
from bitmaps.report.table import (
    COLUMNS,
    cells,
    columns,
    in_words,
    labels,
    notes,
    pooled,
    splits,
    text_of,
    usual_text,
)
from bitmaps.runs.folder import Row, read_analyses

Points = list[dict[str, Any]]

MEASURES = {
    "cross_entropy": "cross entropy, nats",
    "accuracy": "accuracy",
    "mrr": "mean reciprocal rank, top 32",
    "inference_ms": "milliseconds a sequence",
    "memory_mib": "MiB (pseudo)",
}
COLORS = {
    "unbinarized": "#9c755f",
    "naive": "#e45756",
    "calibrated": "#f58518",
    "trained": "#4c78a8",
    "packed": "#54a24b",
}
CURVES = {
    "val/cross_entropy": "cross entropy on validation text, nats",
    "train/loss": "training loss",
    "flips/all": "share of the signs that flip, a step",
}


def write_page(
    rows: list[Row], path: Path, title: str = "Binarized transformers, compared"
) -> None:
    """Write the page of these rows, which ``table.collect`` gives."""
    shown = pooled(rows)
    names = columns(shown)
    lines: list[dict[str, Any]] = []
    for row, label, note in zip(shown, labels(shown), notes(shown), strict=True):
        analysis, missing = analysis_of(row)
        seed = (
            f"seed {row['seeds'][0]['seed']}" if "seeds" in row else ""
        )  # of several the first is looked at
        lines.append(
            {
                "row": row,
                "label": label,
                "example": ", ".join(filter(None, (label, seed))),
                "cells": [
                    {"text": text, "value": row.get(name) if form else None, "numeric": bool(form)}
                    for text, (name, (_, form)) in zip(
                        cells(row, names), names.items(), strict=True
                    )
                ],
                "analysis": analysis,
                "verdict": ": ".join(filter(None, (seed, analysis["verdict"]))) if analysis else "",
                "splits": list(splits(analysis)) if analysis else [],
                "note": "; ".join(filter(None, (note, missing))),
            }
        )
    usual = usual_text(shown)
    done = [line for line in lines if line["row"]["status"] == "ok"]
    # what was scored on other text is in no comparison
    alike = [line for line in done if text_of(line["row"]) == usual]
    charts = charts_of(done, alike)
    page = template().render(
        title=title,
        scored_on=in_words({name: value for name, value in usual.items() if value is not None}),
        front=pareto_front([line["row"] | {"label": line["label"]} for line in alike]),
        headings=[{"text": heading, "numeric": bool(form)} for heading, form in names.values()],
        timed="inference_ms" in names,
        lines=lines,
        analysed=[line for line in lines if line["analysis"]],
        sentences=sentences_of(lines),
        charts=charts,
        specs=json.dumps([spec for group in charts.values() for spec in group]).replace(
            "<", "\\u003c"
        ),
        script=bundle() if any(charts.values()) else "",
        circumstances=circumstances_of(rows),
    )
    path.write_text(page, encoding="utf-8")


@cache
def template() -> jinja2.Template:
    loader = jinja2.PackageLoader("bitmaps.report", "")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html")


@cache
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, to be put into the page."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )


def analysis_of(row: Row) -> tuple[dict[str, Any] | None, str]:
    """The error analysis of a row, or ``None`` and why there is none."""
    if row["status"] != "ok":
        return None, ""
    try:
        return read_analyses(Path(row["run"]))[row["row"]], ""
    except (InputError, KeyError):
        return None, "no error analysis in its folder: evaluate it again"


def circumstances_of(rows: list[Row]) -> list[dict[str, Any]]:
    """What made the rows: for each commit, versions and machine, the ``runs``, each with its folder, command and status."""
    found: dict[str, dict[str, Any]] = {}
    everything = [one for row in rows for one in (row, *row.get("also", ()))]
    for run in {row["run"]: row for row in everything}.values():
        facts = {name: run.get(name) for name in ("commit", "versions", "device", "threads")}
        found.setdefault(json.dumps(facts, sort_keys=True), facts | {"runs": []})["runs"].append(
            {name: run.get(name) for name in ("run", "command", "status")}
        )
    return list(found.values())


def sentences_of(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every sentence that some model was shown: its pieces, and what each model makes of each masked token."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        for sentence in line["analysis"]["sentences"] if line["analysis"] else ():
            numbers = {
                masked["position"]: number for number, masked in enumerate(sentence["masked"], 1)
            }
            key = json.dumps([sentence["pieces"], sorted(numbers)])
            pieces = [
                {
                    "text": piece.removeprefix("##") if place else piece,
                    "joined": place > 0 and piece.startswith("##"),
                    "number": numbers.get(place),
                }
                for place, piece in enumerate(sentence["pieces"])
            ]
            trues = [masked["true"] for masked in sentence["masked"]]
            same = found.setdefault(key, {"pieces": pieces, "trues": trues, "models": []})
            guesses = [masked["predictions"] for masked in sentence["masked"]]
            same["models"].append({"label": line["example"], "guesses": guesses})
    return list(found.values())


def charts_of(
    lines: list[dict[str, Any]], alike: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The pictures of each section, as Vega-Lite specifications; those that compare only have the rows that are ``alike``."""
    sections: dict[str, list[Any]] = {
        "quality": [quality(alike)] if alike else [],
        "measures": [
            bars(alike, name, title)
            for name, title in MEASURES.items()
            if any(line["row"].get(name) is not None for line in alike)
        ],
        "confidence": [confidences(line) for line in lines if line["analysis"]],
        "curves": curve_charts(lines),
    }
    return {name: [finished(chart) for chart in charts] for name, charts in sections.items()}


def finished(chart: Any) -> dict[str, Any]:
    """Colours that are readable on a light page and on a dark one; what is text takes the page's own."""
    quiet = {"gridColor": "#8883", "domainColor": "#888", "tickColor": "#888"}
    chart = (
        chart.configure(background="transparent")
        .configure_view(stroke=None)
        .configure_axis(**quiet)
    )
    return chart.to_dict()


def pareto_front(rows: list[Row]) -> list[Row]:
    """Those that no other row is as good as in both size and cross entropy and better in one, the smallest first; of equal ones
    the first.

    >>> rows = [{"memory_mib": m, "cross_entropy": c} for m, c in [(1, 9), (2, 9), (2, 5), (4, 5), (4, 4)]]
    >>> [tuple(row.values()) for row in pareto_front(rows)]
    [(1, 9), (2, 5), (4, 4)]
    """
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["memory_mib"], row["cross_entropy"])):
        if not front or row["cross_entropy"] < front[-1]["cross_entropy"]:
            front.append(row)
    return front


def kinds_of(lines: list[dict[str, Any]]) -> alt.Scale:
    """A colour for each kind of row, on every page the same."""
    kinds = {line["row"]["row"]: None for line in lines}
    shown = [kind for kind in COLORS if kind in kinds]
    return alt.Scale(domain=shown, range=[COLORS[kind] for kind in shown])


def quality(lines: list[dict[str, Any]]) -> Any:
    """Size against cross entropy."""
    fields = ("memory_mib", "cross_entropy", "accuracy", "row")
    points: Points = [
        {"model": line["label"]} | {name: line["row"][name] for name in fields} for line in lines
    ]
    x = alt.X("memory_mib:Q", title="size in MiB (pseudo), log scale").scale(
        type="log", nice=False, padding=20
    )
    y = alt.Y("cross_entropy:Q", title="cross entropy in nats, log scale").scale(
        type="log", nice=False, padding=20
    )
    numbers = {
        "cross_entropy": "cross entropy",
        "accuracy": "accuracy",
        "memory_mib": "MiB (pseudo)",
    }
    tooltip = [
        alt.Tooltip("model:N"),
        *(alt.Tooltip(f"{n}:Q", title=t, format=COLUMNS[n][1]) for n, t in numbers.items()),
    ]
    front = alt.Chart(alt.Data(values=pareto_front(points))).mark_line(
        interpolate="step-after", strokeDash=[4, 4], color="#888"
    )
    dots = alt.Chart(alt.Data(values=points)).mark_point(size=90, filled=True, opacity=0.9)
    kinds = kinds_of(lines)
    color = alt.Color("row:N", title=None, scale=kinds).legend(orient="top")
    shape = alt.Shape("row:N", title=None, scale=alt.Scale(domain=kinds["domain"]))
    description = (
        f"Size against cross entropy of {len(points)} models; the dashed line is the Pareto front."
    )
    return alt.layer(
        front.encode(x=x, y=y), dots.encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip)
    ).properties(width="container", height=320, description=description)


def bars(lines: list[dict[str, Any]], name: str, title: str) -> Any:
    """One measure, a bar a row, with the standard deviation over seeds where there are several."""
    form = COLUMNS[name][1]
    points: Points = [
        {"model": line["label"], "value": value, "kind": line["row"]["row"], "low": value - spread, "high": value + spread}
        for line in lines
        if (value := line["row"].get(name)) is not None
        for spread in [line["row"].get("deviation", {}).get(name, 0.0)]
    ]  # fmt: skip
    half = alt.expr("containerSize()[0] / 2")
    base = alt.Chart(alt.Data(values=points)).encode(
        y=alt.Y("model:N", title=None, sort=None).axis(labelLimit=half)
    )
    longest = max(point["high"] for point in points) or 1.0
    value = (
        alt.X("value:Q", title=title).axis(tickCount=4).scale(domain=[0, 1.3 * longest], nice=False)
    )  # with its number
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("value:Q", title=title, format=form)]
    color = alt.Color("kind:N", legend=None, scale=kinds_of(lines))
    layers: list[Any] = [base.mark_bar().encode(x=value, color=color, tooltip=tooltip)]
    if any(point["low"] < point["high"] for point in points):
        layers.append(base.mark_rule(color="#888", strokeWidth=2).encode(x="low:Q", x2="high:Q"))
    layers.append(
        base.mark_text(align="left", dx=4).encode(x="high:Q", text=alt.Text("value:Q", format=form))
    )
    description = f"{title}, a bar for each of {len(points)} models"
    return alt.layer(*layers).properties(
        width="container", height=20 * len(points), description=description
    )


def confidences(line: dict[str, Any]) -> alt.Chart:
    """How probable a model finds its own predictions: a share of the masked tokens for each of equal bins of 0 to 1."""
    found = line["analysis"]["confidence"]
    counts, total = found["histogram"], sum(found["histogram"])
    width = 1 / len(counts)
    points: Points = [
        {"from": n * width, "to": (n + 1) * width, "share": count / total}
        for n, count in enumerate(counts)
    ]
    form = ".2f"
    return (
        alt.Chart(alt.Data(values=points), title=alt.TitleParams(line["example"], limit=230, fontSize=11))
        .mark_rect()
        .encode(
            x=alt.X("from:Q", title="confidence").scale(domain=[0, 1]).axis(values=[0, 0.5, 1]),
            x2="to:Q",
            y=alt.Y("share:Q", title="share").axis(tickCount=3, format="%").scale(domainMin=0, nice=True),
            y2=alt.datum(0),
            tooltip=[alt.Tooltip("from:Q", format=form), alt.Tooltip("to:Q", format=form), alt.Tooltip("share:Q", format=".1%")],
        )
        .properties(width="container", height=90, description=f"{line['example']}: mean confidence {found['mean']:.3f}")
    )  # fmt: skip


def curve_charts(lines: list[dict[str, Any]]) -> list[alt.Chart]:
    """What was logged in the course of each training that has a log in CSV: a line a seed, a colour a row, which the first picture
    names, if there are no more of them than colours."""
    logged = [
        (line["label"], row["run"], name, found)
        for line in lines
        for row in line["row"].get("seeds", [line["row"]])
        for name, found in read_curves(row).items()
    ]
    models = list(dict.fromkeys(model for model, *_ in logged))
    colors = alt.Scale(domain=models, scheme="tableau10" if len(models) <= 10 else "tableau20")
    limit = alt.expr("containerSize()[0] - 80")
    charts: list[alt.Chart] = []
    for name, title in CURVES.items():
        points: Points = [
            {"model": model, "run": run, "step": step, "value": value}
            for model, run, measure, found in logged
            if measure == name
            for step, value in found
        ]
        if len({point["step"] for point in points}) < 2:
            continue
        legend = (
            None
            if charts or len(models) > 20
            else alt.Legend(orient="top", columns=1, labelLimit=limit)
        )
        hover = [alt.Tooltip(f"{field}:N") for field in ("model", "run", "step")]
        charts.append(
            alt.Chart(alt.Data(values=points))
            .mark_line(point={"size": 18})
            .encode(
                x=alt.X("step:Q", title="step"),
                y=alt.Y("value:Q", title=title).scale(
                    **({"type": "log"} if name == "flips/all" else {"zero": False})
                ),
                color=alt.Color("model:N", title=None, scale=colors, legend=legend),
                detail="run:N",
                tooltip=[*hover, alt.Tooltip("value:Q", format=".4~g")],
            )
            .properties(width="container", height=220, description=f"{title}, by training step")
        )
    return charts


def read_curves(row: Row) -> dict[str, list[tuple[int, float]]]:
    """The points (step, value) of each of ``CURVES`` in the CSV logs of a trained row's run: one file a start, where a later one
    goes on from a step of an earlier one and replaces what comes after."""
    if row["row"] != "trained":
        return {}
    found: dict[str, dict[int, float]] = {}
    files = Path(row["run"]).glob("logs/version_*/metrics.csv")
    for file in sorted(files, key=lambda file: int(file.parent.name.removeprefix("version_"))):
        with file.open(encoding="utf-8", newline="") as lines:
            points = [
                (name, int(line["step"]), float(line[name]))
                for line in csv.DictReader(lines)
                for name in CURVES
                if line.get(name) and line.get("step")
            ]
        start = min((step for _, step, _ in points), default=0)
        for name in found:
            found[name] = {step: value for step, value in found[name].items() if step < start}
        for name, step, value in points:
            if value > 0 or name != "flips/all":  # on a log scale
                found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}
