"""English Wikipedia from the package index: the articles in the test data of the gensim wheel.

The text is under CC BY-SA 3.0 (see NOTICE). gensim's wiki reader parses the dump and strips its
markup. This module keeps the prose and cuts it into sentences.
"""

from __future__ import annotations

import bz2
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

DUMP = "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
# An article with less text is a redirect or an empty page. The limit is gensim's default.
MIN_CHARACTERS = 200

# The number of an article in the dump, modulo 7, decides its split. Never change this.
SPLITS = {"train": (0, 1, 2, 3, 6), "validation": (4,), "test": (5,)}

ABBREVIATION = re.compile(
    r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|cf|ca|c|No|e\.g|i\.e|etc|al"
    r"|Prof|Gen|Col|Lt|Capt|vol|p|pp))\.$"
)
SENTENCE_END = re.compile(r"""([.!?]["'”’)\]]*)\s+(?=["'“‘(\[]*[A-Z0-9])""")


def split_sentences(paragraph: str) -> Iterator[str]:
    """Cut a paragraph after ``.``, ``!`` or ``?`` where a capital or a digit follows.

    Closing quotes and brackets stay with their sentence. An initial or a common abbreviation ends
    no sentence.
    """
    start = 0
    for match in SENTENCE_END.finditer(paragraph):
        if not ABBREVIATION.search(paragraph[start : match.end(1)]):
            yield paragraph[start : match.end(1)]
            start = match.end()
    yield paragraph[start:]


def prose(markup: str) -> Iterator[str]:
    """The paragraphs of a page whose markup gensim has stripped.

    Headings, lists, captions and table cells are left out.
    """
    for line in markup.splitlines():
        line = re.sub(r"'{2,}", "", line)  # '' and ''' are italics and bold
        # the rest of a pronunciation that gensim has removed
        line = re.sub(r"\(\s*[;,]\s*", "(", line).replace("()", "")
        line = re.sub(r"\s+", " ", line).strip()
        if (
            line
            and line[0] not in "=*#:;|!{}+<"
            and len(line.split()) >= 5
            and re.search(r"""[.!?]["'”’)\]]*$""", line)
        ):
            yield line


@cache
def articles() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The title and the sentences of every article, in the order of the dump.

    gensim must be installed, from the extra ``offline``; ``Source.check`` reports when it is not.
    """
    spec = importlib.util.find_spec("gensim")
    assert spec is not None, "Source.check comes first"
    assert spec.origin is not None
    from gensim.scripts.segment_wiki import extract_page_xmls, segment

    pages = []
    with bz2.open(Path(spec.origin).parent / DUMP) as file:
        for xml in extract_page_xmls(file):
            title, sections = segment(xml)
            if sum(len(body.strip()) for _, body in sections) < MIN_CHARACTERS:
                continue
            sentences = (
                s
                for _, body in sections
                for paragraph in prose(body)
                for s in split_sentences(paragraph)
            )
            pages.append((title, tuple(sentences)))
    return tuple(pages)


def wiki(split: str) -> list[str]:
    """The sentences of one split. Every article belongs to one split only."""
    numbers = SPLITS[split]
    return [
        s
        for number, (_, sentences) in enumerate(articles())
        if number % 7 in numbers
        for s in sentences
    ]
