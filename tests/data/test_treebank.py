"""Undoing the treebank's tokenization."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitmaps.data.treebank import detokenize

CASES = {
    "double quotes": ("`` come in , '' said the baker", '"come in," said the baker'),
    "quotes in a row": ("`` yes '' and `` no ''", '"yes" and "no"'),
    "single quotes": (
        "they called it ` the barn ' for years",
        "they called it 'the barn' for years",
    ),
    "quotes in quotes": ("`` he said ` stop ' twice . ''", "\"he said 'stop' twice.\""),
    "round brackets": ("the cat -lrb- a tabby -rrb- slept", "the cat (a tabby) slept"),
    "square brackets": ("a note -lsb- see below -rsb- .", "a note [see below]."),
    "curly brackets": ("-lcb- x -rcb-", "{x}"),
    "capital brackets": ("-LRB- x -RRB-", "(x)"),
    "quotes in brackets": ("-lrb- `` fine '' -rrb- .", '("fine").'),
    "negation": ("we do n't and they ca n't", "we don't and they can't"),
    "capital negation": ("DO N'T", "DON'T"),
    "clitics": (
        "it 's , we 're , i 've , they 'll , i 'm , he 'd",
        "it's, we're, i've, they'll, i'm, he'd",
    ),
    "clitic before a stop": ("so it 's .", "so it's."),
    "plural possessive": ("the farmers ' market", "the farmers' market"),
    "possessive at the end": ("it was the farmers '", "it was the farmers'"),
    "no clitic": ("rock 'n' roll in the '80s", "rock 'n' roll in the '80s"),
    "stops": ("one , two ; three : four ? five ! six .", "one, two; three: four? five! six."),
    "ellipsis": ("and then ... nothing", "and then... nothing"),
    "abbreviations keep theirs": ("mr. lee met u.s. officials .", "mr. lee met u.s. officials."),
    "numbers keep theirs": ("about 1,500.25 and .5 of it", "about 1,500.25 and .5 of it"),
    "dollars": ("it cost $ N million", "it cost $N million"),
    "other dollars": ("c$ N , us$ N and a$ N", "c$N, us$N and a$N"),
    "no dollars": ("the word abc$ stands alone", "the word abc$ stands alone"),
    "pounds": ("# N in may", "#N in may"),
    "bracketed dollars": ("-lrb- $ N -rrb-", "($N)"),
    "percent": ("up N % , or N.N %", "up N%, or N.N%"),
    "unknown": ("<unk> 's friend <unk> , too", "[UNK]'s friend [UNK], too"),
    "dashes stay apart": ("the door -- the red one -- opened", "the door -- the red one -- opened"),
    "spaces": ("  a   b \n", "a b"),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("sentence", "text"), CASES.values(), ids=CASES.keys())
def test_text_reads_as_it_was_written(sentence, text):
    assert detokenize(sentence, "[UNK]") == text


def test_the_unknown_token_is_the_tokenizers_own():
    assert detokenize("a <unk> .", "<nothing>") == "a <nothing>."


PLAIN = {
    "``": '"',
    "''": '"',
    "`": "'",
    "<unk>": "[UNK]",
    "-lrb-": "(",
    "-rrb-": ")",
    "-lsb-": "[",
    "-rsb-": "]",
}
SELF = [
    "n't",
    "'s",
    "'",
    "'re",
    ",",
    ".",
    "...",
    ":",
    "%",
    "$",
    "us$",
    "#",
    "--",
    "N",
    "mr.",
    "'80s",
    "a",
    "horse",
    "&",
]


@given(st.lists(st.sampled_from([*PLAIN, *SELF]) | st.text("abz'.-", min_size=1, max_size=4)))
def test_only_spaces_and_spellings_change(words):
    text = detokenize(" ".join(words), "[UNK]")
    assert text.replace(" ", "") == "".join(PLAIN.get(word, word) for word in words)
    assert text == " ".join(text.split())
