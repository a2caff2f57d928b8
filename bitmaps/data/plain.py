"""Sentences as they are, from which a sentence encoder learns and on which it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitmaps.data.batches import Batch, plain_batch
from bitmaps.data.module import Sentences
from bitmaps.data.sources import Source
from bitmaps.data.stream import Stream
from bitmaps.data.tokenizing import tokenized, tokenizer_of


class PlainStream(Stream):
    """Sentences without labels.

    Args:
        pad: the id of the padding token.
        settings: of ``Stream``.
    """

    def __init__(self, pad: int, *settings: Any) -> None:
        super().__init__(*settings)
        self.pad = pad

    def batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        return plain_batch(numbers.tolist(), [self.sentences[i] for i in numbers], self.pad)


class PlainSentences(Sentences):
    """The sentences of a source.

    Args:
        source: where they come from.
        scored_length: largest number of ids of a sentence that is scored.
        settings: of ``Sentences``.
    """

    def __init__(
        self, source: Source, tokenizer_folder: str, *, scored_length: int, **settings: Any
    ) -> None:
        super().__init__(tokenizer_folder, **settings)
        self.source, self.scored_length = source, scored_length

    def tokenized(self, split: str) -> list[np.ndarray]:
        length = self.length if split == "train" else self.scored_length
        return tokenized(self.source, split, self.tokenizer_folder, length, self.limit)

    def read(self, split: str) -> None:
        self.tokenized(split)

    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> PlainStream:
        training = self.tokenized("train")
        return PlainStream(
            self.vocabulary.pad, training, self.batch_size, self.seed, start, rank, world
        )

    def examples(self, split: str) -> list[tuple[int, np.ndarray]]:
        return shortest_first(self.tokenized(split))

    def collated(self, examples: Sequence[tuple[int, np.ndarray]]) -> Batch:
        numbers, rows = zip(*examples, strict=True)
        return plain_batch(numbers, rows, self.vocabulary.pad)

    def batches_of(self, texts: Sequence[str]) -> list[Batch]:
        """Batches of any other texts, shortest first; an empty text is [CLS] [SEP]."""
        rows = encoded(texts, self.tokenizer_folder, self.scored_length)
        return self.in_batches(shortest_first(rows))


def shortest_first(rows: Sequence[np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """The rows with their numbers, in the order of their lengths."""
    return sorted(enumerate(rows), key=lambda example: len(example[1]))


def encoded(texts: Sequence[str], tokenizer_folder: str, length: int) -> list[np.ndarray]:
    """The ids of each text: [CLS], tokens, [SEP], with at most ``length`` in all."""
    found = tokenizer_of(tokenizer_folder)(
        list(texts), truncation=True, max_length=length, return_attention_mask=False
    )
    return [np.array(ids) for ids in found["input_ids"]]
