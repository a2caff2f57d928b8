"""Endless training batches that a resumed run reproduces."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from bitmaps.data.batches import Batch, collate
from bitmaps.data.masking import Vocabulary, mask_sentence


class Stream(IterableDataset[Batch]):
    """Endless training batches. Each is a pure function of ``seed`` and the number of the batch.

    An epoch shuffles the examples, sorts every ``RUN`` batches of them by length, which avoids
    padding, and shuffles the batches.

    Args:
        sentences: token ids, (length,) each.
        batch_size: examples per batch. Fewer examples than that make one smaller batch.
        seed: of the order and of what else is drawn.
        start: how many batches each process has taken already. A resumed stream continues with
            exactly the batches that would have followed.
        rank, world: process ``rank`` of ``world`` takes every ``world``-th batch.
    """

    RUN = 50

    def __init__(
        self,
        sentences: Sequence[np.ndarray],
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sentences, self.batch_size, self.seed = sentences, batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def lengths(self, epoch: int) -> np.ndarray:
        """The ids of each example in an epoch, (examples,)."""
        return np.array([len(ids) for ids in self.sentences])

    @abstractmethod
    def batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        """The batch of these examples in an epoch."""

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch, as numbers of sentences. Sentences that do not fill a batch are
        left out; another epoch has them."""
        generator = np.random.RandomState([self.seed, number])
        order = generator.permutation(len(self.sentences))
        lengths = self.lengths(number)
        run = self.RUN * self.batch_size
        parts = np.split(order, range(run, len(order), run))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        count = max(1, len(order) // self.batch_size)
        batches = np.array_split(order[: count * self.batch_size], count)
        return [batches[i] for i in generator.permutation(count)]

    def __iter__(self) -> Iterator[Batch]:
        count = max(1, len(self.sentences) // self.batch_size)
        number = self.start * self.world + self.rank
        current, batches = -1, []
        while True:
            if number // count != current:
                current = number // count
                batches = self.epoch(current)
            yield self.batch(batches[number % count], current)
            number += self.world


class TrainingStream(Stream):
    """Masked sentences, with new masks in every epoch.

    Args:
        vocabulary: the ids that masking needs.
        settings, named: of ``Stream``, after the sentences.
    """

    def __init__(
        self, sentences: Sequence[np.ndarray], vocabulary: Vocabulary, *settings: Any, **named: Any
    ) -> None:
        super().__init__(sentences, *settings, **named)
        self.vocabulary = vocabulary

    def masked(self, sentence: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A sentence with the masks that it has in an epoch."""
        seed = [self.seed, epoch, sentence]
        return mask_sentence(self.sentences[sentence], seed, self.vocabulary)

    def batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        examples = [(int(i), *self.masked(int(i), epoch)) for i in numbers]
        return collate(examples, self.vocabulary.pad)
