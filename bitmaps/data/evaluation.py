"""The masks that models are scored on."""

from __future__ import annotations

from functools import cache

from bitmaps.data.batches import Example
from bitmaps.data.masking import Vocabulary, mask_sentence
from bitmaps.data.sources import Source
from bitmaps.data.tokenizing import tokenized, tokenizer_of
from bitmaps.errors import InputError
from bitmaps.vocabulary import IGNORE


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
    """A split with its evaluation masks, shortest sentence first.

    Each sentence occurs ``mask_sets`` times, with the seeds ``mask_seed``, ``mask_seed + 1``, and
    so on. The masks of a sentence depend on the seed, its number in the split and its tokens. They
    do not depend on the batch size, the order or the machine.

    Raises:
        InputError: when no token is masked.
    """
    vocabulary = Vocabulary.of(tokenizer_of(tokenizer_folder))
    sentences = tokenized(source, split, tokenizer_folder, length, limit)
    examples = [
        (number, *mask_sentence(ids, [seed, number], vocabulary))
        for seed in range(mask_seed, mask_seed + mask_sets)
        for number, ids in enumerate(sentences)
    ]
    if not any((labels != IGNORE).any() for *_, labels in examples):
        tokens = sum(len(ids) - 2 for ids in sentences)  # without [CLS] and [SEP]
        given, longer = "", "more text"
        if limit is not None:
            given, longer = f" with limit={limit}", "a larger limit, or more text"
        raise InputError(
            f"{source.place(split)}{given} is too short: it has {len(sentences)} sentences with "
            f"{tokens} tokens in all, none of which the mask seeds mask (15 % on average); "
            f"valid is {longer}"
        )
    return sorted(examples, key=lambda example: len(example[1]))
