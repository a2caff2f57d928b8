"""Sentences as they are, from which a sentence encoder learns and on which it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitmaps.data.batches import Batch, plain_batch, shortest_first
from bitmaps.data.module import Sentences
from bitmaps.data.sources import Source
from bitmaps.data.stream import Stream
from bitmaps.data.tokenizing import encoded, tokenized, tokenizer_of

CROPS = 1  # tells the draws of parts from those of the order


class PlainStream(Stream):
    """Sentences without labels.

    Args:
        pad: the id of the padding token.
        cropped: share of the sentences of which an epoch has a part alone: a random number of
            pieces, one at least, from a random place on. Few sentences last longer that way.
        settings: of ``Stream``.
    """

    def __init__(self, pad: int, cropped: float, *settings: Any) -> None:
        super().__init__(*settings)
        self.pad, self.cropped = pad, cropped
        self._spans: tuple[int, np.ndarray, np.ndarray] | None = None

    def spans(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the part of each sentence begins and ends in an epoch, between [CLS] and [SEP]."""
        if self._spans is None or self._spans[0] != epoch:
            whole = super().lengths(epoch) - 2
            crops, size, place = np.random.RandomState([self.seed, epoch, CROPS]).random_sample(
                (3, len(whole))
            )
            kept = np.where(crops < self.cropped, 1 + np.floor(size * whole), whole).astype(int)
            first = 1 + np.floor(place * (whole - kept + 1)).astype(int)
            self._spans = epoch, first, first + kept
        return self._spans[1:]

    def lengths(self, epoch: int) -> np.ndarray:
        first, end = self.spans(epoch)
        return end - first + 2

    def batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        first, end = self.spans(epoch)
        rows = [
            np.concatenate([ids[:1], ids[first[i] : end[i]], ids[-1:]])
            for i, ids in ((i, self.sentences[i]) for i in numbers)
        ]
        return plain_batch(numbers.tolist(), rows, self.pad)


class PlainSentences(Sentences):
    """The sentences of a source.

    Args:
        source: where they come from.
        cropped: of ``PlainStream``.
        scored_length: largest number of ids of a sentence that is scored.
        settings: of ``Sentences``.
    """

    def __init__(
        self,
        source: Source,
        tokenizer_folder: str,
        *,
        scored_length: int,
        cropped: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer_folder, **settings)
        self.source, self.scored_length, self.cropped = source, scored_length, cropped

    def tokenized(self, split: str) -> list[np.ndarray]:
        length = self.length if split == "train" else self.scored_length
        return tokenized(self.source, split, self.tokenizer_folder, length, self.limit)

    def read(self, split: str) -> None:
        self.tokenized(split)

    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> PlainStream:
        training = self.tokenized("train")
        order = self.batch_size, self.seed, start, rank, world
        return PlainStream(self.vocabulary.pad, self.cropped, training, *order)

    def examples(self, split: str) -> list[tuple[int, np.ndarray]]:
        return shortest_first(self.tokenized(split))

    def collated(self, examples: Sequence[tuple[int, np.ndarray]]) -> Batch:
        numbers, rows = zip(*examples, strict=True)
        return plain_batch(numbers, rows, self.vocabulary.pad)

    def batches_of(self, texts: Sequence[str]) -> list[Batch]:
        """Batches of any other texts, shortest first; an empty text is [CLS] [SEP]."""
        rows = encoded(texts, tokenizer_of(self.tokenizer_folder), self.scored_length)
        return self.in_batches(shortest_first(rows))
