"""Scores of masked-language models: cross entropy (CE), accuracy and mean reciprocal rank (MRR).

torchmetrics has similar classes that do not suit binarized models. Its ``Perplexity`` is infinite
above 88.7 nats per token, and binarized models reach 262. Its ``RetrievalMRR`` scores a correct
answer 0 if its logit is negative.

The three metrics take ``update(logits, labels)`` with logits (..., vocabulary) and labels (...). A
label is ``IGNORE`` (-100) where a position is not scored. Each metric keeps two sums, which are
added up across processes. ``compute()`` is NaN before the first scored position.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from bitmaps.vocabulary import IGNORE as IGNORE  # part of this module's interface


def scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The n scored positions: logits (n, vocabulary) in fp32, and labels (n,).

    Raises:
        ValueError: when the shapes do not match, or a label is outside the vocabulary.
        FloatingPointError: when a logit at a scored position is NaN or infinite.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not match labels {tuple(labels.shape)}")
    kept = labels != IGNORE
    if kept.all():  # a view; indexing would copy
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    else:
        logits, labels = logits[kept], labels[kept]
    logits = logits.float()
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[-1]):
        raise ValueError(f"labels must be in 0..{logits.shape[-1] - 1} or equal {IGNORE}")
    # One bad logit makes the sum non-finite, and the sum is cheap. It can also overflow, so a
    # non-finite sum alone proves nothing.
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise FloatingPointError("logits that are NaN or infinite")
    return logits, labels


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """The rank of each true token: the number of tokens that score as high or higher.

    The true token itself counts, so the best rank is 1. A tie never helps: a model that gives all
    tokens the same score ranks the true token last. Shapes: (n, vocabulary), (n,) -> (n,).

    >>> ranks(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0]))
    tensor([2, 3])
    """
    return (logits >= logits.gather(-1, labels[..., None])).sum(-1)


class _MaskedMean(Metric):
    """The mean of one value per scored position, summed in fp64."""

    full_state_update = False
    is_differentiable = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The value at each scored position: (n, vocabulary), (n,) -> (n,)."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        logits, labels = scored(logits, labels)
        self.total += self.each(logits, labels).double().sum()
        self.count += labels.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class MaskedCrossEntropy(_MaskedMean):
    """Mean of ``-log softmax(logits)[label]`` in nats. Finite, however unlikely the true token is.

    >>> metric = MaskedCrossEntropy()
    >>> metric.update(torch.tensor([[0.0, 1000.0], [0.0, 0.0]]), torch.tensor([0, -100]))
    >>> metric.compute()
    tensor(1000., dtype=torch.float64)
    """

    higher_is_better = False

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


class MaskedAccuracy(_MaskedMean):
    """Share of scored positions whose true token has rank 1: the highest score, without a tie.

    >>> metric = MaskedAccuracy()
    >>> metric.update(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([1, 1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ranks(logits, labels) == 1


class MaskedMRR(_MaskedMean):
    """Mean of 1/rank (``ranks``), with 0 in place of 1/rank where the rank is above ``top``.

    >>> metric = MaskedMRR()
    >>> metric.update(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def __init__(self, top: int = 32) -> None:
        super().__init__()
        self.top = top

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        rank = ranks(logits, labels)
        return torch.where(rank <= self.top, 1.0 / rank, 0.0)


class SentenceSums(Metric):
    """Sums over the masked tokens of each sentence. They give differences paired by sentence.

    ``compute()`` returns (sentences, 4) in fp64: the number of masked tokens, and the sums of cross
    entropy, hits (rank 1) and reciprocal ranks.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, sentences: int, top: int = 32) -> None:
        super().__init__()
        self.scores = (MaskedCrossEntropy(), MaskedAccuracy(), MaskedMRR(top))
        self.add_state("sums", torch.zeros(sentences, 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, sentences: Tensor) -> None:
        """Take logits (n, vocabulary), labels (n,), and the number of each sentence, (n,)."""
        columns = [torch.ones_like(labels), *(score.each(logits, labels) for score in self.scores)]
        self.sums.index_add_(0, sentences, torch.stack([column.double() for column in columns], -1))

    def compute(self) -> Tensor:
        return self.sums
