"""A model that Lightning scores, on one process or several."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torchmetrics import MetricCollection, SumMetric

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.data.masking import Vocabulary
from bitmaps.metrics import IGNORE, MaskedAccuracy, MaskedCrossEntropy, MaskedMRR, SentenceSums
from bitmaps.scoring.predictions import Predicted, Predictions

log = logging.getLogger(__name__)


class Scored(LightningModule):
    """Scores a ``Bert`` on batches.

    Attributes:
        results: after a validation or a test, at full precision.
        shown: the names of the results in the log; the first two are in the bar too.
    """

    shown: tuple[str, ...]

    def __init__(self, model: Bert) -> None:
        super().__init__()
        self.model = model
        self.results: dict[str, float] = {}

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Score a batch.

        Raises:
            FloatingPointError: when the model makes NaN or infinity.
        """

    @abstractmethod
    def compute_results(self) -> dict[str, float]:
        """``results``, added up across processes. Forgets the batches."""

    def validation_step(self, batch: Batch, _: int) -> None:
        try:
            self.update(batch)
        except FloatingPointError as error:
            raise self.nonfinite(batch, str(error)) from error

    def on_validation_epoch_end(self) -> None:
        self.results = self.compute_results()
        if self.trainer.state.fn is TrainerFn.FITTING:
            self.log_results()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def log_results(self) -> None:
        scores = ", ".join(f"{name} {self.results[name]:.4f}" for name in self.shown)
        rank_zero_only(log.info)("step %d: validation %s", self.global_step, scores)
        for name, value in self.results.items():
            # added up across processes already; sync_dist only says so to Lightning
            self.log(f"val/{name}", value, prog_bar=name in self.shown[:2], sync_dist=True)

    def nonfinite(self, batch: Batch, what: str) -> Exception:
        """What is raised for NaN or infinity: it names the module where they begin."""
        name = first_nonfinite_module(
            self.model, lambda: self.model(batch["input_ids"], batch["attention_mask"])
        )
        return FloatingPointError(f"{what}; the first module to make one: {name}")


class ScoredModel(Scored):
    """Scores a masked-language model on masked sentences.

    Args:
        model: what is scored.
        sentences: how many sentences there are, to keep ``sentence_sums`` and ``predicted``; 0
            keeps neither.

    Attributes:
        results: the scores, the same without [UNK] targets (prefixed ``known_``),
            ``masked_tokens`` and ``known_tokens``.
        sentence_sums: of each sentence (``SentenceSums``).
        predicted: for each masked token.
    """

    shown = ("cross_entropy", "accuracy", "mrr")

    def __init__(self, model: Bert, sentences: int = 0) -> None:
        super().__init__(model)
        self.scores = MetricCollection(
            {
                "cross_entropy": MaskedCrossEntropy(),
                "accuracy": MaskedAccuracy(),
                "mrr": MaskedMRR(),
            },
            compute_groups=False,
        )
        self.unknown_scores = self.scores.clone()  # of the targets that the tokenizer does not know
        self.masked_tokens, self.unknown_tokens = SumMetric(), SumMetric()
        self.by_sentence = SentenceSums(sentences) if sentences else None
        self.predictions = Predictions() if sentences else None
        self.sentence_sums: Tensor | None = None
        self.predicted: Predicted | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        vocabulary: Vocabulary = self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]
        return vocabulary

    def update(self, batch: Batch) -> None:
        kept = batch["labels"] != IGNORE
        logits = self.model(batch["input_ids"], batch["attention_mask"], positions=kept)
        labels = batch["labels"][kept]
        unknown = labels == self.vocabulary.unknown
        self.scores.update(logits, labels)
        self.unknown_scores.update(logits[unknown], labels[unknown])
        self.masked_tokens.update(labels.numel())
        self.unknown_tokens.update(int(unknown.sum()))
        if self.by_sentence is not None:
            sentences = batch["sentences"][:, None].expand_as(kept)[kept]
            self.by_sentence.update(logits, labels, sentences)
        if self.predictions is not None:
            self.predictions.update(logits, labels, batch["input_ids"][kept])

    def compute_results(self) -> dict[str, float]:
        results = self.means()
        if self.by_sentence is not None:
            self.sentence_sums = self.by_sentence.compute().cpu()
            self.by_sentence.reset()
        if self.predictions is not None:
            self.predicted = self.predictions.compute()
            self.predictions.reset()
        for metric in (self.scores, self.unknown_scores, self.masked_tokens, self.unknown_tokens):
            metric.reset()
        return results

    def means(self) -> dict[str, float]:
        count, unknown = self.masked_tokens.compute().item(), self.unknown_tokens.compute().item()
        results = {name: value.item() for name, value in self.scores.compute().items()}
        if unknown < count:
            of_unknown = {
                name: value.item() if unknown else 0.0
                for name, value in self.unknown_scores.compute().items()
            }
            results |= {
                f"known_{name}": (value * count - of_unknown[name] * unknown) / (count - unknown)
                for name, value in results.items()
            }
        return results | {"masked_tokens": count, "known_tokens": count - unknown}


def first_nonfinite_module(model: nn.Module, run: Callable[[], object]) -> str:
    """The name of the first module, in order of execution, whose output has a NaN or infinity while
    ``run`` runs."""
    culprits: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, list) else [output]
            if not all(torch.isfinite(t).all() for t in tensors):
                culprits.append(name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return culprits[0] if culprits else "none, when run again"
