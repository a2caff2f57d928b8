"""Masked sentences to padded batches."""

from __future__ import annotations

from typing import TypedDict

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
    labels: Tensor  # the original id at a target, `IGNORE` elsewhere


def collate(examples: list[Example], pad: int) -> Batch:
    """Pad examples to the longest of them. ``pad`` is the id of the padding token."""
    shape = len(examples), max(len(ids) for _, ids, _ in examples)
    input_ids, labels = np.full(shape, pad), np.full(shape, IGNORE)
    attention_mask = np.zeros(shape, dtype=bool)
    for row, (_, ids, targets) in enumerate(examples):
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)] = targets
        attention_mask[row, : len(ids)] = True
    return Batch(
        sentences=torch.tensor([number for number, *_ in examples]),
        input_ids=torch.from_numpy(input_ids),
        attention_mask=torch.from_numpy(attention_mask),
        labels=torch.from_numpy(labels),
    )
