"""Wikipedia from the gensim wheel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmaps.data.wiki import SPLITS, articles, prose, split_sentences, wiki

CASES = {
    "full stops": ["The mill closed.", "It had stood for years."],
    "other ends": ["Was it old?", "It was!", "Nobody knew."],
    "a digit starts one": ["Only a few came.", "12 of them stayed."],
    "an opening quote starts one": ["He stopped.", '"Look," she said.'],
    "quotes close one": ['She said "stop."', "He did."],
    "brackets close one": ["It rained (or snowed.)", "Nobody minded."],
    "titles": ["Mr. Hall and Dr. Reed met Prof. Lane.", "They spoke."],
    "initials": ["The painter J. M. Field lived here.", "He died young."],
    "abbreviations": ["Some towns, e.g. Ashby, are small.", "See vol. 3 or p. 20 there."],
    "at a capital only": ["It was sold by the co. in May, at 3 p.m. or so."],
    "decimals": ["It weighs 3.5 tons."],
    "no end": ["A line without an end"],
}


@pytest.mark.parametrize("sentences", CASES.values(), ids=CASES.keys())
def test_a_paragraph_is_cut_where_a_sentence_ends(sentences):
    assert list(split_sentences(" ".join(sentences))) == sentences


@given(
    st.lists(
        st.sampled_from(["Mr.", "A.", "Oak", "tree", "won!", 'so."', "(If", "9", "e.g.", "x?)"]),
        min_size=1,
    )
)
def test_no_word_is_lost_in_cutting(words):
    text = " ".join(words)
    assert " ".join(split_sentences(text)) == text


@pytest.mark.parametrize(
    "line",
    [
        "== The history of the old mill. ==",
        "* an item of a list that ends in a stop.",
        "# a numbered item that ends in a stop.",
        ": an indented line that ends in a stop.",
        "; a term of a list of terms.",
        "| a cell of a table of some width.",
        "! a heading of a table of some width.",
        "{| a table that opens in this line.",
        "} the end of a table or template.",
        "+ the caption of a table over there.",
        "<gallery> of pictures that hang in here.",
        "A caption that has no stop at its end",
        "Four words are few.",
        "",
    ],
)
def test_what_is_not_prose_is_left_out(line):
    sentence = "This is the only line of prose on the page."
    assert list(prose(f"{line}\n{sentence}\n{line}")) == [sentence]


def test_prose_loses_its_markup():
    (line,) = prose(
        "'''Oak''' (; ''Quercus'') is  a\ttree\u00a0of the ''beech'' family, the farmers' friend."
    )
    assert line == "Oak (Quercus) is a tree of the beech family, the farmers' friend."


def test_prose_may_end_in_a_quote_or_bracket():
    lines = ['It was called "the tree of the year."', "It was a very old tree (or so they said.)"]
    assert list(prose("\n".join(lines))) == lines


def test_every_article_is_in_exactly_one_split():
    numbers = sorted(number for residues in SPLITS.values() for number in residues)
    assert numbers == list(range(7))
    pages = articles()
    assert len({title for title, _ in pages}) == len(pages)
    by_article = {
        "train": [s for i in (0, 1, 2, 3, 6) for _, page in pages[i::7] for s in page],
        "validation": [s for _, page in pages[4::7] for s in page],
        "test": [s for _, page in pages[5::7] for s in page],
    }
    for split, sentences in by_article.items():
        assert sorted(wiki(split)) == sorted(sentences)


def test_hardly_a_sentence_of_the_held_out_articles_is_in_training():
    train = set(wiki("train"))
    assert sum(s in train for s in wiki("validation") + wiki("test")) < 10


def test_the_splits_never_change():
    assert {split: len(wiki(split)) for split in SPLITS} == {
        "train": 13067,
        "validation": 2892,
        "test": 1991,
    }
    title, sentences = articles()[0]
    assert title == "Anarchism"
    assert sentences[0].startswith("Anarchism is")


def test_sentences_are_prose():
    sentences = wiki("validation")
    assert all(s and s == s.strip() and "\n" not in s for s in sentences)
    assert not any(mark in s for s in sentences for mark in ("[[", "]]", "{{", "}}", "'''"))
