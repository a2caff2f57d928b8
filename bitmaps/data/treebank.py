"""Undo the tokenization of the Penn Treebank: its text then looks like BERT's training text."""

from __future__ import annotations

import re

OPENING, CLOSING = "“", "”"  # they tell the two sides apart while words are joined; then both are "

BRACKETS = {"-lrb-": "(", "-rrb-": ")", "-lsb-": "[", "-rsb-": "]", "-lcb-": "{", "-rcb-": "}"}
QUOTES = {"``": OPENING, "''": CLOSING, "`": "‘"}

# joined to the word before: clitics, closing quotes and brackets, punctuation; a lone ' is a
# possessive or closes a quote
TO_THE_LEFT = re.compile(
    rf" (?=(?:n't|'(?:s|m|d|re|ve|ll)?|[,.;:?!%]|\.\.\.|[)\]}}]|{CLOSING})(?: |$))", re.IGNORECASE
)
# joined to the word after: opening quotes and brackets, $ and # (and c$, us$ …)
TO_THE_RIGHT = re.compile(rf"(?<![^ ])((?:[a-z]{{0,2}}\$|#|[(\[{{]|{OPENING}|‘)) ", re.IGNORECASE)


def detokenize(sentence: str, unknown: str) -> str:
    """A sentence of the treebank as running text.

    ``<unk>`` becomes ``unknown``, the unknown token of the tokenizer.

    >>> detokenize("`` it was n't $ N -lrb- yet -rrb- , '' mr. <unk> 's friend said .", "[UNK]")
    '"it wasn\\'t $N (yet)," mr. [UNK]\\'s friend said.'
    """
    words = [QUOTES.get(w, BRACKETS.get(w.lower(), w)) for w in sentence.split()]
    text = " ".join(unknown if w == "<unk>" else w for w in words)
    text = TO_THE_RIGHT.sub(r"\1", TO_THE_LEFT.sub("", text))
    return text.replace(OPENING, '"').replace(CLOSING, '"').replace("‘", "'")
