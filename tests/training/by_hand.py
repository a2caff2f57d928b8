"""The parts of the loss, token by token in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scoring.examples import HEADS, array, softmax
from torch import Tensor

from bitmaps.bert import Bert


def kl(teacher: Tensor, student: Tensor) -> float:
    p, q = softmax(array(teacher)), softmax(array(student))
    return float((p * (np.log(p) - np.log(q))).sum(-1).mean())


def tokens_of(kept: Tensor) -> Iterator[tuple[int, int]]:
    """Sentence and position of each token that is none of padding."""
    for sentence, position in np.argwhere(kept.numpy()):
        yield int(sentence), int(position)


def hidden_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    errors = []
    for s, t in zip(map(array, student), map(array, teacher), strict=True):
        errors.append(np.mean([(s[at] - t[at]) ** 2 for at in tokens_of(kept)]))
    return float(np.mean(errors))


def directions_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    distances = []
    for s, t in zip(map(array, student), map(array, teacher), strict=True):
        for at in tokens_of(kept):
            distances.append(
                ((s[at] / np.linalg.norm(s[at]) - t[at] / np.linalg.norm(t[at])) ** 2).sum()
            )
    return float(np.mean(distances))


def attention_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    """Over query, key, value, query ...: the scores of each pair of tokens, one by one."""
    errors = []
    for layer in range(0, len(student), 3):
        (query, key), (query_t, key_t) = (
            [array(x) / x.shape[-1] ** 0.25 for x in xs[layer : layer + 2]]
            for xs in (student, teacher)
        )
        squares = [
            (query[b, h, i] @ key[b, h, j] - query_t[b, h, i] @ key_t[b, h, j]) ** 2
            for b, h in np.ndindex(query.shape[:2])
            for i in np.flatnonzero(kept[b])
            for j in np.flatnonzero(kept[b])
        ]
        errors.append(np.mean(squares))
    return float(np.mean(errors))


def relations_by_hand(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> float:
    """Each head of each sentence on its own, padding cut off."""
    distances = []
    for s, t in zip(student, teacher, strict=True):
        for b, h in np.ndindex(s.shape[:2]):
            one, other = (array(x)[b, h][kept[b].numpy()] for x in (s, t))
            p, q = (x @ x.T for x in (one, other))
            distances.append(((p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum())
    return float(np.mean(distances))


def projected(model: Bert, states: list[Tensor]) -> list[Tensor]:
    """Queries, keys and values (batch, heads, length, d) of each layer in turn, computed from what
    goes into the layer."""
    found = []
    for number, x in enumerate(states[:-1]):
        weights = dict(model.encoder.layers[number].named_parameters())
        for name in ("query", "key", "value"):
            out = x @ weights[f"attention.{name}.weight"].T + weights[f"attention.{name}.bias"]
            found.append(torch.stack(out.split(out.shape[-1] // HEADS, -1), 1))
    return found
