"""Rows for the tests of the run folder: of two kinds by hand, and arbitrary ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from bitmaps.runs.analysis import (
    Analysis,
    Confidence,
    FrequencyBin,
    FrequentToken,
    Guess,
    MaskedToken,
    Sentence,
    Subset,
)
from bitmaps.runs.records import Facts, KnownScores, Machine, Row, Scores, Size, Timing
from bitmaps.vocabulary import RowKind, Scale, Split, ValueSet

NAIVE = Row(
    facts=Facts(
        command="python evaluate.py values=01",
        versions={"python": "3.11"},
        model="minilm",
        split=Split.test,
        components="ffnn",
        values=ValueSet("01"),
        row=RowKind.naive,
        scale=Scale.none,
        seed=0,
        settings={"data.length": 32, "data.column": None, "loss.hidden": 0.5},
    ),
    scores=Scores(4.5, 0.25, 0.5, perplexity=90.0, masked_tokens=7),
    known=KnownScores(4.25, 0.5, 0.75, 6),
    timing=Timing(1.5, 1.25, 3, 16, 64),
    size=Size(1.5, 3.0),
    machine=Machine("cpu", 2, "32-true"),
)
UNBINARIZED = Row(Facts(row=RowKind.unbinarized, components="none"), Scores(2.0, 0.75, 1), Size(9))
ANALYSIS = Analysis(
    verdict="predicts '.' for 100 % of masked tokens with mean confidence 0.019: collapsed",
    predicted=[FrequentToken(".", 1.0, 0.05, 0.019, 0.001)],
    distinct=1,
    confidence=Confidence(0.019, 0.001, [7, *[0] * 19]),
    by_input={"mask": Subset(7, 0.25), "random": Subset(0, None)},
    by_frequency=[FrequencyBin(7, 0.25, 1), FrequencyBin(0, None, 1000)],
    sentences=[Sentence("a [MASK]", ["a", "[MASK]"], [MaskedToken(1, "cat", [Guess(".", 0.5)])])],
    masked_tokens=7,
    entropy=0.0,
    mean_entropy=1.5,
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field with this annotation may have in JSON."""
    if isinstance(hint, UnionType):
        return st.one_of(*map(values_of, get_args(hint)))
    if get_origin(hint) is Mapping:
        return st.dictionaries(st.text(max_size=8), values_of(get_args(hint)[1]), max_size=3)
    if hint is Any:
        return json_values
    return numbers if hint is float else st.from_type(hint)


def any_of(part: type[Any], **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hints = get_type_hints(part)
    chosen = {one.name: values_of(hints[one.name]) for one in fields(part)}
    return st.builds(part, **chosen | given)


rows: st.SearchStrategy[Row] = st.builds(
    Row,
    facts=any_of(Facts, row=st.sampled_from(RowKind)),
    scores=any_of(Scores, cross_entropy=numbers, accuracy=numbers, mrr=numbers),
    size=any_of(Size),
    known=any_of(KnownScores),
    timing=any_of(Timing),
    machine=any_of(Machine),
)
