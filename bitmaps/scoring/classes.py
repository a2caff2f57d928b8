"""How often a classifier is right."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import (
    Accuracy,
    F1Score,
    MatthewsCorrCoef,
    MeanMetric,
    Metric,
    MetricCollection,
    SumMetric,
)
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.scoring.module import Scored


def classification_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross entropy in nats, (n, classes), (n,) -> (); for one output, a score, the mean
    squared error."""
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0].float(), labels.float())
    return F.cross_entropy(logits.float(), labels)


class ScoredClasses(Scored):
    """Scores a classifier on labeled sentences.

    Args:
        model: what is scored. Without classes it gives a score.

    Attributes:
        results: ``loss`` (``classification_error``) and ``sentences``. With classes ``accuracy``,
            ``f1`` and ``matthews``; F1 is that of class 1 of two, and the mean over more than two.
            With scores ``spearman`` and ``pearson`` times 100. ``score`` is the accuracy, or
            Spearman's correlation: the one that says which checkpoint is the best.
    """

    def __init__(self, model: Bert) -> None:
        super().__init__(model)
        classes = len(model.config.labels)
        self.mean_loss, self.sentences = MeanMetric(), SumMetric()
        metrics: dict[str, Metric]
        if classes:
            metrics = {
                "accuracy": Accuracy(task="multiclass", num_classes=classes),
                "f1": F1Score(
                    task="multiclass",
                    num_classes=classes,
                    average="none" if classes == 2 else "macro",
                ),
                # One class more than there are: for two, torchmetrics gives a model that always
                # says the same a number above 0.
                "matthews": MatthewsCorrCoef(task="multiclass", num_classes=classes + 1),
            }
        else:
            metrics = {"spearman": SpearmanCorrCoef(), "pearson": PearsonCorrCoef()}
        self.metrics = MetricCollection(dict(metrics), compute_groups=False)
        self.shown = ("loss", *metrics)

    def update(self, batch: Batch) -> None:
        logits = self.model(
            batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        ).float()
        if not logits.isfinite().all():
            raise FloatingPointError("logits that are NaN or infinite")
        labels = batch["labels"]
        self.mean_loss.update(classification_error(logits, labels), len(labels))
        self.sentences.update(len(labels))
        if self.model.config.labels:
            self.metrics.update(logits.argmax(-1), labels)
        else:
            self.metrics.update(logits[:, 0].double(), labels.double())

    def compute_results(self) -> dict[str, float]:
        results = {
            "loss": self.mean_loss.compute().item(),
            "sentences": self.sentences.compute().item(),
        }
        for name, value in self.metrics.compute().items():
            one = value[1] if value.ndim else value  # F1 of both classes
            results[name] = (1 if self.model.config.labels else 100) * one.item()
        results["score"] = results["accuracy" if self.model.config.labels else "spearman"]
        for metric in (self.mean_loss, self.sentences, self.metrics):
            metric.reset()
        return results
