"""Sentences and pairs of sentences with a class or a score each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from bitmaps.data.batches import Batch, padded, plain_batch
from bitmaps.data.labeled import LabeledSource, class_numbers, label_names
from bitmaps.data.module import Sentences
from bitmaps.data.stream import Stream
from bitmaps.data.tokenizing import tokenizer_of
from bitmaps.errors import InputError


@dataclass(frozen=True, eq=False)
class Classified:
    """The examples of a split as ids.

    Attributes:
        ids: [CLS], the first sentence, [SEP], and for a pair the second sentence and [SEP].
        types: 1 at the second sentence and its [SEP], 0 elsewhere.
        targets: the number of the class, or the score, of each.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    targets: np.ndarray

    def batch(self, numbers: Sequence[int], pad: int) -> Batch:
        batch = plain_batch(numbers, [self.ids[i] for i in numbers], pad)
        batch["token_type_ids"] = padded([self.types[i] for i in numbers], 0)
        batch["labels"] = torch.from_numpy(self.targets[list(numbers)])
        return batch


@cache
def classes_of(source: LabeledSource) -> tuple[str, ...]:
    """The classes of the training split, in the order of their numbers; none for scores.

    Raises:
        InputError: when there is one class only.
    """
    examples = source.read("train")
    names = () if examples.labels is None else label_names(examples)
    if len(names) == 1:
        raise InputError(
            f"{source.place('train')} has one class only, {names[0]!r}; valid are two or more"
        )
    return names


@cache
def classified(
    source: LabeledSource,
    split: str,
    tokenizer_folder: str,
    length: int,
    limit: int | None,
    names: tuple[str, ...],
) -> Classified:
    """A split as ids; the longer sentence of a pair is cut first.

    Args:
        names: the classes; none for scores.

    Raises:
        InputError: for a label that is none of them.
    """
    examples = source.read(split, limit)
    if examples.labels is None:
        targets = np.array(examples.scores, dtype=np.float32)
    else:
        targets = np.array(class_numbers(examples, names, source.place(split)))
    texts = [examples.first] if examples.second is None else [examples.first, examples.second]
    encoded = tokenizer_of(tokenizer_folder)(
        *texts, truncation=True, max_length=length, return_token_type_ids=True
    )
    return Classified(
        [np.array(ids) for ids in encoded["input_ids"]],
        [np.array(types) for types in encoded["token_type_ids"]],
        targets,
    )


class ClassifiedStream(Stream):
    """Labeled examples.

    Args:
        examples: of the training split.
        pad: the id of the padding token.
        settings: of ``Stream``.
    """

    def __init__(self, examples: Classified, pad: int, *settings: Any) -> None:
        super().__init__(examples.ids, *settings)
        self.classified, self.pad = examples, pad

    def batch(self, numbers: np.ndarray, epoch: int) -> Batch:
        return self.classified.batch(numbers.tolist(), self.pad)


class LabeledSentences(Sentences):
    """Labeled sentences, or pairs of them.

    Args:
        source: where they come from.
        labels: the classes in the order of their numbers; none for scores.
        settings: of ``Sentences``.
    """

    def __init__(
        self,
        source: LabeledSource,
        tokenizer_folder: str,
        *,
        labels: tuple[str, ...],
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer_folder, **settings)
        self.source, self.labels = source, labels

    def classified(self, split: str) -> Classified:
        return classified(
            self.source, split, self.tokenizer_folder, self.length, self.limit, self.labels
        )

    def read(self, split: str) -> None:
        self.classified(split)

    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> ClassifiedStream:
        return ClassifiedStream(
            self.classified("train"),
            self.vocabulary.pad,
            self.batch_size,
            self.seed,
            start,
            rank,
            world,
        )

    def examples(self, split: str) -> list[tuple[Classified, int]]:
        found = self.classified(split)
        order = sorted(range(len(found.ids)), key=lambda number: len(found.ids[number]))
        return [(found, number) for number in order]

    def collated(self, examples: Sequence[tuple[Classified, int]]) -> Batch:
        found = examples[0][0]
        return found.batch([number for _, number in examples], self.vocabulary.pad)
