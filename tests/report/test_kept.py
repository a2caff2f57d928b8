"""What a model keeps of full precision, in one line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitmaps.report.terminal import kept
from bitmaps.runs.records import Facts, Row, Scores, Size, Timing
from bitmaps.vocabulary import RowKind, Task, ValueSet


def row(kind: RowKind, size: float, task: Task = Task.masked_lm, **scores: float) -> Row:
    values = None if kind is RowKind.unbinarized else ValueSet("pm1")
    components = "none" if values is None else "ffnn"
    facts = Facts(row=kind, task=task, components=components, values=values)
    return Row(facts, Scores(**scores), Size(size))


@pytest.mark.parametrize(
    ("task", "whole", "ours", "said"),
    [
        (
            Task.masked_lm,
            {"cross_entropy": 4.0, "accuracy": 0.4, "mrr": 0.5},
            {"cross_entropy": 4.5, "accuracy": 0.3, "mrr": 0.4},
            "75.0 % of full precision by accuracy",
        ),
        (
            Task.sentence_embedding,
            {"cosine": 1.0, "recall_at_10": 1.0, "spearman": 80.0},
            {"cosine": 0.9, "recall_at_10": 0.7, "spearman": 76.0},
            "95.0 % of full precision by Spearman",
        ),
        (
            Task.sentence_embedding,
            {"cosine": 1.0, "recall_at_10": 1.0},
            {"cosine": 0.9, "recall_at_10": 0.7},
            "70.0 % of full precision by recall@10",
        ),
        (
            Task.classification,
            {"accuracy": 0.8, "f1": 0.9},
            {"accuracy": 0.6, "f1": 0.9},
            "75.0 % of full precision by accuracy",
        ),
    ],
)
def test_it_is_the_share_of_the_score_that_a_task_is_about(
    task: Task, whole: dict[str, float], ours: dict[str, float], said: str
) -> None:
    rows = [row(RowKind.unbinarized, 80.0, task, **whole), row(RowKind.trained, 20.0, task, **ours)]
    assert kept(rows) == f"ffnn in {{-1,1}}, trained: {said}, in 20.0 of 80.0 MiB"


def test_the_packed_model_is_told_with_its_speed() -> None:
    scores = {"cross_entropy": 4.0, "accuracy": 0.4, "mrr": 0.5}
    whole, trained = row(RowKind.unbinarized, 80.0, **scores), row(RowKind.trained, 20.0, **scores)
    packed = replace(row(RowKind.packed, 10.0, **scores), scores=Scores(4.1, 0.39, 0.4))
    said = "ffnn in {-1,1}, packed: 97.5 % of full precision by accuracy, in 10.0 of 80.0 MiB"
    assert kept([whole, packed, trained]) == said
    timed = [
        replace(one, timing=Timing(inference_ms=ms)) for one, ms in ((whole, 9.0), (packed, 2.0))
    ]
    assert kept([*timed, trained]) == f"{said}, 4.5 times as fast"


def test_nothing_is_said_where_nothing_can_be_compared() -> None:
    scores = {"cross_entropy": 4.0, "accuracy": 0.4, "mrr": 0.5}
    whole, ours = row(RowKind.unbinarized, 80.0, **scores), row(RowKind.naive, 20.0, **scores)
    assert kept([whole, ours])
    assert kept([whole]) == kept([ours]) == kept([ours, ours]) == ""
    assert kept([replace(whole, scores=Scores(4.0, 0.0, 0.0)), ours]) == ""
