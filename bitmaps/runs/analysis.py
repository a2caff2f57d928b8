"""The error analysis of one row: what a model predicts, how surely, and when it is right.

``bitmaps.scoring.predictions`` makes it; ``analysis.json`` stores one for each kind of row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A model has collapsed to a token that it predicts more often than this share of the time, and more
# than twice as often as the token is true.
COLLAPSED = 0.25


@dataclass(frozen=True)
class FrequentToken:
    """A token that is predicted often.

    Attributes:
        token: as it is written.
        share: of the predictions.
        true_share: of the targets.
        confidence, confidence_std: mean and standard deviation of its probability when predicted.
    """

    token: str
    share: float
    true_share: float
    confidence: float
    confidence_std: float = 0.0

    @property
    def is_collapse(self) -> bool:
        """Whether the model that predicts it most says it whatever it is asked."""
        return self.share > max(COLLAPSED, 2 * self.true_share)


@dataclass(frozen=True)
class Confidence:
    """The probability of the predicted tokens: mean, standard deviation, and counts in equal bins
    of 0 to 1."""

    mean: float
    std: float
    histogram: Sequence[int]


@dataclass(frozen=True)
class Subset:
    """The accuracy on some of the masked tokens; ``None`` where there are none."""

    masked_tokens: int
    accuracy: float | None


@dataclass(frozen=True)
class FrequencyBin(Subset):
    """The masked tokens whose true token occurs ``at_least`` so often in the text."""

    at_least: int


@dataclass(frozen=True)
class Guess:
    """A token that a model would put in, and its probability."""

    token: str
    probability: float


@dataclass(frozen=True)
class MaskedToken:
    """A masked token: its position among the pieces, the true token (``None`` where it is not
    known), and the most probable ones, best first."""

    position: int
    true: str | None
    predictions: Sequence[Guess]


@dataclass(frozen=True)
class Sentence:
    """A sentence that a model was shown: as the model saw it, and its pieces without [CLS] and
    [SEP]."""

    text: str
    pieces: Sequence[str]
    masked: Sequence[MaskedToken]


@dataclass(frozen=True)
class Analysis:
    """What a model predicts on a text.

    Attributes:
        masked_tokens: how many.
        verdict: the finding in words.
        predicted: the most frequent predictions, first the most frequent.
        distinct: how many different tokens are predicted.
        entropy: of the distribution of the predictions, in nats.
        mean_entropy: of the model's own distributions, in nats.
        confidence: the probability of the predictions.
        by_input: the accuracy by what was in the token's place: mask, random or unchanged.
        by_frequency: the accuracy by how often the true token occurs in the text.
        sentences: some sentences, filled in.
    """

    verdict: str
    predicted: Sequence[FrequentToken]
    distinct: int
    confidence: Confidence
    by_input: Mapping[str, Subset]
    by_frequency: Sequence[FrequencyBin]
    sentences: Sequence[Sentence]
    masked_tokens: int | None = None
    entropy: float | None = None
    mean_entropy: float | None = None
