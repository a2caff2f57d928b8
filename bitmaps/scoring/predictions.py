"""What a model predicts and how surely: what the scores alone do not show.

A binarized model that has failed predicts one token for everything. ``analyse`` says so in words;
``bitmaps.scoring.filling`` shows it on sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from bitmaps.metrics import ranks
from bitmaps.runs.analysis import (
    Analysis,
    Confidence,
    FrequencyBin,
    FrequentToken,
    Sentence,
    Subset,
)
from bitmaps.scoring.filling import piece

BINS = 20  # of confidences
LISTED = 20  # predictions, most frequent first
FREQUENCIES = (1, 10, 100, 1000)  # lower ends of the bins of how often a token occurs in the text


class Predicted(NamedTuple):
    """What is predicted for every masked token, (n,) each.

    Attributes:
        labels: the true token.
        inputs: the token in its place: [MASK], a random one, or itself.
        tokens: the token that scores highest; of several, the first.
        hits: whether the true token alone scores highest (rank 1).
        confidences: the probability of the predicted token.
        entropies: of the distribution over the vocabulary, in nats.
    """

    labels: NDArray[np.int64]
    inputs: NDArray[np.int64]
    tokens: NDArray[np.int64]
    hits: NDArray[np.bool_]
    confidences: NDArray[np.float64]
    entropies: NDArray[np.float64]


class Predictions(Metric):
    """Collects what is predicted for each masked token."""

    full_state_update = False
    is_differentiable = False
    ids: list[Tensor]
    numbers: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ids", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor, inputs: Tensor) -> None:
        """Shapes: (n, vocabulary), (n,) and (n,)."""
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
        ) -> NDArray[Any]:
            # torchmetrics has joined the parts of several processes already
            joined = state if isinstance(state, Tensor) else torch.cat(state)
            return np.asarray(joined.cpu().numpy())

        labels, inputs, tokens = whole(self.ids).T
        hits, confidences, entropies = whole(self.numbers).T
        return Predicted(labels, inputs, tokens, hits == 1, confidences, entropies)


def analyse(
    predicted: Predicted,
    tokenizer: PreTrainedTokenizerBase,
    occurrences: NDArray[np.int64],
    sentences: Sequence[Sentence],
) -> Analysis:
    """The error analysis of a model on a text.

    Args:
        occurrences: how often each token occurs in the text, (vocabulary,).
        sentences: some sentences, filled in (``fill``).
    """
    count = len(predicted.labels)
    tokens, counts = np.unique(predicted.tokens, return_counts=True)
    shares = counts / count
    most_frequent = np.lexsort((tokens, -counts))[:LISTED]
    listed = [frequent_token(predicted, tokens[i], shares[i], tokenizer) for i in most_frequent]
    histogram, _ = np.histogram(predicted.confidences.clip(0, 1), BINS, (0, 1))
    return Analysis(
        masked_tokens=count,
        verdict=verdict(listed[0], len(tokens)),
        predicted=listed,
        distinct=len(tokens),
        entropy=float(-(shares * np.log(shares)).sum()) + 0.0,  # of one token 0, not -0
        mean_entropy=float(predicted.entropies.mean()),
        confidence=Confidence(
            mean=float(predicted.confidences.mean()),
            std=float(predicted.confidences.std()),
            histogram=histogram.tolist(),
        ),
        by_input=by_input(predicted, tokenizer.mask_token_id),
        by_frequency=by_frequency(predicted, occurrences),
        sentences=sentences,
    )


def frequent_token(
    predicted: Predicted, token: int, share: float, tokenizer: PreTrainedTokenizerBase
) -> FrequentToken:
    confidences = predicted.confidences[predicted.tokens == token]
    return FrequentToken(
        token=piece(tokenizer, token),
        share=float(share),
        true_share=float((predicted.labels == token).mean()),
        confidence=float(confidences.mean()),
        confidence_std=float(confidences.std()),
    )


def by_input(predicted: Predicted, mask: int) -> dict[str, Subset]:
    """The accuracy by what was in the place of the true token."""
    inputs, labels = predicted.inputs, predicted.labels
    kinds = {
        "mask": inputs == mask,
        "random": (inputs != mask) & (inputs != labels),
        "unchanged": (inputs != mask) & (inputs == labels),
    }
    return {kind: Subset(*accuracy(predicted.hits[chosen])) for kind, chosen in kinds.items()}


def by_frequency(predicted: Predicted, occurrences: NDArray[np.int64]) -> list[FrequencyBin]:
    """The accuracy by how often the true token occurs in the text."""
    frequency = occurrences[predicted.labels]
    bins = []
    for low, high in zip(FREQUENCIES, (*FREQUENCIES[1:], np.inf), strict=True):
        chosen = (frequency >= low) & (frequency < high)
        bins.append(FrequencyBin(*accuracy(predicted.hits[chosen]), at_least=low))
    return bins


def accuracy(hits: NDArray[np.bool_]) -> tuple[int, float | None]:
    """How many tokens there are, and the share that is right."""
    return len(hits), float(hits.mean()) if len(hits) else None


def verdict(most: FrequentToken, distinct: int) -> str:
    """The finding in words, from the most frequent prediction.

    >>> verdict(FrequentToken(".", share=1.0, true_share=0.05, confidence=0.019), 1)
    "predicts '.' for 100 % of masked tokens with mean confidence 0.019: collapsed"
    >>> verdict(FrequentToken("the", share=0.141, true_share=0.072, confidence=0.4), 272)
    "predicts 272 distinct tokens; most often 'the' (14.1 % of predictions, 7.2 % of targets)"
    """
    token, share = repr(most.token), percent(most.share)
    if most.is_collapse:
        return (
            f"predicts {token} for {share} of masked tokens "
            f"with mean confidence {most.confidence:.3f}: collapsed"
        )
    return (
        f"predicts {distinct} distinct tokens; most often {token} "
        f"({share} of predictions, {percent(most.true_share)} of targets)"
    )


def percent(share: float) -> str:
    """A share in percent. Only all of it is 100 %.

    >>> percent(1.0), percent(0.99999), percent(0.123)
    ('100 %', '99.9 %', '12.3 %')
    """
    return "100 %" if share == 1 else f"{min(100 * share, 99.9):.1f} %"
