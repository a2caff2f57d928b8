"""``results.html`` in a browser."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from report.examples import facts, finished, log, row, unfinished

from bitmaps.report.comparison import compare
from bitmaps.report.page import write_page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep with references, seeds, a long label, a failure, another text and
    training curves."""
    path = tmp_path_factory.mktemp("report")
    long_names = {"scale": "rank_one", "recipe": "a_long_name" * 3}
    guess = {"guessing": 10.3}
    whole = {"memory_mib": 86.8, "cross_entropy": 4.1, "inference_ms": None, **guess}
    naive = {"memory_mib": 2.7, "cross_entropy": 41.0, "inference_ms": 101.25, **guess}
    seeds = {"steps": 100, "cross_entropy": 5.0, "memory_mib": 47.7, **guess}
    folders = [
        finished(path / "0", row("none", "unbinarized", **whole)),
        finished(path / "1", row("all", **naive)),
        finished(
            path / "2", row("attention+embeddings+ffnn+head", "trained", steps=9, **long_names)
        ),
        finished(
            path / "3",
            row("layers", "trained", seed=0, accuracy=0.5, **seeds),
            row("layers", "packed", seed=0, accuracy=0.5, **seeds),
        ),
        finished(path / "4", row("layers", "trained", seed=1, accuracy=0.25, **seeds)),
        finished(path / "5", row("layers", data="ptb", command=f"python evaluate.py {'x' * 300}")),
    ]
    for number in (2, 3, 4):
        steps = range(0, 60, 10)
        points = {step: {"train/loss": 9.0 / (step + number), "flips/all": 0.1} for step in steps}
        log(path / str(number), 0, points)
    failed = unfinished(path / "failed", facts("ffnn"), RuntimeError("<b>out of paper</b>"))
    write_page(compare([*folders, failed]), path / "results.html")
    return path / "results.html"


def opened(
    browser: Browser, report: Path, width: int = 1200, scheme: Any = "light"
) -> tuple[Page, list[str]]:
    """The page with its charts drawn, and its complaints and requests to the network."""
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
def test_a_browser_shows_the_page_without_a_complaint(
    browser: Browser, report: Path, width: int, scheme: str
) -> None:
    page, complaints = opened(browser, report, width, scheme)
    assert (
        page.evaluate("document.documentElement.scrollWidth") <= width
    )  # wide tables scroll in frames of their own
    for box in (svg.bounding_box() for svg in page.locator(".chart svg").all()):
        assert box is not None
        assert box["width"] > 150
        assert box["height"] > 50
        assert box["x"] + box["width"] <= width
    assert page.locator(".chart svg .mark-rect path, .chart svg .mark-symbol path").count() > 20
    sizes = page.locator("figure svg text").evaluate_all(
        "all => all.map(text => parseFloat(getComputedStyle(text).fontSize)"
        " * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b))"
    )
    assert len(sizes) > 100
    assert min(sizes) >= 12 * 0.99
    for details in page.locator("details").all():
        details.evaluate("details => details.open = true")
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()
    assert complaints == []
    page.context.close()


BOXES = """all => all.filter(text => getComputedStyle(text).opacity > 0 && text.textContent)
    .map(text => { const box = text.getBoundingClientRect();
                   return [text.textContent, box.left, box.top, box.right, box.bottom]; })"""


@pytest.mark.parametrize("width", [1400, 390])
def test_labels_of_models_do_not_cover_each_other(
    browser: Browser, report: Path, width: int
) -> None:
    page, complaints = opened(browser, report, width)
    boxes = page.locator("#quality .mark-text text").evaluate_all(BOXES)
    names = {box[0] for box in boxes}
    assert {"guessing", "unbinarized", "all {-1,1} naive"} <= names
    assert (len(names) >= 5) or width == 390
    for (_, *a), (_, *b) in combinations(boxes, 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, (a, b)
    assert complaints == []
    page.context.close()


def test_tables_are_cards_on_a_phone(browser: Browser, report: Path) -> None:
    page, complaints = opened(browser, report, 390)
    for table in page.locator("table").all():
        if table.is_visible():
            inner = table.evaluate("table => table.parentElement.scrollWidth")
            assert inner <= table.evaluate("table => table.parentElement.clientWidth")
    cards = page.locator("#table tbody tr")
    titles = cards.evaluate_all("all => all.map(card => card.dataset.title)")
    assert "all {-1,1} naive" in titles
    card = cards.nth(titles.index("all {-1,1} naive"))
    style = "(cell, part) => getComputedStyle(cell, part)"
    assert "all {-1,1} naive" in card.evaluate(f"card => ({style})(card, '::before').content")
    cells = [cell for cell in card.locator("td").all() if cell.is_visible()]
    tops = [(cell.bounding_box() or {})["y"] for cell in cells]
    assert tops == sorted(set(tops))  # a value a line
    labels = {cell.get_attribute("data-label"): cell.inner_text().strip() for cell in cells}
    assert {"CE": "41.0000", "ms": "101.25", "MiB (pseudo)": "2.7"}.items() <= labels.items()
    assert "values" not in labels  # the title has it
    assert "" not in labels.values()
    first = cells[0].get_attribute("data-label")
    assert first in cells[0].evaluate(f"cell => ({style})(cell, '::before').content")
    page.locator("#table").get_by_role("button", name="CE", exact=True).click()
    assert cards.first.get_attribute("data-title") == "none unbinarized"
    found = page.locator("#table").get_by_role("cell", name="41.0000")
    assert found.count() == 1  # a table is a table for those who do not see it
    assert complaints == []
    page.context.close()


def test_a_table_that_is_too_wide_says_so(browser: Browser, report: Path) -> None:
    page, complaints = opened(browser, report, 800)
    frame = page.locator("#table .frame")
    hint = "frame => getComputedStyle(frame, '::before').content"
    shadow = "frame => getComputedStyle(frame, '::after').opacity"
    page.wait_for_function(f"({shadow})(document.querySelector('#table .frame')) === '1'")
    assert "Scroll sideways" in frame.evaluate(hint)
    frame.locator(".wide").evaluate("inner => inner.scrollLeft = inner.scrollWidth")
    page.wait_for_function(f"({shadow})(document.querySelector('#table .frame')) === '0'")
    page.set_viewport_size({"width": 4000, "height": 900})
    frame.evaluate("frame => document.body.style.maxWidth = 'none'")
    page.wait_for_function(
        f"({hint})(document.querySelector('#table .frame')) === 'none'"
    )  # all columns are in sight
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
    # as text, the order would be the opposite
    assert [steps for steps in column(page, "steps") if steps != "0"] == ["9", "100", "100"]
    page.context.close()


def test_it_prints_with_every_sentence_open(browser: Browser, report: Path) -> None:
    page, complaints = opened(browser, report)
    assert page.locator("details:not([open])").count() > 0
    assert page.pdf().startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    widths = "all => all.map(svg => svg.getBoundingClientRect().width)"
    charts = page.locator(".chart svg")
    before = charts.evaluate_all(widths)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert max(charts.evaluate_all(widths)) <= 700  # of a page of A4: nothing is scaled down
    natural = charts.evaluate_all("all => all.map(svg => svg.width.baseVal.value)")
    assert charts.evaluate_all(widths) == pytest.approx(natural, abs=0.5)
    page.emulate_media(media="screen")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert charts.evaluate_all(widths) == pytest.approx(before)
    assert complaints == []
    page.context.close()
