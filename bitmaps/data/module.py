"""Sentences -> word pieces -> masked batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import TypedDict

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bitmaps.data.masking import Vocabulary, mask_sentence
from bitmaps.data.sources import Source
from bitmaps.errors import InputError
from bitmaps.metrics import IGNORE

Example = tuple[
    int, np.ndarray, np.ndarray
]  # number of a sentence, its masked ids and labels, (length,) each


class Batch(TypedDict):
    """(batch, length) each; the mask is true for tokens, labels are -100 where not masked. And (batch,) numbers of sentences."""

    sentences: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@cache
def tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder.

    Raises:
        InputError: when there is none, or it lacks one of the special tokens that sentences and masks are made of.
    """

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no tokenizer: {error}") from error
    for name in ("mask", "pad", "cls", "sep", "unk"):
        if getattr(tokenizer, f"{name}_token_id") is None:
            raise InputError(f"the tokenizer in {folder} has no {name} token")
    return tokenizer


@cache
def tokenized(
    source: Source, split: str, tokenizer_folder: str, length: int, limit: int | None
) -> list[np.ndarray]:
    """One split, a sentence a sequence: [CLS] pieces [SEP], at most ``length`` in all.

    Cached, as is ``masked``: the jobs of a sweep that share a process tokenize and mask once.

    Raises:
        InputError: when no sentence has a single piece.
    """
    tokenizer = tokenizer_of(tokenizer_folder)
    sentences = source.sentences(split, str(tokenizer.unk_token), limit)
    encoded = tokenizer(sentences, truncation=True, max_length=length, return_attention_mask=False)[
        "input_ids"
    ]
    pieces = [np.array(ids) for ids in encoded if len(ids) > 2]
    if not pieces:
        raise InputError(f"data={source.name} has no text in its {split} split")
    return pieces


@cache
def masked(
    source: Source,
    split: str,
    tokenizer_folder: str,
    length: int,
    limit: int | None,
    mask_seed: int,
    mask_sets: int = 1,
) -> list[Example]:
    """A split with its evaluation masks, shortest sentence first; ``mask_sets`` times, with as many seeds from ``mask_seed``
    on. A sentence's masks depend on the seed, its number in the split and its pieces: not on the batch size, the order or the
    machine.

    Raises:
        InputError: when not one piece came to be masked.
    """
    vocabulary = Vocabulary.of(tokenizer_of(tokenizer_folder))
    pieces = tokenized(source, split, tokenizer_folder, length, limit)
    examples = [
        (number, *mask_sentence(ids, [seed, number], vocabulary))
        for seed in range(mask_seed, mask_seed + mask_sets)
        for number, ids in enumerate(pieces)
    ]
    if not any((labels != IGNORE).any() for *_, labels in examples):
        raise InputError(
            f"limit={limit} leaves no masked token in the {split} split of data={source.name}: raise it"
        )
    return sorted(examples, key=lambda example: len(example[1]))


def collate(examples: list[Example], pad: int) -> Batch:
    """Pad to the longest."""
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


class TrainingStream(IterableDataset[Batch]):
    """Endless training batches, each a pure function of ``seed`` and its number.

    An epoch shuffles the sentences, sorts runs of 50 batches by length, so that little is padding, and shuffles the batches.
    Every epoch masks anew. A run that is resumed at batch ``start`` sees exactly what it would have seen; process ``rank``
    of ``world`` takes every ``world``-th batch.
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
        self.sentences, self.vocabulary, self.batch_size, self.seed = (
            sentences,
            vocabulary,
            batch_size,
            seed,
        )
        self.start, self.rank, self.world = start, rank, world

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch, as numbers of sentences; what does not fill a batch waits for another epoch."""
        generator = np.random.RandomState([self.seed, number])
        order = generator.permutation(len(self.sentences))
        lengths = np.array([len(ids) for ids in self.sentences])
        run = self.RUN * self.batch_size
        order = np.concatenate(
            [
                part[np.argsort(lengths[part], kind="stable")]
                for part in np.split(order, range(run, len(order), run))
            ]
        )
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
            examples = [
                (
                    int(i),
                    *mask_sentence(
                        self.sentences[i], [self.seed, current, int(i)], self.vocabulary
                    ),
                )
                for i in batches[number % count]
            ]
            yield collate(examples, self.vocabulary.pad)
            number += self.world


class MaskedSentences(LightningDataModule):
    """Masked sentences of a source, for training, validation and test.

    Args:
        source: where the sentences come from.
        tokenizer_folder: a local folder with a Hugging Face tokenizer.
        batch_size, eval_batch_size: sentences a batch (and process).
        length: word pieces a sentence at most, [CLS] and [SEP] included.
        limit: read only the first so many sentences of a split.
        seed, mask_seed: of the training batches, and of the evaluation masks.
        mask_sets: sets of evaluation masks in all. Validation in the course of training takes the first alone.
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
        self.source, self.tokenizer_folder, self.length, self.limit = (
            source,
            tokenizer_folder,
            length,
            limit,
        )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.mask_seed, self.mask_sets = seed, mask_seed, mask_sets
        self.vocabulary = Vocabulary.of(tokenizer_of(tokenizer_folder))

    def read(self, split: str) -> None:
        """Read, tokenize and mask a split, which is kept for when it is used.

        Raises:
            InputError: when there is something wrong with its text.
        """
        if split == "train":
            tokenized(self.source, split, self.tokenizer_folder, self.length, self.limit)
        else:
            self.masked(split)

    def count(self, split: str) -> int:
        """Sentences in a split."""
        return len(tokenized(self.source, split, self.tokenizer_folder, self.length, self.limit))

    def occurrences(self, split: str) -> NDArray[np.int64]:
        """How often each piece of the tokenizer is in a split, (pieces,)."""
        pieces = tokenized(self.source, split, self.tokenizer_folder, self.length, self.limit)
        return np.bincount(
            np.concatenate(pieces), minlength=len(tokenizer_of(self.tokenizer_folder))
        )

    def masked(self, split: str) -> list[Example]:
        fitting = self.trainer is not None and self.trainer.state.fn is TrainerFn.FITTING
        sets = 1 if fitting else self.mask_sets
        return masked(
            self.source, split, self.tokenizer_folder, self.length, self.limit, self.mask_seed, sets
        )

    def first_batches(self, sentences: int) -> list[Batch]:
        """So many sentences of the train split, or all, as they would be trained on, in whole batches."""
        pieces = tokenized(self.source, "train", self.tokenizer_folder, self.length, self.limit)
        stream = TrainingStream(pieces, self.vocabulary, self.batch_size, self.seed)
        epoch = max(1, len(pieces) // self.batch_size)
        return list(islice(stream, min(math.ceil(sentences / self.batch_size), epoch)))

    def train_dataloader(self) -> DataLoader[Batch]:
        sentences = tokenized(self.source, "train", self.tokenizer_folder, self.length, self.limit)
        start, rank, world = 0, 0, 1
        if self.trainer is not None:
            start = self.trainer.global_step * self.trainer.accumulate_grad_batches
            rank, world = self.trainer.global_rank, self.trainer.world_size
        stream = TrainingStream(
            sentences, self.vocabulary, self.batch_size, self.seed, start, rank, world
        )
        return DataLoader(stream, batch_size=None)

    def evaluation_dataloader(self, split: str) -> DataLoader[Batch]:
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
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]  # a list is a map-style data set

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.evaluation_dataloader("test")
