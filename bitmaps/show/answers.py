"""What the models of a group answer to what somebody types, and how long they take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch, padded, plain_batch
from bitmaps.data.tokenizing import encoded
from bitmaps.errors import InputError
from bitmaps.scoring.filling import TOP, filled, logits_at_masks, sentence_of
from bitmaps.scoring.measure import timed_calls
from bitmaps.show.groups import Group, Shown

MASK = "[MASK]"  # what people type, whatever the tokenizer's own mask is
MOST_TEXTS, MOST_CHARACTERS = 50, 20_000
RUNS, BUDGET_S = 5, 1.0
CPU = torch.device("cpu")
ALONE = threading.Lock()
"""Held while a model is timed: a second visitor waits, rather than slow the first one down."""


class Quantity(Enum):
    """What the numbers of an answer are: how they are written, and whether a bar shows them."""

    probability = "%.1f %%"
    similarity = "%.3f"
    score = "%.3g"

    def shown(self, value: float) -> str:
        """
        >>> Quantity.probability.shown(0.4125), Quantity.similarity.shown(-0.25)
        ('41.2 %', '-0.250')
        """
        return self.value % (100 * value if self is Quantity.probability else value)

    @property
    def has_bar(self) -> bool:
        return self is not Quantity.score

    def width(self, value: float) -> float:
        """The length of the bar, in percent."""
        return round(100 * min(max(value, 0), 1), 1)


@dataclass(frozen=True)
class Ranked:
    """A word, a text or a class, and its probability, its similarity or its score."""

    text: str
    value: float


@dataclass(frozen=True)
class Line:
    """What one model answers.

    Attributes:
        lists: for each thing that was asked, such as each [MASK], what it ranks highest, best
            first. Empty if the model gave a NaN or an infinity.
        ms: milliseconds of a forward pass, the median of at most ``RUNS`` after one to warm up.
    """

    shown: Shown
    lists: Sequence[Sequence[Ranked]]
    ms: float


@dataclass(frozen=True)
class Answer:
    """What the models of one group answer.

    Attributes:
        quantity: what the numbers are.
        notes: what was done to the input, such as cutting a long text.
    """

    group: Group
    quantity: Quantity
    lines: Sequence[Line]
    notes: Sequence[str] = ()


def fill_in(group: Group, text: str) -> Answer:
    """The five most probable words for every [MASK] of a sentence.

    Raises:
        InputError: when it has no [MASK], or is longer than the model's positions.
    """
    check_text("the sentence", text)
    tokenizer = group.tokenizer
    with_masks = text.replace(MASK, str(tokenizer.mask_token))
    example = sentence_of(with_masks, tokenizer, group.length, said="the sentence")

    def words(model: Bert, logits: Tensor) -> list[list[Ranked]]:
        masked = filled(example, logits, tokenizer).masked
        return [[Ranked(g.token, g.probability) for g in mask.predictions] for mask in masked]

    pad = tokenizer.pad_token_id
    run = partial(logits_at_masks, example=example, pad=pad)
    return ask(group, run, Quantity.probability, words)


def compare(group: Group, first: str, second: str) -> Answer:
    """The cosine between the vectors of two sentences.

    Raises:
        InputError: when one of them is empty or endless.
    """
    sentences = {"the first sentence": first, "the second sentence": second}
    batch, notes = batch_of(group, sentences)

    def cosine(model: Bert, vectors: Tensor) -> list[list[Ranked]]:
        return [[Ranked("", F.cosine_similarity(vectors[0], vectors[1], dim=0).item())]]

    return ask(group, partial(embed, batch), Quantity.similarity, cosine, notes)


def search(group: Group, query: str, texts: str) -> Answer:
    """The five texts whose vectors have the greatest cosine with that of a query.

    Args:
        texts: one per line; empty lines are skipped.

    Raises:
        InputError: when the query is empty, a text is endless, or there are none or too many.
    """
    lines = [line.strip() for line in texts.splitlines() if line.strip()]
    if not lines:
        raise InputError("there is no text to search in: type one per line")
    if len(lines) > MOST_TEXTS:
        raise InputError(f"there are {len(lines)} texts; valid are at most {MOST_TEXTS}")
    named = {f"text {number}": line for number, line in enumerate(lines, 1)}
    batch, notes = batch_of(group, {"the query": query} | named)

    def nearest(model: Bert, vectors: Tensor) -> list[list[Ranked]]:
        return [best(lines, F.cosine_similarity(vectors[:1], vectors[1:], dim=-1))]

    return ask(group, partial(embed, batch), Quantity.similarity, nearest, notes)


def classify(group: Group, first: str, second: str) -> Answer:
    """The five most probable classes of a sentence, or of a pair; of a model without classes, its
    score.

    Args:
        second: empty for a sentence alone.

    Raises:
        InputError: when the first is empty, or one is endless.
    """
    check_text("the sentence", first)
    typed = [first]
    if second.strip():
        check_text("the second sentence", second)
        typed.append(second)
    tokenizer, most = group.tokenizer, group.length
    whole = tokenizer(*typed, verbose=False)
    found = tokenizer(*typed, truncation=True, max_length=most, return_token_type_ids=True)
    batch = plain_batch([0], [np.array(found["input_ids"])], tokenizer.pad_token_id)
    types = padded([np.array(found["token_type_ids"])], 0)
    notes = cut_notes({"what you typed": len(whole["input_ids"])}, most)

    def scores(model: Bert) -> Tensor:
        return model(batch["input_ids"], batch["attention_mask"], types)

    def classes(model: Bert, logits: Tensor) -> list[list[Ranked]]:
        labels = model.config.labels
        if not labels:
            return [[Ranked("", logits[0, 0].item())]]
        return [best(labels, logits[0].float().softmax(-1))]

    quantity = Quantity.probability if group.config.labels else Quantity.score
    return ask(group, scores, quantity, classes, notes)


def ask(
    group: Group,
    run: Callable[[Bert], Tensor],
    quantity: Quantity,
    read: Callable[[Bert, Tensor], list[list[Ranked]]],
    notes: Sequence[str] = (),
) -> Answer:
    """Ask every model of a group, and time it.

    Args:
        run: the forward pass.
        read: what its output says.
    """
    lines = []
    for shown in group.models:
        with ALONE, torch.inference_mode():
            output, seconds = timed_calls(partial(run, shown.model), CPU, RUNS, BUDGET_S)
        lists = read(shown.model, output) if output.isfinite().all() else []
        lines.append(Line(shown, lists, 1000 * median(seconds)))
    return Answer(group, quantity, lines, notes)


def best(names: Sequence[str], values: Tensor) -> list[Ranked]:
    """The five with the greatest values, (names,), in their order."""
    found = values.topk(min(TOP, len(names)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [Ranked(names[number], value) for number, value in pairs]


def embed(batch: Batch, model: Bert) -> Tensor:
    return model(batch["input_ids"], batch["attention_mask"])


def batch_of(group: Group, texts: dict[str, str]) -> tuple[Batch, list[str]]:
    """Texts by their names as one batch, each cut at the model's length, and which were cut.

    Raises:
        InputError: when one is empty or endless.
    """
    for name, text in texts.items():
        check_text(name, text)
    tokenizer, typed = group.tokenizer, list(texts.values())
    whole = tokenizer(typed, return_attention_mask=False, verbose=False)["input_ids"]
    lengths = dict(zip(texts, map(len, whole), strict=True))
    rows = encoded(typed, tokenizer, group.length)
    batch = plain_batch(range(len(rows)), rows, tokenizer.pad_token_id)
    return batch, cut_notes(lengths, group.length)


def check_text(name: str, text: str) -> None:
    """Raises:
    InputError: for a text without a character, or with too many."""
    if not text.strip():
        raise InputError(f"{name} is empty")
    if len(text) > MOST_CHARACTERS:
        raise InputError(f"{name} has {len(text)} characters; valid are at most {MOST_CHARACTERS}")


def cut_notes(lengths: dict[str, int], most: int) -> list[str]:
    """What to say of texts with more pieces than a model reads."""
    return [
        f"{name} has {length} pieces; the model reads the first {most}"
        for name, length in lengths.items()
        if length > most
    ]
