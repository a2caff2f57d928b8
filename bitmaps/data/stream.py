"""Endless training batches that a resumed run reproduces."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import IterableDataset

from bitmaps.data.batches import Batch, collate
from bitmaps.data.masking import Vocabulary, mask_sentence


class TrainingStream(IterableDataset[Batch]):
    """Endless training batches. Each is a pure function of ``seed`` and the number of the batch.

    An epoch shuffles the sentences, sorts every ``RUN`` batches of them by length, which avoids
    padding, and shuffles the batches. Every epoch draws new masks.

    Args:
        sentences: token ids, (length,) each.
        vocabulary: the ids that masking needs.
        batch_size: sentences per batch. Fewer sentences than that make one smaller batch.
        seed: of the order and the masks.
        start: how many batches each process has taken already. A resumed stream continues with
            exactly the batches that would have followed.
        rank, world: process ``rank`` of ``world`` takes every ``world``-th batch.
    """

    RUN = 50

    def __init__(
        self,
        sentences: list[np.ndarray],
        vocabulary: Vocabulary,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.sentences, self.vocabulary = sentences, vocabulary
        self.batch_size, self.seed = batch_size, seed
        self.start, self.rank, self.world = start, rank, world

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch, as numbers of sentences. Sentences that do not fill a batch are
        left out; another epoch has them."""
        generator = np.random.RandomState([self.seed, number])
        order = generator.permutation(len(self.sentences))
        lengths = np.array([len(ids) for ids in self.sentences])
        run = self.RUN * self.batch_size
        parts = np.split(order, range(run, len(order), run))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        count = max(1, len(order) // self.batch_size)
        batches = np.array_split(order[: count * self.batch_size], count)
        return [batches[i] for i in generator.permutation(count)]

    def masked(self, sentence: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A sentence with the masks that it has in an epoch."""
        seed = [self.seed, epoch, sentence]
        return mask_sentence(self.sentences[sentence], seed, self.vocabulary)

    def __iter__(self) -> Iterator[Batch]:
        count = max(1, len(self.sentences) // self.batch_size)
        number = self.start * self.world + self.rank
        current, batches = -1, []
        while True:
            if number // count != current:
                current = number // count
                batches = self.epoch(current)
            examples = [(int(i), *self.masked(int(i), current)) for i in batches[number % count]]
            yield collate(examples, self.vocabulary.pad)
            number += self.world
