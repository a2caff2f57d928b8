"""The vectors that a sentence encoder makes of texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch, plain_batch, shortest_first
from bitmaps.data.tables import as_sentence
from bitmaps.data.tokenizing import encoded
from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

BATCH_SIZE = 32
WINDOW = 16_384  # texts that are sorted by length together; their ids take some megabytes

T = TypeVar("T")
Vectors = NDArray[np.float32]
"""(texts, hidden)."""


def embed(model: Bert, texts: Iterable[str], *, batch_size: int = BATCH_SIZE) -> Vectors:
    """The vectors of texts, (texts, hidden), in the order of the texts.

    Each is what ``model(ids, mask)`` gives for its text alone. With ``act="f32"`` they agree within
    1e-5. Texts of like length share a batch. A text is cut at ``config.longest_sentence`` pieces.
    An empty one is [CLS] [SEP].

    Args:
        model: a sentence encoder that ``bitmaps.load`` opened.
        batch_size: texts of a batch.

    Raises:
        InputError: for a model of another task or without a tokenizer; for what is no text; for a
            batch size below 1.
    """
    check_encoder(model)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; valid is 1 or more")
    if isinstance(texts, str | bytes):
        raise InputError(f"texts is one {type(texts).__name__}; valid is a list of texts")
    checked = (as_text(number, text) for number, text in enumerate(texts))
    found = [embed_window(model, window, batch_size) for window in groups(checked, WINDOW)]
    empty = np.empty((0, model.config.hidden_size), np.float32)
    return np.concatenate(found) if found else empty


def check_encoder(model: Bert) -> None:
    """Raises:
    InputError: when a model does not make vectors of sentences."""
    if model.config.task is not Task.sentence_embedding:
        raise InputError(
            f"this model is for {model.config.task}, and makes no vectors of texts; "
            f"valid is one for {Task.sentence_embedding}"
        )


def as_text(number: int, value: object) -> str:
    """Raises:
    InputError: for what is no text, with its number."""
    try:
        return as_sentence(value)
    except ValueError as error:
        raise InputError(f"text {number} is {value!r:.80}; valid is {error}") from error


def groups(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` values; the last one may be shorter."""
    rest = iter(values)
    return iter(lambda: list(islice(rest, size)), [])


def embed_window(model: Bert, texts: Sequence[str], batch_size: int) -> Vectors:
    tokenizer = model.tokenizer
    rows = shortest_first(encoded(texts, tokenizer, model.config.longest_sentence))
    batches = []
    for examples in groups(rows, batch_size):
        numbers, ids = zip(*examples, strict=True)
        batches.append(plain_batch(numbers, ids, tokenizer.pad_token_id))
    return embed_batches(model, batches).numpy()


@torch.inference_mode()
def embed_batches(model: Bert, batches: Sequence[Batch]) -> Tensor:
    """The vectors of sentences, (n, hidden), in the order of their numbers, on the CPU.

    Args:
        batches: which hold the sentences 0 to n - 1, each once.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    numbers = torch.cat([batch["sentences"] for batch in batches])
    vectors = torch.cat(
        [
            model(batch["input_ids"].to(device), batch["attention_mask"].to(device)).float().cpu()
            for batch in batches
        ]
    )
    model.train(training)
    ordered = torch.empty_like(vectors)
    ordered[numbers] = vectors
    return ordered
