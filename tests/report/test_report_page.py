"""The content of ``results.html``."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report.examples import analysis, facts, finished, log, row, unfinished

from bitmaps.report.charts import read_curves
from bitmaps.report.comparison import compare
from bitmaps.report.page import write_page
from bitmaps.report.palette import STYLES
from bitmaps.runs.analysis import Confidence
from bitmaps.vocabulary import RowKind

NASTY = "</script><b>&\"'<!--"  # a token, a label or an error can contain anything


class Text(HTMLParser):
    """The text of a page without its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        self.inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if not self.inside:
            self.texts.append(data)


def read(page: str) -> Text:
    text = Text()
    text.feed(page)
    return text


def words(page: str) -> str:
    """The text with single spaces, at least one between two elements."""
    return " ".join(" ".join(read(page).texts).split())


def written(folders: list[Path], tmp_path: Path) -> tuple[str, str]:
    """A page and its text."""
    path = tmp_path / "results.html"
    write_page(compare(folders), path)
    page = path.read_text(encoding="utf-8")
    return page, words(page)


def specs(page: str) -> list[dict[str, Any]]:
    found = re.search(r"^const specs = (.*);$", page, re.MULTILINE)
    assert found
    charts: list[dict[str, Any]] = json.loads(found[1])
    return charts


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of all layers of a chart."""
    layers = [spec, *spec.get("layer", [])]
    data = [layer["data"] for layer in layers if "data" in layer]
    sets = spec.get("datasets", {})
    return [point for one in data for point in one.get("values", sets.get(one.get("name"), []))]


def test_a_page_has_every_row_its_verdict_and_its_origin(tmp_path: Path) -> None:
    groups = ("none", "layers", "all")
    origins = [{}, {}, {"commit": "decaf", "versions": {"torch": "2.14.0"}}]
    measured = [
        {"cross_entropy": 4.1841, "memory_mib": 86.8},
        {"cross_entropy": 12.3768, "inference_ms": None, "accuracy": 0.0, "memory_mib": 47.4},
        {"memory_mib": 48.0},
    ]
    folders = [
        finished(
            tmp_path / group,
            row(
                group,
                "unbinarized" if group == "none" else "naive",
                command=f"python evaluate.py binarize={group}",
                **(origin | scores),
            ),
        )
        for group, origin, scores in zip(groups, origins, measured, strict=True)
    ]
    page, text = written(folders, tmp_path)
    lines = (
        "none unbinarized 4.1841 0.0322 0.0543 100.0 1.23 86.8",
        "all {-1,1} naive 12.5000 0.0322 0.0543 100.0 1.23 48.0",
        "layers {-1,1} naive 12.3768 0.0000 0.0543 0.0 47.4",
    )
    places = [text.index(line) for line in lines]
    assert places == sorted(places)
    assert text.count("predicts '.': collapsed") == 3
    assert text.count("Commit c0ffee. torch 2.13.0. On cpu with 2 threads.") == 1
    assert "Commit decaf. torch 2.14.0." in text
    for folder in folders:
        assert f"python evaluate.py binarize={folder.name} {folder}" in text
    scored_on = "data wiki, split validation, mask seed 481, mask sets 1, masked tokens 20"
    assert f"Scored on {scored_on}" in text
    front = "layers {-1,1} naive (47.4 MiB, 12.38 nats) ; none unbinarized (86.8"
    assert f"Models on the line, smallest first: {front}" in text
    assert all(link.startswith(("#", "data:")) for link in read(page).links)  # needs no network


def test_every_chart_has_its_points(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "0", row("none", "unbinarized")),
        finished(tmp_path / "1", row("layers", "trained", seed=0, mrr=0.1)),
        finished(tmp_path / "2", row("layers", "trained", seed=1, mrr=0.3)),
        finished(tmp_path / "3", row("all", inference_ms=None)),
    ]
    for number in (1, 2):
        points = {n: {"train/loss": 9.0 - n * number, "flips/all": 0.1 / (n + 1)} for n in range(3)}
        log(tmp_path / str(number), 0, points)
    page, text = written(folders, tmp_path)
    charts = {spec["description"]: spec for spec in specs(page)}
    assert list(charts) == [
        "Size against cross entropy of 3 models; the dashed line is the Pareto front.",
        "cross entropy, nats, a bar for each of 3 models",
        "accuracy, a bar for each of 3 models",
        "mean reciprocal rank, top 32, a bar for each of 3 models",
        "milliseconds a sequence, a bar for each of 2 models",
        "MiB (pseudo), a bar for each of 3 models",
        "none unbinarized: mean confidence 0.019",
        "all {-1,1} naive: mean confidence 0.019",
        "layers {-1,1} trained, seed 0: mean confidence 0.019",
        "training loss, by training step",
        "share of signs that flip per step, by training step",
    ]
    bars = values(charts["mean reciprocal rank, top 32, a bar for each of 3 models"])
    pooled = next(bar for bar in bars if bar["model"] == "layers {-1,1} trained")
    assert pooled["value"] == pytest.approx(0.2)
    assert (pooled["low"], pooled["high"]) == pytest.approx((0.2 - 0.02**0.5, 0.2 + 0.02**0.5))
    losses = values(charts["training loss, by training step"])
    assert {(one["run"], one["step"], one["value"]) for one in losses} == {
        (str(tmp_path / str(number)), step, 9.0 - step * number)
        for number in (1, 2)
        for step in range(3)
    }
    assert "0, 1 layers {-1,1} trained 12.5000 ± 0.0000" in text
    assert "none unbinarized 12.5000" in text
    assert "seed 0: predicts '.'" in text  # the first seed is shown


def layer(spec: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in spec["layer"] if one.get("name") == name)
    return found


def test_the_page_begins_with_the_finding_and_what_it_is_of(tmp_path: Path) -> None:
    new = {"processor": "Abacus 9", "scored_at": "2026-07-11T10:12:30+00:00"}
    whole = row("none", "unbinarized", accuracy=0.4, memory_mib=86.8, **new)
    own = row("layers", "trained", accuracy=0.3, memory_mib=47.7, **new)
    failed = unfinished(tmp_path / "1", facts("all"), RuntimeError("x"))
    page, text = written([finished(tmp_path / "0", whole, own), failed], tmp_path)
    headline = (
        "layers in {-1,1}, trained, keep 75.0 % of full precision's accuracy in 47.7 of 86.8 MiB"
    )
    places = [
        text.index(said)
        for said in (
            f"{headline}. 1 run has failed.",
            "Model minilm Scored on data wiki,",
            "Date 2026-07-11 10:12 UTC Machine Abacus 9 with 2 threads",
            "Size and quality",
        )
    ]
    assert places == sorted(places)
    assert read(page).tags.count("h1") == 1
    assert re.search("<h1>.*75.0\N{NO-BREAK SPACE}%.*86.8\N{NO-BREAK SPACE}MiB", page)
    assert "On Abacus 9 with 2 threads." in text


def test_the_share_of_full_precision_is_a_bar_in_its_cell(tmp_path: Path) -> None:
    rows = [row("none", "unbinarized", accuracy=0.4), row("all", accuracy=0.5), row(accuracy=0.1)]
    page, text = written([finished(tmp_path / str(n), one) for n, one in enumerate(rows)], tmp_path)
    assert re.findall(r"--kept: ([\d.]+%)", page) == ["100.0%", "100.0%", "25.0%"]
    assert [f"{share} 1.23" in text for share in ("125.0", "25.0")] == [True, True]
    assert "% of full precision compares the accuracy with that of the same model" in text


def test_guessing_is_a_line_and_worse_models_are_not_on_the_front(tmp_path: Path) -> None:
    guess = {"guessing": 10.3}
    rows = [
        row("none", "unbinarized", memory_mib=86.8, cross_entropy=4.1, **guess),
        row("all", memory_mib=2.7, cross_entropy=41.0, **guess),
        row("ffnn", "packed", memory_mib=30.0, cross_entropy=5.0, inference_ms=None, **guess),
    ]
    page, text = written([finished(tmp_path / str(n), one) for n, one in enumerate(rows)], tmp_path)
    chart = specs(page)[0]
    assert values(layer(chart, "guessing")) == [{"score": 10.3}]
    assert [point["mib"] for point in values(layer(chart, "front"))] == [30.0, 86.8]
    assert "smallest first: ffnn {-1,1} packed (30.0 MiB, 5.00 nats) ; none unbinarized" in text
    assert "The dotted line is a model that only guesses" in text
    dots = layer(chart, "dots")
    assert dots["encoding"]["size"]["legend"]["title"] == "milliseconds a sequence"
    assert {point["short"]: point["ms"] for point in values(dots)} == {
        "unbinarized": 1.2345, "all {-1,1}": 1.2345, "ffnn {-1,1}": None,
    }  # fmt: skip
    assert chart["usermeta"] == {"labels": "short"}
    for axis in ("x", "y"):
        assert dots["encoding"][axis]["scale"]["type"] == "log"
    assert dots["encoding"]["x"]["axis"]["values"] == [5, 10, 20, 50, 100]
    lost = finished(tmp_path / "lost", rows[1])
    _, text = written([lost], tmp_path)
    assert "No model is better than guessing." in text


def test_charts_have_one_palette_large_text_and_one_scale_of_confidence(tmp_path: Path) -> None:
    sure = replace(analysis(), confidence=Confidence(0.9, 0.1, [0] * 19 + [20]))
    unsure = replace(analysis(), confidence=Confidence(0.1, 0.1, [1] * 20))
    rows = [
        finished(tmp_path / "0", row("none", "unbinarized"), analyses={RowKind.unbinarized: sure}),
        finished(tmp_path / "1", row("all"), analyses={RowKind.naive: unsure}),
    ]
    page, _ = written(rows, tmp_path)
    charts = specs(page)
    histograms = [one for one in charts if "mean confidence" in one["description"]]
    assert [one["encoding"]["y"]["scale"]["domain"] for one in histograms] == [[0, 1.0], [0, 1.0]]
    colors = {one["mark"]["color"] for one in histograms}
    assert colors == {STYLES[kind].on_page for kind in (RowKind.unbinarized, RowKind.naive)}
    for chart in charts:
        axis, legend = chart["config"]["axis"], chart["config"]["legend"]
        sizes = (axis["labelFontSize"], axis["titleFontSize"], legend["labelFontSize"])
        assert min(*sizes, legend["titleFontSize"], chart["config"]["text"]["fontSize"]) >= 12
    scales = [
        one["encoding"]["color"]["scale"]
        for chart in charts
        for one in chart.get("layer", [])
        if one.get("encoding", {}).get("color", {}).get("scale")
    ]
    assert len(scales) >= 5
    for scale in scales:
        assert scale["domain"] == ["unbinarized", "naive"]
        assert scale["range"] == [STYLES[RowKind(kind)].on_page for kind in scale["domain"]]


def test_sentences_are_side_by_side(tmp_path: Path) -> None:
    own = {RowKind.unbinarized: analysis("cat")}
    folders = [
        finished(tmp_path / "0", row("none", "unbinarized"), analyses=own),
        finished(tmp_path / "1", row("layers")),
    ]
    page, text = written(folders, tmp_path)
    assert "a [MASK] 1 s sat model mask 1, true: cat none unbinarized cat 0.50" in text
    assert text.count("a [MASK] 1 s sat") == 1  # both models were shown it
    assert text.count("the [MASK] 1") == 2  # the other sentences differ
    assert "<strong>cat</strong>" in page
    assert "layers {-1,1} naive . 0.50 cat 0.25 ##ing 0.12" in text


def test_nothing_that_a_run_says_is_markup(tmp_path: Path) -> None:
    texts = {"model": NASTY, "command": f"python {NASTY}", "commit": NASTY}
    nasty = finished(
        tmp_path / "0",
        row(NASTY, **texts, versions={NASTY: NASTY}),
        row(NASTY, "trained", **texts),
        analyses={kind: analysis(NASTY, NASTY) for kind in (RowKind.naive, RowKind.trained)},
    )
    failed = unfinished(tmp_path / "1", facts("all"), RuntimeError(NASTY))
    page, text = written([nasty, failed], tmp_path)
    tags = read(page).tags
    assert "b" not in tags
    assert tags.count("script") == 2
    for shown in (f"RuntimeError: {NASTY}", f"python {NASTY}", f"mask 1, true: {NASTY}"):
        assert shown in text
    points = values(layer(specs(page)[0], "dots"))
    assert any(point["model"] == f"{NASTY} {{-1,1}} naive" for point in points)
    (line,) = re.findall(r"^const specs = (.*);$", page, re.MULTILINE)
    assert "<" not in line


def test_a_row_that_cannot_be_compared_says_so(tmp_path: Path) -> None:
    old = finished(tmp_path / "old", row("layers_except_ffnn"))
    (old / "analysis.json").unlink()
    folders = [
        finished(tmp_path / "good", row("none", "unbinarized")),
        finished(tmp_path / "also", row("all")),
        finished(tmp_path / "other", row("layers", data="ptb", masked_tokens=99)),
        old,
        unfinished(tmp_path / "failed", facts("head"), ValueError("out of paper")),
        tmp_path / "empty",
    ]
    (tmp_path / "empty").mkdir()
    page, _ = written(folders, tmp_path)
    lines = [words(line) for line in re.findall("<tr[^>]*>(.*?)</tr>", page, re.DOTALL)[1:7]]
    found = {line.split(" 12.5")[0]: line for line in lines}
    note = "not comparable: scored on data ptb, masked tokens 99"
    assert note in found["ptb layers {-1,1} naive"]
    missing = "no error analysis in its folder: evaluate it again"
    assert missing in found["wiki layers_except_ffnn {-1,1} naive"]
    assert "wiki head {-1,1} failed ValueError: out of paper" in lines
    assert any(line.startswith("failed") and "empty holds no results" in line for line in lines)
    compared = {point["model"] for point in values(layer(specs(page)[0], "dots"))}
    assert compared == {"none unbinarized", "all {-1,1} naive", "layers_except_ffnn {-1,1} naive"}


def test_a_page_of_failures_alone_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page, text = written([tmp_path / "empty"], tmp_path)
    assert "empty holds no results" in text
    assert specs(page) == []
    assert "There is no result yet. 1 run has failed." in text
    assert len(page) < 30_000  # without the script that draws


def test_the_curves_of_a_resumed_run_are_one(tmp_path: Path) -> None:
    first = {n: {"train/loss": 10.0 - n, "flips/all": 0.0 if n == 2 else 0.5} for n in range(6)}
    log(tmp_path, 0, first)
    log(tmp_path, 2, {n: {"train/loss": 20.0 - n} for n in range(4, 8)})
    log(tmp_path, 10, {n: {"train/loss": 30.0 - n} for n in range(6, 9)})
    found = read_curves(tmp_path)
    losses = [10.0, 9.0, 8.0, 7.0, 16.0, 15.0, 24.0, 23.0, 22.0]
    assert found["train/loss"] == list(enumerate(losses))
    assert found["flips/all"] == [(0, 0.5), (1, 0.5), (3, 0.5)]  # 0 has no place on a log axis


def test_references_have_no_curves(tmp_path: Path) -> None:
    folder = finished(tmp_path / "0", row("none", "unbinarized"), row("ffnn", "trained"))
    log(folder, 0, {n: {"train/loss": 9.0 - n} for n in range(3)})
    page, _ = written([folder], tmp_path)
    losses = next(one for one in specs(page) if one["description"].startswith("training loss"))
    assert {point["model"] for point in values(losses)} == {"ffnn {-1,1} trained"}


@pytest.mark.parametrize(("count", "named"), [(20, [True, False]), (21, [False, False])])
def test_the_first_chart_of_curves_has_a_legend_if_the_colours_suffice(
    tmp_path: Path, count: int, named: list[bool]
) -> None:
    folders = [
        finished(tmp_path / str(n), row(kind="trained", recipe=f"r{n}")) for n in range(count)
    ]
    for folder in folders:
        log(folder, 0, {step: {"train/loss": 1.0, "flips/all": 0.5} for step in range(2)})
    charts = specs(written(folders, tmp_path)[0])
    colors = [
        spec["encoding"]["color"]
        for spec in charts
        if spec["description"].endswith("by training step")
    ]
    assert [color["legend"] is not None for color in colors] == named
    assert all(len(color["scale"]["domain"]) == count for color in colors)
