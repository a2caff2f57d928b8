"""The batches of a source of text as Lightning wants them."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from bitmaps.data.batches import Batch, Example, collate
from bitmaps.data.evaluation import masked
from bitmaps.data.masking import Vocabulary
from bitmaps.data.sources import Source
from bitmaps.data.stream import TrainingStream
from bitmaps.data.tokenizing import tokenized, tokenizer_of
from bitmaps.errors import InputError


class MaskedSentences(LightningDataModule):
    """Masked sentences of a source, for training, validation and test.

    Args:
        source: where the sentences come from.
        tokenizer_folder: a local folder with a Hugging Face tokenizer.
        batch_size: training sentences per batch and process.
        eval_batch_size: the same for validation and test.
        length: largest number of ids per sentence, [CLS] and [SEP] included.
        limit: number of sentences read from the start of each split; ``None`` reads all.
        seed: of the training batches and their masks.
        mask_seed: of the evaluation masks.
        mask_sets: number of evaluation mask sets. Validation during training uses the first only.
    """

    def __init__(
        self,
        source: Source,
        tokenizer_folder: str,
        *,
        batch_size: int,
        eval_batch_size: int,
        length: int = 64,
        limit: int | None = None,
        seed: int = 0,
        mask_seed: int = 481,
        mask_sets: int = 1,
    ) -> None:
        super().__init__()
        self.source, self.tokenizer_folder = source, tokenizer_folder
        self.length, self.limit = length, limit
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.mask_seed, self.mask_sets = seed, mask_seed, mask_sets
        self.vocabulary = Vocabulary.of(tokenizer_of(tokenizer_folder))

    def tokenized(self, split: str) -> list[np.ndarray]:
        return tokenized(self.source, split, self.tokenizer_folder, self.length, self.limit)

    def masked(self, split: str) -> list[Example]:
        fitting = self.trainer is not None and self.trainer.state.fn is TrainerFn.FITTING
        sets = 1 if fitting else self.mask_sets
        return masked(
            self.source, split, self.tokenizer_folder, self.length, self.limit, self.mask_seed, sets
        )

    def read(self, split: str) -> None:
        """Read, tokenize and mask a split. The result is cached until it is used.

        Raises:
            InputError: when the text cannot be used.
        """
        if split == "train":
            self.tokenized(split)
        else:
            self.masked(split)

    def count(self, split: str) -> int:
        """The number of sentences in a split."""
        return len(self.tokenized(split))

    def occurrences(self, split: str) -> NDArray[np.int64]:
        """How often each token of the tokenizer occurs in a split, (vocabulary,)."""
        ids = np.concatenate(self.tokenized(split))
        return np.bincount(ids, minlength=len(tokenizer_of(self.tokenizer_folder)))

    def first_batches(self, sentences: int) -> list[Batch]:
        """The training batches that begin the first epoch: as many whole batches as hold
        ``sentences``, at most one epoch."""
        training = self.tokenized("train")
        stream = TrainingStream(training, self.vocabulary, self.batch_size, self.seed)
        epoch = max(1, len(training) // self.batch_size)
        return list(islice(stream, min(math.ceil(sentences / self.batch_size), epoch)))

    def train_dataloader(self) -> DataLoader[Batch]:
        start, rank, world = 0, 0, 1
        if self.trainer is not None:
            start = self.trainer.global_step * self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        sentences = self.tokenized("train")
        stream = TrainingStream(
            sentences, self.vocabulary, self.batch_size, self.seed, start, rank, world
        )
        return DataLoader(stream, batch_size=None)

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
        """The batches of a split; with several processes, a share for each.

        Raises:
            InputError: when there are fewer sentences than processes.
        """
        examples = self.masked(split)
        if self.trainer is not None and self.trainer.world_size > 1:
            if len(examples) < self.trainer.world_size:
                raise InputError(
                    f"{len(examples)} sentences are too few for {self.trainer.world_size} processes"
                )
            examples = examples[self.trainer.global_rank :: self.trainer.world_size]
        batches = [
            collate(examples[i : i + self.eval_batch_size], self.vocabulary.pad)
            for i in range(0, len(examples), self.eval_batch_size)
        ]
        # a list is a map-style data set, which the types of torch do not know
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("test")
