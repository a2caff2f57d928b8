"""Sentences whose masked tokens a model fills in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert
from bitmaps.data.batches import Example, collate
from bitmaps.errors import InputError
from bitmaps.runs.analysis import Guess, MaskedToken, Sentence
from bitmaps.vocabulary import IGNORE

TOP = 5  # guesses for each token


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it is written. A token beyond the tokenizer's pieces goes by its number."""
    return str(tokenizer.convert_ids_to_tokens(int(token)) or f"[{token}]")


def chosen_sentences(examples: list[Example], seed: int, count: int = 8) -> list[Example]:
    """Some of the masked sentences, drawn from ``seed``. Each sentence appears once, with its first
    set of masks; sentences without a masked token are left out."""
    first: dict[int, Example] = {}
    for example in examples:
        if (example[2] != IGNORE).any():
            first.setdefault(example[0], example)
    numbers = sorted(first)
    order = np.random.RandomState(seed).permutation(len(numbers))[:count]
    return [first[numbers[i]] for i in order]


def sentence_of(
    text: str, tokenizer: PreTrainedTokenizerBase, positions: int, said: str | None = None
) -> Example:
    """A user's own sentence. The true tokens are unknown, so the labels of its masks are [MASK].

    Args:
        said: what messages call it, ``text=...`` unless given.

    Raises:
        InputError: when it has no mask, or is longer than the model's ``positions``.
    """
    mask, said = tokenizer.mask_token, said or f"text={text!r}"
    if not text.strip():
        raise InputError(f"{said} is empty: give it a sentence with {mask}")
    ids = np.array(tokenizer(text, verbose=False)["input_ids"])
    if not (ids == tokenizer.mask_token_id).any():
        raise InputError(f"{said} has nothing to fill in: put {mask} where a word is missing")
    if len(ids) > positions:
        raise InputError(
            f"{said} has {len(ids)} pieces, more than the model's {positions} positions"
        )
    return -1, ids, np.where(ids == tokenizer.mask_token_id, ids, IGNORE)


@torch.inference_mode()
def fill(
    model: Bert, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> list[Sentence]:
    """Fill in the masked tokens of each sentence: the five most probable tokens of each."""
    training = model.training
    model.eval()
    found = [
        filled(example, logits_at_masks(model, example, tokenizer.pad_token_id), tokenizer)
        for example in examples
    ]
    model.train(training)
    return found


def logits_at_masks(model: Bert, example: Example, pad: int) -> Tensor:
    """The logits at the masked tokens of a sentence, (n, vocabulary).

    Args:
        pad: the id of the padding token.
    """
    device, batch = next(model.parameters()).device, collate([example], pad)
    return model(
        batch["input_ids"].to(device),
        batch["attention_mask"].to(device),
        positions=(batch["labels"] != IGNORE).to(device),
    )


def filled(example: Example, logits: Tensor, tokenizer: PreTrainedTokenizerBase) -> Sentence:
    """A sentence from the logits (n, vocabulary) at its masked tokens."""
    _, ids, labels = example
    best = logits.float().softmax(-1).topk(min(TOP, logits.shape[-1]))
    masked = []
    for position, tokens, probabilities in zip(
        np.flatnonzero(labels != IGNORE),
        best.indices.tolist(),
        best.values.tolist(),
        strict=True,
    ):
        known = labels[position] != tokenizer.mask_token_id
        guesses = zip(tokens, probabilities, strict=True)
        masked.append(
            MaskedToken(
                position=int(position) - 1,
                true=piece(tokenizer, labels[position]) if known else None,
                predictions=[Guess(piece(tokenizer, token), p) for token, p in guesses],
            )
        )
    pieces = [piece(tokenizer, token) for token in ids[1:-1]]
    return Sentence(str(tokenizer.decode(ids[1:-1])), pieces, masked)
