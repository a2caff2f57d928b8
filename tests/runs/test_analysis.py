"""Error analyses: JSON and back, and those of older versions."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from runs.records import ANALYSIS

from bitmaps.errors import InputError
from bitmaps.runs.analysis import Analysis, FrequencyBin, Subset
from bitmaps.runs.records import parse
from bitmaps.vocabulary import RowKind

OLD: dict[str, Any] = {  # as version 0.1 wrote it
    "masked_tokens": 312,
    "verdict": "predicts 133 different tokens, most often 'the': for 14.7 % of masked tokens, "
    "while 9.3 % are",
    "predicted": [
        {"token": "the", "share": 0.147, "true_share": 0.09, "confidence": 0.53,
         "confidence_std": 0.3},
        {"token": "of", "share": 0.07, "true_share": 0.05, "confidence": 1, "confidence_std": 0},
    ],
    "distinct": 133,
    "entropy": 4.2,
    "mean_entropy": 3.1,
    "confidence": {"mean": 0.5, "std": 0.25, "histogram": [12, *[0] * 18, 300]},
    "by_input": {
        "mask": {"masked_tokens": 312, "accuracy": 0.25},
        "random": {"masked_tokens": 0, "accuracy": None},
        "unchanged": {"masked_tokens": 0, "accuracy": None},
    },
    "by_frequency": [
        {"at_least": 1, "masked_tokens": 312, "accuracy": 0.25},
        {"at_least": 1000, "masked_tokens": 0, "accuracy": None},
    ],
    "sentences": [
        {"text": "the [MASK] ran", "pieces": ["the", "[MASK]", "ran"], "masked": [
            {"position": 1, "true": "cat", "predictions": [{"token": "dog", "probability": 0.5}]},
            {"position": 2, "true": None, "predictions": [{"token": ".", "probability": 1}]},
        ]},
    ],
}  # fmt: skip


def test_an_analysis_comes_back_from_json() -> None:
    stored = json.loads(json.dumps({kind: asdict(ANALYSIS) for kind in RowKind}))
    assert parse(dict[RowKind, Analysis], stored) == dict.fromkeys(RowKind, ANALYSIS)


def test_an_old_analysis_opens() -> None:
    found = parse(Analysis, OLD)
    assert json.loads(json.dumps(asdict(found))) == OLD
    assert found.predicted[0].token == "the"
    assert found.by_input["random"] == Subset(0, None)
    assert found.by_frequency[1] == FrequencyBin(0, None, at_least=1000)
    assert [token.true for token in found.sentences[0].masked] == ["cat", None]


def test_unknown_keys_are_ignored_and_some_may_be_missing() -> None:
    optional = ("masked_tokens", "entropy", "mean_entropy")
    found = parse(Analysis, {k: v for k, v in OLD.items() if k not in optional} | {"later": 1})
    assert [getattr(found, name) for name in optional] == [None] * 3
    assert found.verdict == OLD["verdict"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distinct": "many"}, "distinct is 'many': "),
        ({"verdict": None}, "verdict is None: "),
        ({"predicted": {}}, "predicted is {}: "),
        ({"confidence": []}, r"confidence is \[\]: "),
        ({"by_input": {"mask": 0.5}}, r"by_input\.mask is 0\.5: "),
        (
            {"by_frequency": [{"masked_tokens": 1, "accuracy": 1}]},
            r"there is no by_frequency\.0\.a",
        ),
        ({"sentences": [{"text": 1, "pieces": [], "masked": []}]}, r"sentences\.0\.text is 1: "),
    ],
)
def test_a_value_of_another_type_is_named_with_its_key(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        parse(Analysis, OLD | changes)
    with pytest.raises(InputError, match="naive"):
        parse(dict[RowKind, Analysis], {"naive": OLD | changes})
