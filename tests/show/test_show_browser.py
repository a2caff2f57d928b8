"""The page in a browser, served by the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect
from show.examples import tiny_run
from transformers import PreTrainedTokenizerBase

from bitmaps.vocabulary import Task

pytest.importorskip("streamlit", reason="the page needs the extra `show`")

SECONDS = 60_000
SERVE = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen"):
        print("left the process:", event, arguments, file=sys.stderr, flush=True)
sys.addaudithook(watch)
from bitmaps.show.__main__ import main
main()
"""


@dataclass(frozen=True)
class Served:
    url: str
    folders: list[Path]


@pytest.fixture(scope="module")
def served(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[Served]:
    """The page of two runs for masked words, of which the second started from a model of the Hub
    that is not here, of an encoder and of a classifier. At its end, Ctrl-C."""
    path = tmp_path_factory.mktemp("runs")
    folders = [
        tiny_run(path / name, tokenizer, task, ("good", "bad"))
        for name, task in (
            ("words", Task.masked_lm),
            ("a-second-run-of-words-whose-folder-has-a-long-name", Task.masked_lm),
            ("vectors", Task.sentence_embedding),
            ("classes", Task.classification),
        )
    ]
    config = folders[1] / "config.yaml"
    start = f"{folders[1]}-start"
    config.write_text(config.read_text().replace(start, "nobody/nothing"))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    command = [sys.executable, "-c", SERVE, *map(str, folders), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield Served(found[0], folders)
                break
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, rest, errors) == (0, "", ""), said


def opened(
    browser: Browser, served: Served, width: int = 1400, scheme: Any = "light"
) -> tuple[Page, list[str]]:
    """The page with its first answers, and its complaints and requests to other machines."""
    page = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme
    ).new_page()
    page.set_default_timeout(SECONDS)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    here = (served.url, served.url.replace("http:", "ws:"), "data:", "blob:")
    page.on(
        "request",
        lambda request: None if request.url.startswith(here) else complaints.append(request.url),
    )
    page.goto(served.url)
    expect(tables(page)).to_have_count(1, timeout=SECONDS)
    return page, complaints


def tables(page: Page) -> Locator:
    return page.get_by_role("table")  # those of hidden tabs are not among them


def tab(page: Page, name: str, count: int) -> None:
    page.get_by_role("tab", name=name).click()
    expect(tables(page)).to_have_count(count, timeout=SECONDS)


def check(page: Page, width: int) -> None:
    """Nothing is cut off, and axe-core finds nothing."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    edges = page.evaluate(
        "[...document.querySelectorAll('.answer :is(td, li)')].map(e => e.getBoundingClientRect())"
        ".filter(box => box.width).flatMap(box => [box.left, box.right])"
    )
    assert edges
    assert min(edges) >= 0
    assert max(edges) <= width
    found = Axe().run(page)
    assert not found.response["violations"], found.generate_report()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        (390, "dark"),
        pytest.param(1400, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
    ],
)
def test_a_browser_shows_the_page_without_a_complaint(
    browser: Browser, served: Served, width: int, scheme: str
) -> None:
    page, complaints = opened(browser, served, width, scheme)
    background = page.evaluate("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert red < 60 if scheme == "dark" else red > 200
    check(page, width)
    headings = tables(page).get_by_role("rowheader").all_inner_texts()
    models = ["fp32", "naive", "trained", "packed"]
    words, second = map(str, served.folders[:2])
    assert [text.split("\n")[0] for text in headings] == [words, *models, second, *models[2:]]
    expect(page.get_by_text(f"{second}: fp32 and naive are left out")).to_be_visible()
    for name, count in (("Sentences", 2), ("Classes", 1)):
        tab(page, name, count)
        check(page, width)
    assert complaints == []
    page.context.close()


def test_the_sentence_that_is_typed_is_filled_in(browser: Browser, served: Served) -> None:
    page, complaints = opened(browser, served)
    sentence = page.get_by_label("A sentence with [MASK]")
    sentence.fill("[MASK] cat <b> [MASK]")
    sentence.press("Enter")
    expect(tables(page).get_by_text("[MASK] 2")).to_have_count(6, timeout=SECONDS)
    values = tables(page).locator("tr").nth(2).locator(".value").all_inner_texts()
    shares = [float(text.removesuffix(" %")) for text in values]
    assert len(shares) == 10
    assert shares[:5] == sorted(shares[:5], reverse=True)
    bars = [
        box["width"]
        for one in page.locator("tr .bar span").all()[:2]
        if (box := one.bounding_box())
    ]
    assert bars[0] >= bars[1] > 0
    sentence.fill("nothing is missing")
    page.get_by_role("button", name="Fill in").click()
    message = page.get_by_text("The sentence has nothing to fill in: put [MASK]")
    expect(message).to_be_visible(timeout=SECONDS)
    expect(tables(page)).to_have_count(0, timeout=SECONDS)
    sentence.fill("the " * 20 + "[MASK]")
    sentence.press("Enter")
    message = page.get_by_text("The sentence has 23 pieces, more than the model's 12 positions.")
    expect(message).to_be_visible(timeout=SECONDS)
    assert complaints == []
    page.context.close()


def test_texts_are_ranked_and_stay_text(browser: Browser, served: Served) -> None:
    page, complaints = opened(browser, served, 390)
    tab(page, "Sentences", 2)
    page.get_by_label("Query").fill("a dog")
    texts = ["<img src=x onerror=alert(1)>", "a dog", "**the** sky $x$ :red[y]", "the cat " * 9]
    page.get_by_label("Texts, one per line").fill("\n".join(texts))
    page.get_by_role("button", name="Search").click()
    message = page.get_by_text("Text 4 has 20 pieces; the model reads the first 12.")
    expect(message).to_be_visible(timeout=SECONDS)
    found = tables(page).last.locator("ol").first.locator(".text").all_inner_texts()
    assert found[0] == "a dog"
    assert sorted(found) == sorted(text.strip() for text in texts)
    check(page, 390)
    assert complaints == []
    page.context.close()


def test_a_pair_is_classified(browser: Browser, served: Served) -> None:
    page, complaints = opened(browser, served)
    tab(page, "Classes", 1)
    first = tables(page).locator("ol").first
    before = first.inner_text()
    page.get_by_label("A second sentence").fill("the dog ran")
    page.get_by_role("button", name="Classify").click()
    expect(first).not_to_have_text(before, use_inner_text=True, timeout=SECONDS)
    assert set(first.locator(".text").all_inner_texts()) == {"good", "bad"}
    assert complaints == []
    page.context.close()
