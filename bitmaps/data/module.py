"""The batches of a source of text as Lightning wants them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from bitmaps.data.batches import Batch, Example, collate
from bitmaps.data.evaluation import masked
from bitmaps.data.masking import Vocabulary
from bitmaps.data.sources import Source
from bitmaps.data.stream import Stream, TrainingStream
from bitmaps.data.tokenizing import tokenized, tokenizer_of
from bitmaps.errors import InputError


class Sentences(LightningDataModule):
    """What is trained on and scored, in batches, for any task.

    Args:
        tokenizer_folder: a local folder with a Hugging Face tokenizer.
        batch_size: training examples per batch and process.
        eval_batch_size: the same for validation and test.
        length: largest number of ids per training example, [CLS] and [SEP] included.
        limit: number of examples read from the start of each split; ``None`` reads all.
        seed: of the training batches and what is drawn for them.
    """

    def __init__(
        self,
        tokenizer_folder: str,
        *,
        batch_size: int,
        eval_batch_size: int,
        length: int = 64,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer_folder, self.length, self.limit = tokenizer_folder, length, limit
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.vocabulary = Vocabulary.of(tokenizer_of(tokenizer_folder))

    @abstractmethod
    def read(self, split: str) -> None:
        """Read and tokenize a split. The result is cached until it is used.

        Raises:
            InputError: when it cannot be used.
        """

    @abstractmethod
    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> Stream:
        """The endless training batches; arguments as for ``Stream``."""

    @abstractmethod
    def examples(self, split: str) -> Sequence[Any]:
        """What is scored, shortest first."""

    @abstractmethod
    def collated(self, examples: Sequence[Any]) -> Batch:
        """A batch of these."""

    def first_batches(self, sentences: int) -> list[Batch]:
        """The training batches that begin the first epoch: as many whole batches as hold
        ``sentences``, at most one epoch."""
        stream = self.stream()
        epoch = max(1, len(stream.sentences) // self.batch_size)
        return list(islice(stream, min(math.ceil(sentences / self.batch_size), epoch)))

    def train_dataloader(self) -> DataLoader[Batch]:
        start, rank, world = 0, 0, 1
        if self.trainer is not None:
            start = self.trainer.global_step * self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(self.stream(start, rank, world), batch_size=None)

    def batches(self, split: str) -> list[Batch]:
        """The batches of a split."""
        return self.in_batches(self.examples(split))

    def in_batches(self, examples: Sequence[Any]) -> list[Batch]:
        return [
            self.collated(examples[i : i + self.eval_batch_size])
            for i in range(0, len(examples), self.eval_batch_size)
        ]

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
        """The batches of a split; with several processes, a share for each.

        Raises:
            InputError: when there are fewer examples than processes.
        """
        examples = self.examples(split)
        if self.trainer is not None and self.trainer.world_size > 1:
            if len(examples) < self.trainer.world_size:
                raise InputError(
                    f"{len(examples)} sentences are too few for {self.trainer.world_size} processes"
                )
            examples = examples[self.trainer.global_rank :: self.trainer.world_size]
        # a list is a map-style data set, which the types of torch do not know
        return DataLoader(self.in_batches(examples), batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("test")


class MaskedSentences(Sentences):
    """Masked sentences of a source, for training, validation and test.

    Args:
        source: where the sentences come from.
        mask_seed: of the evaluation masks.
        mask_sets: number of evaluation mask sets. Validation during training uses the first only.
        settings: of ``Sentences``.
    """

    def __init__(
        self,
        source: Source,
        tokenizer_folder: str,
        *,
        mask_seed: int = 481,
        mask_sets: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer_folder, **settings)
        self.source, self.mask_seed, self.mask_sets = source, mask_seed, mask_sets

    def tokenized(self, split: str) -> list[np.ndarray]:
        return tokenized(self.source, split, self.tokenizer_folder, self.length, self.limit)

    def examples(self, split: str) -> list[Example]:
        fitting = self.trainer is not None and self.trainer.state.fn is TrainerFn.FITTING
        sets = 1 if fitting else self.mask_sets
        return masked(
            self.source, split, self.tokenizer_folder, self.length, self.limit, self.mask_seed, sets
        )

    def collated(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self.vocabulary.pad)

    def read(self, split: str) -> None:
        if split == "train":
            self.tokenized(split)
        else:
            self.examples(split)

    def count(self, split: str) -> int:
        """The number of sentences in a split."""
        return len(self.tokenized(split))

    def occurrences(self, split: str) -> NDArray[np.int64]:
        """How often each token of the tokenizer occurs in a split, (vocabulary,)."""
        ids = np.concatenate(self.tokenized(split))
        return np.bincount(ids, minlength=len(tokenizer_of(self.tokenizer_folder)))

    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> TrainingStream:
        sentences = self.tokenized("train")
        return TrainingStream(
            sentences, self.vocabulary, self.batch_size, self.seed, start, rank, world
        )
