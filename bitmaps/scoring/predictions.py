"""What a model predicts, and how sure of it it is: what the scores alone do not show.

A binarized model that has failed predicts one token for everything. ``analyse`` says so in words; ``fill`` shows it on sentences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert
from bitmaps.data.module import Example, collate
from bitmaps.errors import InputError
from bitmaps.metrics import IGNORE, ranks

# A model that predicts one token more often than this, and more than twice as often as it is right to, has collapsed to it.
COLLAPSED = 0.25
BINS = 20  # of confidences
LISTED = 20  # predictions, most frequent first
TOP = 5
FREQUENCIES = (1, 10, 100, 1000)  # how often a token occurs in the text: the lower ends of the bins


class Predicted(NamedTuple):
    """Of every masked token, (n,) each.

    Attributes:
        labels: the true token.
        inputs: the token that stood in its place: [MASK], a random one, or itself.
        tokens: the one that scores highest, the first of several that do.
        hits: whether it is the true one, alone (rank 1).
        confidences: its probability.
        entropies: of the distribution over the vocabulary, in nats.
    """

    labels: NDArray[np.int64]
    inputs: NDArray[np.int64]
    tokens: NDArray[np.int64]
    hits: NDArray[np.bool_]
    confidences: NDArray[np.float64]
    entropies: NDArray[np.float64]


class Predictions(Metric):
    """Keeps what is predicted for each masked token."""

    full_state_update = False
    is_differentiable = False
    ids: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ids", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> None:
        """(n, vocabulary), (n,) and (n,)."""
        log_probabilities = logits.float().log_softmax(-1)
        best, tokens = log_probabilities.max(-1)
        entropies = torch.special.entr(log_probabilities.exp()).sum(-1)  # where 0 log 0 is 0
        hits = ranks(logits, labels) == 1
        self.ids.append(torch.stack([labels, inputs, tokens], -1))
        self.numbers.append(
            torch.stack([hits.double(), best.double().exp(), entropies.double()], -1)
        )

    def compute(self) -> Predicted:
        def whole(
            state: list[Tensor] | Tensor,
        ) -> NDArray[Any]:  # torchmetrics joins it where processes are many
            joined = state if isinstance(state, Tensor) else torch.cat(state)
            return np.asarray(joined.cpu().numpy())

        labels, inputs, tokens = whole(self.ids).T
        hits, confidences, entropies = whole(self.numbers).T
        return Predicted(labels, inputs, tokens, hits == 1, confidences, entropies)


def analyse(
    predicted: Predicted, tokenizer: PreTrainedTokenizerBase, occurrences: NDArray[np.int64]
) -> dict[str, Any]:
    """The error analysis of a model on a text, as it stands in ``analysis.json``.

    Args:
        occurrences: how often each token is in the text, (vocabulary,).

    Returns:
        masked_tokens; verdict, in words; predicted, the most frequent predictions, each with its share of the masked tokens, the
        share of them that it is true of, and the mean and standard deviation of its confidence; distinct, how many there are;
        entropy, of the distribution of predictions, and mean_entropy, of the model's own distributions, in nats; confidence,
        its mean, std and histogram over equal bins of 0 to 1; by_input and by_frequency, the accuracy split by what stood in the
        token's place and by how often the true token occurs in the text.
    """
    count = len(predicted.labels)
    tokens, counts = np.unique(predicted.tokens, return_counts=True)
    shares = counts / count
    listed = []
    for place in np.lexsort((tokens, -counts))[:LISTED]:
        confidences = predicted.confidences[predicted.tokens == tokens[place]]
        listed.append(
            {
                "token": piece(tokenizer, tokens[place]),
                "share": float(shares[place]),
                "true_share": float((predicted.labels == tokens[place]).mean()),
                "confidence": float(confidences.mean()),
                "confidence_std": float(confidences.std()),
            }
        )
    mask, labels, inputs = tokenizer.mask_token_id, predicted.labels, predicted.inputs
    kinds = {
        "mask": inputs == mask,
        "random": (inputs != mask) & (inputs != labels),
        "unchanged": (inputs != mask) & (inputs == labels),
    }
    frequency, lowest = occurrences[labels], FREQUENCIES
    bins = [
        (frequency >= low) & (frequency < high)
        for low, high in zip(lowest, (*lowest[1:], np.inf), strict=True)
    ]
    histogram, _ = np.histogram(predicted.confidences.clip(0, 1), BINS, (0, 1))
    return {
        "masked_tokens": count,
        "verdict": verdict(listed[0], len(tokens)),
        "predicted": listed,
        "distinct": len(tokens),
        "entropy": float(-(shares * np.log(shares)).sum()) + 0.0,  # of one token 0, not -0
        "mean_entropy": float(predicted.entropies.mean()),
        "confidence": {
            "mean": float(predicted.confidences.mean()),
            "std": float(predicted.confidences.std()),
            "histogram": histogram.tolist(),
        },
        "by_input": {kind: accuracy(predicted.hits[chosen]) for kind, chosen in kinds.items()},
        "by_frequency": [
            {"at_least": low, **accuracy(predicted.hits[chosen])}
            for low, chosen in zip(lowest, bins, strict=True)
        ],
    }


def accuracy(hits: NDArray[np.bool_]) -> dict[str, Any]:
    return {"masked_tokens": len(hits), "accuracy": float(hits.mean()) if len(hits) else None}


def piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as it is written; one that a model has beyond its tokenizer's pieces, by its number."""
    return str(tokenizer.convert_ids_to_tokens(int(token)) or f"[{token}]")


def verdict(most: dict[str, Any], distinct: int) -> str:
    """In words, from the most frequent prediction.

    >>> verdict({"token": ".", "share": 1.0, "true_share": 0.05, "confidence": 0.019}, 1)
    "predicts '.' for 100 % of masked tokens with mean confidence 0.019: collapsed"
    >>> verdict({"token": "the", "share": 0.0612, "true_share": 0.0501, "confidence": 0.4}, 2345)
    "predicts 2345 different tokens, most often 'the': for 6.1 % of masked tokens, while 5.0 % are"
    """
    token = repr(most["token"])
    if most["share"] > max(COLLAPSED, 2 * most["true_share"]):
        share = percent(most["share"])
        return f"predicts {token} for {share} of masked tokens with mean confidence {most['confidence']:.3f}: collapsed"
    share, true = percent(most["share"]), percent(most["true_share"])
    return f"predicts {distinct} different tokens, most often {token}: for {share} of masked tokens, while {true} are"


def percent(share: float) -> str:
    """100 % only of all.

    >>> percent(1.0), percent(0.99999), percent(0.123)
    ('100 %', '99.9 %', '12.3 %')
    """
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"


def chosen_sentences(examples: list[Example], seed: int, count: int = 8) -> list[Example]:
    """So many of the masked sentences, drawn from ``seed``; those without a masked token, and further masks of one that is there,
    are passed over."""
    first: dict[int, Example] = {}
    for example in examples:
        if (example[2] != IGNORE).any():
            first.setdefault(example[0], example)
    numbers = sorted(first)
    order = np.random.RandomState(seed).permutation(len(numbers))[:count]
    return [first[numbers[i]] for i in order]


def sentence_of(text: str, tokenizer: PreTrainedTokenizerBase, positions: int) -> Example:
    """A user's own sentence. Its true tokens are not known: the labels of its masks are [MASK] itself.

    Raises:
        InputError: when it has no mask, or is longer than the model's ``positions``.
    """
    mask = tokenizer.mask_token
    if not text.strip():
        raise InputError(f"text={text!r} is empty: give it a sentence with {mask}")
    ids = np.array(tokenizer(text, verbose=False)["input_ids"])
    if not (ids == tokenizer.mask_token_id).any():
        raise InputError(
            f"text={text!r} has nothing to fill in: put {mask} where a word is missing"
        )
    if len(ids) > positions:
        raise InputError(
            f"text={text!r} has {len(ids)} pieces, more than the model's {positions} positions"
        )
    return -1, ids, np.where(ids == tokenizer.mask_token_id, ids, IGNORE)


@torch.inference_mode()
def fill(
    model: Bert, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    """What the model would put in for the masked tokens of each sentence.

    Returns:
        for each sentence, the ``text`` as the model saw it, its ``pieces`` without [CLS] and [SEP], and ``masked``: for each masked
        token its position among the pieces, the ``true`` one (``None`` where it is not known), and the ``predictions``, the five
        most probable tokens with their probabilities.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    found = []
    for example in examples:
        batch = collate([example], tokenizer.pad_token_id)
        ids, labels = example[1], example[2]
        kept = batch["labels"] != IGNORE
        logits = model(
            batch["input_ids"].to(device),
            batch["attention_mask"].to(device),
            positions=kept.to(device),
        )
        best = logits.float().softmax(-1).topk(min(TOP, logits.shape[-1]))
        masked = [
            {
                "position": int(position) - 1,
                "true": None
                if labels[position] == tokenizer.mask_token_id
                else piece(tokenizer, labels[position]),
                "predictions": [
                    {"token": piece(tokenizer, token), "probability": probability}
                    for token, probability in zip(tokens, probabilities, strict=True)
                ],
            }
            for position, tokens, probabilities in zip(
                np.flatnonzero(labels != IGNORE),
                best.indices.tolist(),
                best.values.tolist(),
                strict=True,
            )
        ]
        pieces = [piece(tokenizer, token) for token in ids[1:-1]]
        found.append({"text": tokenizer.decode(ids[1:-1]), "pieces": pieces, "masked": masked})
    model.train(training)
    return found
