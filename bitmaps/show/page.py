"""The page itself: forms, and a table for each answer. Streamlit runs this file for every visitor,
and anew after every question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import jinja2
import streamlit as st
import torch

from bitmaps.errors import InputError
from bitmaps.show.answers import RUNS, Answer, classify, compare, fill_in, search
from bitmaps.show.groups import Group
from bitmaps.show.server import shown
from bitmaps.vocabulary import Task

HERE = Path(__file__).parent
ABOUT = "Every model answers the same question, on this machine: nothing that you type leaves it."
TEXTS = """\
The train to the coast leaves at nine in the morning.
Fresh bread is sold at the corner every day.
Heavy rain flooded the streets of the old town.
The orchestra played to a full house last night.
The clinic gives flu vaccinations on Fridays.
The central bank raised interest rates again.
A new bridge across the river opens next year.
Our neighbours have adopted a small brown dog."""


def main(groups: Sequence[Group]) -> None:
    st.set_page_config(page_title="bitmaps: look at it live", layout="wide")
    st.html(HERE / "page.css")
    st.title("Look at it live", anchor=False)
    st.html(f'<p class="quiet">{ABOUT}</p>')
    tabs: dict[str, Callable[[], None]] = {}
    for task, name, draw in (
        (Task.masked_lm, "Masked words", masked_words),
        (Task.sentence_embedding, "Sentences", sentences),
        (Task.classification, "Classes", classes),
    ):
        if chosen := [group for group in groups if group.config.task is task]:
            tabs[name] = partial(draw, chosen)
    if len(tabs) == 1:
        (draw_only,) = tabs.values()
        draw_only()
        return
    for tab, draw_tab in zip(st.tabs(list(tabs)), tabs.values(), strict=True):
        with tab:
            draw_tab()


@st.fragment
def masked_words(groups: Sequence[Group]) -> None:
    with st.form("masked words", border=False):
        text = st.text_input(
            "A sentence with [MASK] where a word is missing",
            "He plays for the national [MASK] team.",
        )
        st.form_submit_button("Fill in", type="primary")
    answer(
        groups,
        lambda group: fill_in(group, text),
        heading="five most probable words",
        which="[MASK]",
    )


def sentences(groups: Sequence[Group]) -> None:
    similarity(groups)
    nearest(groups)


@st.fragment
def similarity(groups: Sequence[Group]) -> None:
    st.header("How similar are two sentences?", anchor=False)
    with st.form("similarity", border=False):
        first = st.text_input("First sentence", "A man is playing the guitar.")
        second = st.text_input("Second sentence", "Somebody is making music.")
        st.form_submit_button("Compare", type="primary")
    answer(
        groups,
        lambda group: compare(group, first, second),
        heading="similarity (cosine, at most 1)",
    )


@st.fragment
def nearest(groups: Sequence[Group]) -> None:
    st.header("Which text is closest to a query?", anchor=False)
    with st.form("search", border=False):
        query = st.text_input("Query", "How do I get to the seaside?")
        texts = st.text_area("Texts, one per line", TEXTS, height=220)
        st.form_submit_button("Search", type="primary")
    answer(
        groups,
        lambda group: search(group, query, texts),
        heading="five closest texts, by cosine",
        kind="texts",
    )


@st.fragment
def classes(groups: Sequence[Group]) -> None:
    with st.form("classes", border=False):
        first = st.text_input("A sentence", "What a wonderful film this is.")
        second = st.text_input("A second sentence, if the classes are of pairs")
        st.form_submit_button("Classify", type="primary")
    scored = not any(group.config.labels for group in groups)
    answer(
        groups,
        lambda group: classify(group, first, second),
        heading="score" if scored else "most probable classes",
    )


def answer(
    groups: Sequence[Group],
    ask: Callable[[Group], Answer],
    *,
    heading: str,
    kind: str = "words",
    which: str = "",
) -> None:
    """Ask every group, and draw one table of what they answer.

    Args:
        ask: raises an ``InputError`` for what a group cannot take.
        heading: of the column with the answers.
        kind: ``words`` stand side by side where there is room, ``texts`` below each other.
        which: what several lists of one model are of.
    """
    answers: list[Answer] = []
    notes: dict[str, list[Group]] = {}
    with st.spinner("The models are at work …"):
        for group in groups:
            try:
                answers.append(ask(group))
            except InputError as error:
                notes.setdefault(str(error), []).append(group)
    for one in answers:
        for note in one.notes:
            notes.setdefault(note, []).append(one.group)
    for group in groups:
        if group.left_out is not None:
            notes.setdefault(f"fp32 and naive are left out: {group.left_out}", []).append(group)
    threads = torch.get_num_threads()
    st.html(
        template().render(
            answers=answers,
            notes=[of_whom(note, whose, groups) for note, whose in notes.items()],
            heading=heading,
            kind=kind,
            which=which,
            runs=RUNS,
            threads=f"{threads} thread{'s' if threads > 1 else ''}",
        )
    )


def of_whom(note: str, whose: Sequence[Group], groups: Sequence[Group]) -> str:
    """A note as a sentence; with the folders that it is about, unless it is about all."""
    if len(whose) < len(groups):
        return f"{', '.join(group.name for group in whose)}: {note}."
    return f"{note[0].upper()}{note[1:]}."


@cache
def template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bitmaps.show", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("answer.html")


if __name__ == "__main__":
    main(shown)
