"""Masked-language modelling, scored: cross entropy, accuracy and mean reciprocal rank over the masked positions.

Why our own: torchmetrics' ``Perplexity`` is infinite above 88.7 nats a token (binarized models reach 262), and its
``RetrievalMRR`` gives 0 to a right answer whose logit is negative.

All three take ``update(logits, labels)`` with logits (..., vocabulary) and labels (...), -100 where a position is not scored,
and keep two sums, which are added up across processes. Before any scored position ``compute()`` is NaN.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

IGNORE = -100  # the label of a position that is not scored, as in torch's cross entropy


def scored(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The scored positions: logits (n, vocabulary) in fp32 and labels (n,).

    Raises:
        ValueError: when the shapes do not fit, or a label is outside the vocabulary.
        FloatingPointError: when a logit at a scored position is NaN or infinite.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} do not fit labels {tuple(labels.shape)}")
    kept = labels != IGNORE
    if kept.all():  # a view, where picking would copy
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    else:
        logits, labels = logits[kept], labels[kept]
    logits = logits.float()
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < logits.shape[-1]):
        raise ValueError(f"labels must lie in 0..{logits.shape[-1] - 1} or be {IGNORE}")
    # the sum is not finite if one logit is not, and cheaper to look at; it may overflow without one
    if not torch.isfinite(logits.sum()) and not torch.isfinite(logits).all():
        raise FloatingPointError("logits that are NaN or infinite")
    return logits, labels


def ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """The rank of each true token: how many tokens score at least as high, itself included. (n, v), (n,) -> (n,).

    A tie never helps: a model that scores all tokens alike ranks the true one last.

    >>> ranks(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), torch.tensor([2, 0]))
    tensor([2, 3])
    """
    return (logits >= logits.gather(-1, labels[..., None])).sum(-1)


class _MaskedMean(Metric):
    """The mean of a number for each scored position; sums in fp64."""

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
        """(n, vocabulary), (n,) -> (n,)."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        logits, labels = scored(logits, labels)
        self.total += self.each(logits, labels).double().sum()
        self.count += labels.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


class MaskedCrossEntropy(_MaskedMean):
    """Mean of ``-log softmax(logits)[label]`` in nats: finite, however unlikely the true token is.

    >>> metric = MaskedCrossEntropy()
    >>> metric.update(torch.tensor([[0.0, 1000.0], [0.0, 0.0]]), torch.tensor([0, -100]))
    >>> metric.compute()
    tensor(1000., dtype=torch.float64)
    """

    higher_is_better = False

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


class MaskedAccuracy(_MaskedMean):
    """Share of scored positions whose true token alone has the highest score (rank 1; a tie for it does not count).

    >>> metric = MaskedAccuracy()
    >>> metric.update(torch.tensor([[0.0, 1.0], [2.0, 2.0]]), torch.tensor([1, 1]))
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True

    def each(self, logits: Tensor, labels: Tensor) -> Tensor:
        return ranks(logits, labels) == 1


class MaskedMRR(_MaskedMean):
    """Mean of 1/rank, 0 where the rank (``ranks``) is beyond ``top``.

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
    """What the masked tokens of each sentence add up to, for differences that are paired by sentence.

    ``compute()`` is (sentences, 4) in fp64: the count of masked tokens, and the sums of cross entropy, hits and reciprocal ranks.
    """

    full_state_update = False
    is_differentiable = False
    sums: Tensor

    def __init__(self, sentences: int, top: int = 32) -> None:
        super().__init__()
        self.scores = (MaskedCrossEntropy(), MaskedAccuracy(), MaskedMRR(top))
        self.add_state("sums", torch.zeros(sentences, 4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, sentences: Tensor) -> None:
        """(n, vocabulary), (n,), and (n,) numbers of sentences."""
        columns = [torch.ones_like(labels), *(score.each(logits, labels) for score in self.scores)]
        self.sums.index_add_(0, sentences, torch.stack([column.double() for column in columns], -1))

    def compute(self) -> Tensor:
        return self.sums
