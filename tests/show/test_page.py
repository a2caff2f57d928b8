"""The page as Streamlit runs it, without a browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from show.examples import tiny_run
from transformers import PreTrainedTokenizerBase

from bitmaps.show import server
from bitmaps.show.groups import Group, open_group
from bitmaps.vocabulary import Task

streamlit = pytest.importorskip("streamlit", reason="the page needs the extra `show`")

PAGE = str(Path(server.__file__).with_name("page.py"))
MASKS, VECTORS, CLASSES = Task.masked_lm, Task.sentence_embedding, Task.classification
Opened = Callable[..., Any]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    from streamlit.testing.v1 import AppTest

    def run(*groups: Group) -> Any:
        monkeypatch.setattr(server, "shown", list(groups))
        page = AppTest.from_file(PAGE, default_timeout=60).run()
        assert not page.exception
        return page

    return run


@pytest.fixture(scope="module")
def groups(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase
) -> dict[Task, Group]:
    path = tmp_path_factory.mktemp("runs")
    return {
        task: open_group(str(tiny_run(path / task, tokenizer, task, ("good", "bad"))))
        for task in Task
    }


def tables(page: Any) -> list[str]:
    return [one.proto.body for one in page.get("html") if 'class="answer"' in one.proto.body]


def notes(page: Any) -> list[str]:
    bodies = [one.proto.body for one in page.get("html")]
    return [note for body in bodies for note in re.findall(r'<p class="note">(.*?)</p>', body)]


def labels(page: Any) -> list[str]:
    return [one.label for one in (*page.text_input, *page.text_area)]


@pytest.mark.parametrize(
    ("tasks", "tabs", "questions"),
    [
        ([MASKS], [], 1),
        ([VECTORS], [], 2),
        ([CLASSES], [], 1),
        ([CLASSES, MASKS], ["Masked words", "Classes"], 2),
        ([VECTORS, MASKS, CLASSES], ["Masked words", "Sentences", "Classes"], 4),
    ],
)
def test_a_folder_shows_what_its_task_has(
    tasks: list[Task],
    tabs: list[str],
    questions: int,
    opened: Opened,
    groups: dict[Task, Group],
) -> None:
    page = opened(*(groups[task] for task in tasks))
    assert [tab.label for tab in page.tabs] == tabs
    assert len(page.button) == questions
    for task, label in (
        (MASKS, "A sentence with [MASK] where a word is missing"),
        (VECTORS, "Texts, one per line"),
        (CLASSES, "A second sentence, if the classes are of pairs"),
    ):
        assert (label in labels(page)) == (task in tasks)


def rows(table: str) -> list[tuple[str, str]]:
    """The heading of each row and the rest of it, folders included."""
    found = re.findall(r'<tr role="row"[^>]*>(.*?)</tr>', table, re.S)[1:]
    return [(re.findall(r"<th[^>]*>([^<]*)", row)[0], row) for row in found]


def test_a_question_is_answered_by_every_model_of_every_folder(
    opened: Opened, groups: dict[Task, Group]
) -> None:
    first = groups[MASKS]
    second = replace(first, name="<b>other</b>", models=first.models[3:])
    page = opened(first, second)
    page.text_input[0].set_value("the [MASK] sat on the mat")
    page.button[0].click().run()
    (table,) = tables(page)
    assert notes(page) == []
    found = rows(table)
    assert [name for name, _ in found] == [
        first.name, "fp32", "naive", "trained", "packed", "&lt;b&gt;other&lt;/b&gt;", "packed",
    ]  # fmt: skip
    for name, row in found:
        if name in ("fp32", "packed"):
            assert len(re.findall(r'class="text"', row)) == 5
            assert len(re.findall(r"\d+\.\d %", row)) == 5
            ms, mib = re.findall(r'class="number">([\d.]+)<', row)
            assert float(ms) > 0
            assert float(mib) >= 0
    assert "measured on this machine just now" in table


def test_a_mistake_is_a_message_on_the_page(opened: Opened, groups: dict[Task, Group]) -> None:
    page = opened(groups[MASKS])
    for text, said in (
        ("no gap", "The sentence has nothing to fill in: put [MASK] where a word is missing."),
        ("", "The sentence is empty."),
        ("the " * 20 + "[MASK]", "more than the model&#39;s 12 positions."),
    ):
        page.text_input[0].set_value(text)
        page.button[0].click().run()
        assert not page.exception
        assert tables(page) == []
        (note,) = notes(page)
        assert note.endswith(said)


def test_a_note_names_the_folders_that_it_is_about(
    opened: Opened, groups: dict[Task, Group]
) -> None:
    without = replace(
        groups[VECTORS], name="copied", models=groups[VECTORS].models[2:], left_out="it is gone"
    )
    page = opened(groups[VECTORS], without)
    assert notes(page).count("copied: fp32 and naive are left out: it is gone.") == 2
    page.text_input[0].set_value("the cat " * 10)
    page.button[0].click().run()
    assert "The first sentence has 22 pieces; the model reads the first 12." in notes(page)


def test_the_texts_are_ranked_and_written_as_text(
    opened: Opened, groups: dict[Task, Group]
) -> None:
    page = opened(groups[VECTORS])
    page.text_input[2].set_value("a dog")
    page.text_area[0].set_value("<img src=x>\na dog\nthe sky")
    page.button[1].click().run()
    table = tables(page)[-1]
    assert table.count("&lt;img src=x&gt;") == 4
    assert "<img" not in table
    first: Sequence[str] = re.findall(
        r'<ol class="texts">\s*<li>\s*<span class="text">(.*?)<', table
    )
    assert list(first) == ["a dog"] * 4


def test_a_score_has_no_bar(
    opened: Opened, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    page = opened(open_group(str(tiny_run(tmp_path / "run", tokenizer, CLASSES))))
    (table,) = tables(page)
    assert table.count('<ol class="numbers">') == 4
    assert 'class="bar"' not in table
    assert ">score</th>" in table


def test_a_model_that_gives_nan_says_so(
    opened: Opened, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    group = open_group(str(tiny_run(tmp_path / "run", tokenizer, VECTORS)))
    group.models[0].model.embeddings.norm.weight.data[0] = float("nan")
    page = opened(group)
    assert [
        table.count("NaN or infinite: this model gives no answer") for table in tables(page)
    ] == [1, 1]
