"""Sentences to token ids."""

from __future__ import annotations

from functools import cache

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import bitmaps.packed.registration  # noqa: F401 (opens the tokenizers of packed folders)
from bitmaps.data.sources import Source
from bitmaps.errors import InputError


@cache
def tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder.

    Raises:
        InputError: when the folder has no tokenizer, or the tokenizer lacks a special token that
            sentences and masks need.
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
    """The sentences of a split as ids: [CLS], tokens, [SEP], with at most ``length`` ids in all.

    The result is cached, as that of ``masked`` is: jobs of a sweep in one process share it.

    Raises:
        InputError: when no sentence has a single token.
    """
    tokenizer = tokenizer_of(tokenizer_folder)
    sentences = source.sentences(split, str(tokenizer.unk_token), limit)
    encoded = tokenizer(sentences, truncation=True, max_length=length, return_attention_mask=False)
    kept = [np.array(ids) for ids in encoded["input_ids"] if len(ids) > 2]
    if not kept:
        raise InputError(
            f"{source.place(split)} is too short: none of its {len(sentences)} sentences has a "
            "token; valid is at least one sentence with one"
        )
    return kept
