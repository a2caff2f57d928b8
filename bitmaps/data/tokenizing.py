"""Sentences to token ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from bitmaps.bert.families import FAMILIES, family_of
from bitmaps.data.sources import Source
from bitmaps.errors import InputError

FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
POINTER = b"version https://git-lfs.github.com/"  # how a Git LFS pointer begins
SPECIAL = ("mask", "pad", "cls", "sep", "unk")
STRANGE = "a \u2603"  # a snowman, which few vocabularies have


@cache
def tokenizer_of(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer in a local folder. No code in the folder is run.

    Raises:
        InputError: when the folder has no tokenizer, it does not open, or it does not do what
            sentences and masks need.
    """
    for name in FILES:
        if (Path(folder) / name).is_file():
            with (Path(folder) / name).open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise InputError(
                        f"{Path(folder) / name} is a pointer of Git LFS, and no tokenizer: "
                        "fetch the file itself by `git lfs pull`"
                    )
    try:
        written, config = read_object(folder, FILES[2]), read_object(folder, "config.json")
        # a folder with the tokenizer alone can be of any architecture: it opens as a BERT's
        named = config.get("model_type")
        kind = AutoConfig.for_model(
            family_of(config) if named in (*FAMILIES, "bitmaps") else "bert",
            tokenizer_class=config.get("tokenizer_class"),
        )
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=kind, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise InputError(f"the tokenizer in {folder} does not open: {reason(error)}") from error
    expected = str(written.get("tokenizer_class")).removesuffix("Fast")
    if "auto_map" in written and type(tokenizer).__name__ != expected:
        raise InputError(f"the tokenizer in {folder} is code (its auto_map), which is never run")
    check_pieces(tokenizer, folder)
    check_sentence(tokenizer, folder)
    return tokenizer


def read_object(folder: str, name: str) -> dict[str, Any]:
    """A JSON object, empty if there is no such file."""
    path = Path(folder) / name
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} holds no JSON object")
    return found


def reason(error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {said}"


def check_pieces(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Raises:
    InputError: for a vocabulary without pieces or without one of the special tokens. `transformers`
        invents both."""
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise InputError(f"{folder} holds no tokenizer: no tokenizer.json or vocab.txt with pieces")
    pieces = pieces_in_files(tokenizer, folder)
    for name in SPECIAL:
        token = getattr(tokenizer, f"{name}_token")
        if token is None or (pieces and token not in pieces):
            raise InputError(f"the tokenizer in {folder} has no {name} token")


def pieces_in_files(tokenizer: PreTrainedTokenizerBase, folder: str) -> set[str]:
    """The pieces that the files have, without those that `transformers` added; empty where only
    `transformers` can read them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not any((Path(folder) / name).is_file() for name in FILES[:2]):
        return set()
    added = read_object(folder, FILES[0]).get("added_tokens", [])
    later = read_object(folder, FILES[2]).get("added_tokens_decoder", {}).values()
    return {*backend.get_vocab(with_added_tokens=False), *(t["content"] for t in (*added, *later))}


def check_sentence(tokenizer: PreTrainedTokenizerBase, folder: str) -> None:
    """Raises:
    InputError: when a sentence does not come out between [CLS] and [SEP]."""
    try:
        first, *_, last = tokenizer(STRANGE)["input_ids"]
    except Exception as error:  # `tokenizers` raises nothing more specific
        raise InputError(
            f"the tokenizer in {folder} cannot encode text: {reason(error)}"
        ) from error
    if (first, last) != (tokenizer.cls_token_id, tokenizer.sep_token_id):
        raise InputError(
            f"the tokenizer in {folder} does not put {tokenizer.cls_token} and "
            f"{tokenizer.sep_token} around a sentence"
        )


def check_fit(tokenizer: PreTrainedTokenizerBase, folder: str | Path, vocabulary: int) -> None:
    """Raises:
    InputError: when a model with so many word pieces lacks some of the tokenizer's."""
    pieces = max(tokenizer.get_vocab().values()) + 1
    if pieces > vocabulary:
        raise InputError(
            f"the tokenizer in {folder} has {pieces} pieces, but the model only {vocabulary}"
        )


def encoded(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> list[np.ndarray]:
    """The ids of each text: [CLS], tokens, [SEP], with at most ``length`` in all."""
    found = tokenizer(list(texts), truncation=True, max_length=length, return_attention_mask=False)
    return [np.array(ids) for ids in found["input_ids"]]


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
    kept = [ids for ids in encoded(sentences, tokenizer, length) if len(ids) > 2]
    if not kept:
        raise InputError(
            f"{source.place(split)} is too short: none of its {len(sentences)} sentences has a "
            "token; valid is at least one sentence with one"
        )
    return kept
