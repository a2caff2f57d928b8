"""Token ids to padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor

from bitmaps.vocabulary import IGNORE

Example = tuple[int, np.ndarray, np.ndarray]
"""The number of a sentence in its split, its ids after masking, and its labels, (length,) each."""


class Batch(TypedDict):
    """A padded batch. Tensors are (batch, length), except ``sentences``."""

    sentences: Tensor  # the numbers of the sentences in their split, (batch,)
    input_ids: Tensor
    attention_mask: Tensor  # true at tokens, false at padding
    token_type_ids: NotRequired[Tensor]  # 0 unless given: 1 at the second of two sentences
    labels: NotRequired[Tensor]
    """Of masked words: the original id at a target, ``IGNORE`` elsewhere. Of a classification: the
    number of the class, or the score, (batch,)."""


def padded(rows: Sequence[np.ndarray], fill: int) -> Tensor:
    """Arrays of one dimension as the rows of a tensor, padded to the longest of them."""
    found = np.full((len(rows), max(map(len, rows))), fill)
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(found)


def plain_batch(numbers: Sequence[int], rows: Sequence[np.ndarray], pad: int) -> Batch:
    """A batch without labels.

    Args:
        numbers: of the sentences in their split.
        rows: their ids, (length,) each.
        pad: the id of the padding token.
    """
    return Batch(
        sentences=torch.tensor(numbers),
        input_ids=padded(rows, pad),
        attention_mask=padded([np.ones(len(ids), dtype=int) for ids in rows], 0).bool(),
    )


def shortest_first(rows: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The rows with their numbers, in the order of their lengths."""
    return sorted(enumerate(rows), key=lambda example: len(example[1]))


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """Pad masked sentences to the longest of them. ``pad`` is the id of the padding token."""
    numbers, rows, labels = zip(*examples, strict=True)
    batch = plain_batch(numbers, rows, pad)
    batch["labels"] = padded(labels, IGNORE)
    return batch
