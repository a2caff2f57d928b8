"""``results.html``: what stands in it, and that a browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, sync_playwright

from bitmaps.report.page import pareto_front, read_curves, write_page
from bitmaps.report.table import collect
from bitmaps.runs.folder import Row, RunFolder

NASTY = "</script><b>&\"'<!--"  # a token, a label or an error may have anything in it


def analysis(token: str = ".", true: str = "cat") -> dict[str, Any]:
    guesses = [
        {"token": t, "probability": p} for t, p in ((token, 0.5), (true, 0.25), ("##ing", 0.125))
    ]
    masked = [{"position": 1, "true": true, "predictions": guesses}]
    return {
        "masked_tokens": 20,
        "verdict": f"predicts {token!r} for 100 % of masked tokens with mean confidence 0.019: collapsed",
        "predicted": [
            {
                "token": token,
                "share": 1.0,
                "true_share": 0.1,
                "confidence": 0.019,
                "confidence_std": 0.01,
            }
        ],
        "distinct": 1,
        "entropy": 0.0,
        "mean_entropy": 2.0,
        "confidence": {"mean": 0.019, "std": 0.01, "histogram": [20] + [0] * 19},
        "by_input": {
            kind: {"masked_tokens": 5, "accuracy": 0.2} for kind in ("mask", "random", "unchanged")
        },
        "by_frequency": [
            {"at_least": n, "masked_tokens": 5, "accuracy": None} for n in (1, 10, 100, 1000)
        ],
        "sentences": [
            {"text": "a [MASK]s sat", "pieces": ["a", "[MASK]", "##s", "sat"], "masked": masked},
            {"text": f"the [MASK] {token}", "pieces": ["the", "[MASK]", token], "masked": masked},
        ],
    }


def row(components: str = "layers", kind: str = "naive", **more: Any) -> Row:
    nothing = components == "none"
    facts: Row = {
        "model": "minilm", "data": "wiki", "split": "validation", "limit": None, "mask_seed": 481, "mask_sets": 1,
        "masked_tokens": 20, "components": components, "values": None if nothing else "pm1", "scale": "none",
        "row": kind, "seed": 0, "steps": 0, "cross_entropy": 12.5, "accuracy": 0.01, "mrr": 0.02, "inference_ms": 9.5,
        "memory_mib": 47.4, "device": "cpu", "threads": 2, "commit": "c0ffee", "versions": {"torch": "2.13.0"},
        "command": f"python evaluate.py binarize={components}",
    }  # fmt: skip
    return facts | more


def unscored(path: Path, components: str, error: BaseException | None = None) -> Path:
    """A run that failed, or is still running."""
    measured = (
        "cross_entropy",
        "accuracy",
        "mrr",
        "inference_ms",
        "memory_mib",
        "device",
        "threads",
        "masked_tokens",
    )
    facts = {name: value for name, value in row(components).items() if name not in measured} | {
        "row": None
    }
    folder = RunFolder(path)
    folder.claim("", facts)
    if error is not None:
        folder.fail(error, facts)
    return path


def finished(path: Path, *rows: Row, analyses: dict[str, Any] | None = None) -> Path:
    folder = RunFolder(path)
    folder.claim("", {})
    folder.finish(
        list(rows), {}, {one["row"]: analysis() for one in rows} if analyses is None else analyses
    )
    return path


def log(folder: Path, version: int, points: dict[int, dict[str, float]]) -> None:
    """Curves as Lightning's CSV logger writes them: a line a step and measure."""
    path = folder / "logs" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    names = sorted({name for measures in points.values() for name in measures})
    lines = [",".join([*names, "step"])]
    for step, measures in points.items():
        lines += [
            ",".join([*("" if n != name else str(measures[name]) for n in names), str(step)])
            for name in measures
        ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


class Text(HTMLParser):
    """The text of a page, that of its scripts and styles apart."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
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
            self.said.append(data)


def read(page: str) -> Text:
    text = Text()
    text.feed(page)
    return text


def written(folders: list[Path], tmp_path: Path) -> tuple[str, str]:
    """A page, and its text with single spaces, one at least between two elements."""
    path = tmp_path / "results.html"
    write_page(collect(folders), path)
    page = path.read_text(encoding="utf-8")
    return page, " ".join(" ".join(read(page).said).split())


def specs(page: str) -> list[dict[str, Any]]:
    found = re.search(r"^const specs = (.*);$", page, re.MULTILINE)
    assert found
    charts: list[dict[str, Any]] = json.loads(found[1])
    return charts


def values(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The points of all layers of a chart."""
    layers = [spec, *spec.get("layer", [])]
    data = [layer["data"] for layer in layers if "data" in layer]
    return [
        point
        for one in data
        for point in one.get("values", spec.get("datasets", {}).get(one.get("name"), []))
    ]


def test_a_page_has_every_row_its_verdict_and_what_made_it(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "0", row("none", "unbinarized", cross_entropy=4.1841, memory_mib=86.8)),
        finished(
            tmp_path / "1", row("layers", cross_entropy=12.3768, inference_ms=None, accuracy=0.0)
        ),
        finished(tmp_path / "2", row("all", commit="decaf", versions={"torch": "2.14.0"})),
    ]
    page, text = written(folders, tmp_path)
    assert "none unbinarized 4.1841 0.0100 0.0200 9.50 86.8" in text
    assert "layers {-1,1} naive 12.3768 0.0000 0.0200 47.4" in text
    assert (
        text.index("none unbinarized 4.1841")
        < text.index("all {-1,1} naive 12.5")
        < text.index("layers {-1,1} naive")
    )
    assert (
        text.count("predicts '.' for 100 % of masked tokens with mean confidence 0.019: collapsed")
        == 3
    )
    assert text.count("Commit c0ffee. torch 2.13.0. On cpu with 2 threads.") == 1
    assert "Commit decaf. torch 2.14.0." in text
    for folder, components in zip(folders, ("none", "layers", "all"), strict=True):
        assert f"python evaluate.py binarize={components} {folder}" in text
    assert (
        "Scored on data wiki, split validation, mask seed 481, mask sets 1, masked tokens 20."
        in text
    )
    assert (
        "On the line, the smallest first: layers {-1,1} naive (47.4 MiB, 12.38 nats) ; none unbinarized (86.8"
        in text
    )
    assert all(link.startswith(("#", "data:")) for link in read(page).links)  # it needs no network


def test_every_picture_has_its_points(tmp_path: Path) -> None:
    folders = [
        finished(tmp_path / "0", row("none", "unbinarized")),
        finished(tmp_path / "1", row("layers", "trained", seed=0, mrr=0.1)),
        finished(tmp_path / "2", row("layers", "trained", seed=1, mrr=0.3)),
        finished(tmp_path / "3", row("all", inference_ms=None)),
    ]
    for number in (1, 2):
        log(
            tmp_path / str(number),
            0,
            {n: {"train/loss": 9.0 - n * number, "flips/all": 0.1 / (n + 1)} for n in range(3)},
        )
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
        "share of the signs that flip, a step, by training step",
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
    assert "0, 1 layers {-1,1} trained 12.5000 ± 0.0000 0.0100 ± 0.0000 0.2000 ± 0.1414" in text
    assert "seed 0: predicts '.'" in text  # of several the first is looked at


def test_sentences_stand_side_by_side(tmp_path: Path) -> None:
    folders = [
        finished(
            tmp_path / "0", row("none", "unbinarized"), analyses={"unbinarized": analysis("cat")}
        ),
        finished(tmp_path / "1", row("layers")),
    ]
    page, text = written(folders, tmp_path)
    assert "a [MASK] 1 s sat model 1: cat none unbinarized cat 0.50" in text
    assert text.count("a [MASK] 1 s sat") == 1  # one for both
    assert text.count("the [MASK] 1") == 2  # the text of the other sentence is another
    assert "<strong>cat</strong>" in page
    assert "layers {-1,1} naive . 0.50 cat 0.25 ##ing 0.12" in text


def test_nothing_that_a_run_says_is_markup(tmp_path: Path) -> None:
    nasty = finished(
        tmp_path / "0", row(NASTY, model=NASTY, command=f"python {NASTY}", commit=NASTY, versions={NASTY: NASTY}),
        row(NASTY, "trained", model=NASTY, command=f"python {NASTY}"),
        analyses={kind: analysis(NASTY, NASTY) for kind in ("naive", "trained")},
    )  # fmt: skip
    failed = unscored(tmp_path / "1", "all", RuntimeError(NASTY))
    page, text = written([nasty, failed], tmp_path)
    tags = read(page).tags
    assert "b" not in tags
    assert tags.count("script") == 2
    assert f"RuntimeError: {NASTY}" in text
    assert f"python {NASTY}" in text
    assert f"1: {NASTY}" in text
    assert any(point["model"] == f"{NASTY} {{-1,1}} naive" for point in values(specs(page)[0]))
    assert "<" not in re.search(r"^const specs = (.*);$", page, re.MULTILINE)[1]  # type: ignore[index]


def test_what_cannot_be_compared_says_so_beside_its_row(tmp_path: Path) -> None:
    good = finished(tmp_path / "good", row("none", "unbinarized"))
    also_good = finished(tmp_path / "also", row("all"))
    other = finished(tmp_path / "other", row("layers", data="ptb", masked_tokens=99))
    old = finished(tmp_path / "old", row("layers_except_ffnn"))
    (old / "analysis.json").unlink()
    running = unscored(tmp_path / "running", "ffnn")
    failed = unscored(tmp_path / "failed", "head", ValueError("out of paper"))
    another = unscored(tmp_path / "another", "all")
    (another / "metrics.json").write_text('{"format": 2, "status": "ok"}')
    (tmp_path / "empty").mkdir()
    folders = [good, also_good, other, old, running, failed, another, tmp_path / "empty"]
    page, text = written(folders, tmp_path)
    rows = [
        " ".join(" ".join(read(line).said).split())
        for line in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)[1:9]
    ]
    found = {line.split(" 12.5")[0]: line for line in rows}
    assert (
        "not comparable: scored on data ptb, masked tokens 99" in found["ptb layers {-1,1} naive"]
    )
    assert (
        "no error analysis in its folder: evaluate it again"
        in found["wiki layers_except_ffnn {-1,1} naive"]
    )
    assert (
        f"wiki ffnn {{-1,1}} running no result yet: {running} is still running, or was stopped"
        in rows
    )
    assert "wiki head {-1,1} failed ValueError: out of paper" in rows
    assert any(
        line.startswith("failed") and "another/metrics.json is not of format 1" in line
        for line in rows
    )
    assert any(
        line.startswith("failed") and "empty holds no results: no metrics.json there" in line
        for line in rows
    )
    assert "none unbinarized" in text
    compared = {point["model"] for point in values(specs(page)[0])}
    assert compared == {"none unbinarized", "all {-1,1} naive", "layers_except_ffnn {-1,1} naive"}


def test_a_page_of_failures_alone_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page, text = written([tmp_path / "empty"], tmp_path)
    assert "empty holds no results" in text
    assert specs(page) == []
    assert len(page) < 20_000  # without what draws the pictures


def test_the_curves_of_a_run_that_was_resumed_are_one(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", row(kind="trained"))
    log(
        folder,
        0,
        {n: {"train/loss": 10.0 - n, "flips/all": 0.0 if n == 2 else 0.5} for n in range(6)},
    )  # then it stopped
    log(folder, 2, {n: {"train/loss": 20.0 - n} for n in range(4, 8)})
    log(folder, 10, {n: {"train/loss": 30.0 - n} for n in range(6, 9)})
    found = read_curves(row(kind="trained") | {"run": str(folder)})
    assert found["train/loss"] == [
        (0, 10.0),
        (1, 9.0),
        (2, 8.0),
        (3, 7.0),
        (4, 16.0),
        (5, 15.0),
        (6, 24.0),
        (7, 23.0),
        (8, 22.0),
    ]
    assert found["flips/all"] == [(0, 0.5), (1, 0.5), (3, 0.5)]  # none is no point on a log scale
    assert read_curves(row() | {"run": str(folder)}) == {}  # a reference was not trained


@pytest.mark.parametrize(("count", "named"), [(20, [True, False]), (21, [False, False])])
def test_the_first_picture_names_as_many_curves_as_there_are_colours(
    tmp_path: Path, count: int, named: list[bool]
) -> None:
    folders = [
        finished(tmp_path / str(n), row(kind="trained", recipe=f"r{n}"), analyses={})
        for n in range(count)
    ]
    for folder in folders:
        log(folder, 0, {step: {"train/loss": 1.0, "flips/all": 0.5} for step in range(2)})
    curves = [
        spec
        for spec in specs(written(folders, tmp_path)[0])
        if spec["description"].endswith("by training step")
    ]
    assert [spec["encoding"]["color"]["legend"] is not None for spec in curves] == named
    assert all(len(spec["encoding"]["color"]["scale"]["domain"]) == count for spec in curves)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12))
def test_the_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    rows = [
        {"memory_mib": size, "cross_entropy": ce, "n": n} for n, (size, ce) in enumerate(points)
    ]
    front = [(one["memory_mib"], one["cross_entropy"]) for one in pareto_front(rows)]

    def beaten(point: tuple[int, int]) -> bool:
        return any(
            other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
        )

    assert front == sorted({point for point in points if not beaten(point)})


# In a browser


def chromium() -> str | None:
    names = [os.environ.get("BITMAPS_CHROME"), "chromium", "chromium-browser", "google-chrome"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on PATH, nor named by BITMAPS_CHROME")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with all there is: references, seeds, a long label, a failure, another text, curves."""
    path = tmp_path_factory.mktemp("report")
    folders = [
        finished(
            path / "0",
            row("none", "unbinarized", memory_mib=86.8, cross_entropy=4.1, inference_ms=None),
        ),
        finished(path / "1", row("all", memory_mib=2.7, cross_entropy=41.0, inference_ms=101.25)),
        finished(
            path / "2",
            row(
                "attention+embeddings+ffnn+head",
                "trained",
                scale="rank_one",
                recipe="a_long_name" * 3,
                steps=9,
            ),
        ),
        finished(path / "3", row("layers", "trained", seed=0, accuracy=0.5, steps=100)),
        finished(path / "4", row("layers", "trained", seed=1, accuracy=0.25, steps=100)),
        finished(path / "5", row("layers", data="ptb", command=f"python evaluate.py {'x' * 300}")),
    ]
    for number in (2, 3, 4):
        points = {
            step: {"train/loss": 9.0 / (step + number), "flips/all": 0.1}
            for step in range(0, 60, 10)
        }
        log(path / str(number), 0, points)
    failed = unscored(path / "failed", "ffnn", RuntimeError(NASTY))
    write_page(collect([*folders, failed]), path / "results.html")
    return path / "results.html"


def opened(
    browser: Browser, report: Path, width: int = 1200, scheme: Any = "light"
) -> tuple[Page, list[str]]:
    """The page with its pictures drawn, and all that it complained of or asked the network for."""
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
    ).new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if request.url.startswith("http") else None,
    )
    page.goto(report.as_uri())
    charts = page.locator(".chart").count()
    assert charts > 8
    page.wait_for_function(f"document.querySelectorAll('.chart svg').length === {charts}")
    return page, complaints


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_shows_it_without_a_complaint(
    browser: Browser, report: Path, width: int, scheme: str
) -> None:
    page, complaints = opened(browser, report, width, scheme)
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= width
    )  # what is wider scrolls in a frame of its own
    for box in (svg.bounding_box() for svg in page.locator(".chart svg").all()):
        assert box is not None
        assert box["width"] > 150
        assert box["height"] > 50
        assert box["x"] + box["width"] <= width
    assert page.locator(".chart svg .mark-rect path, .chart svg .mark-symbol path").count() > 20
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()
    assert complaints == []
    page.context.close()


def column(page: Page, heading: str) -> list[str]:
    """A column of the table, from the top."""
    headings = page.locator("#table thead th").all_inner_texts()
    (place,) = (n for n, text in enumerate(headings) if text.strip() == heading)
    return [
        text.strip()
        for text in page.locator(f"#table tbody tr td:nth-child({place + 1})").all_inner_texts()
    ]


@pytest.mark.parametrize("heading", ["CE", "ms", "accuracy", "MiB (pseudo)"])
def test_a_click_sorts_by_a_number(browser: Browser, report: Path, heading: str) -> None:
    page, complaints = opened(browser, report)
    before = column(page, heading)
    numbers = sorted(float(text.split(" ±")[0]) for text in before if text)
    blanks = before.count("")
    assert blanks >= 1
    button = page.locator("#table").get_by_role("button", name=heading, exact=True)
    for expected, direction in (
        (numbers, "ascending"),
        (numbers[::-1], "descending"),
        (numbers, "ascending"),
    ):
        button.click()
        shown = column(page, heading)
        assert [float(text.split(" ±")[0]) for text in shown[: len(numbers)]] == expected
        assert shown[len(numbers) :] == [""] * blanks
        assert page.locator("#table th[aria-sort]").count() == 1
        assert page.locator("#table th[aria-sort]").get_attribute("aria-sort") == direction
    assert sorted(column(page, heading)) == sorted(before)
    assert complaints == []
    page.context.close()


def test_a_key_sorts_by_a_name(browser: Browser, report: Path) -> None:
    page, _ = opened(browser, report)
    button = page.locator("#table").get_by_role("button", name="components", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    ascending = column(page, "components")
    assert ascending == sorted(ascending)
    page.keyboard.press("Space")
    assert column(page, "components") == ascending[::-1]
    page.locator("#table").get_by_role("button", name="steps", exact=True).click()
    # as text they would come the other way round
    assert [steps for steps in column(page, "steps") if steps != "0"] == ["9", "100"]
    page.context.close()


def test_it_prints_with_every_sentence_open(browser: Browser, report: Path) -> None:
    page, complaints = opened(browser, report)
    assert page.locator("details:not([open])").count() > 0
    assert page.pdf().startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert complaints == []
    page.context.close()
