"""A masked-language model that Lightning scores, on one process or several."""

from __future__ import annotations

import logging
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


class ScoredModel(LightningModule):
    """Scores a ``Bert`` on masked sentences.

    Args:
        model: what is scored.
        sentences: how many sentences there are, to keep ``sentence_sums`` and ``predicted``; 0
            keeps neither.

    Attributes:
        results: after a validation or a test, at full precision: the scores, the same without [UNK]
            targets (prefixed ``known_``), ``masked_tokens`` and ``known_tokens``.
        sentence_sums: of each sentence (``SentenceSums``).
        predicted: for each masked token.
    """

    def __init__(self, model: Bert, sentences: int = 0) -> None:
        super().__init__()
        self.model = model
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
        self.results: dict[str, float] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        vocabulary: Vocabulary = self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]
        return vocabulary

    def validation_step(self, batch: Batch, _: int) -> None:
        kept = batch["labels"] != IGNORE
        logits = self.model(batch["input_ids"], batch["attention_mask"], positions=kept)
        labels = batch["labels"][kept]
        unknown = labels == self.vocabulary.unknown
        try:
            self.scores.update(logits, labels)
        except FloatingPointError as error:
            raise self.nonfinite(batch, str(error)) from error
        self.unknown_scores.update(logits[unknown], labels[unknown])
        self.masked_tokens.update(labels.numel())
        self.unknown_tokens.update(int(unknown.sum()))
        if self.by_sentence is not None:
            sentences = batch["sentences"][:, None].expand_as(kept)[kept]
            self.by_sentence.update(logits, labels, sentences)
        if self.predictions is not None:
            self.predictions.update(logits, labels, batch["input_ids"][kept])

    def on_validation_epoch_end(self) -> None:
        self.results = self.compute_results()
        if self.by_sentence is not None:
            self.sentence_sums = self.by_sentence.compute().cpu()
            self.by_sentence.reset()
        if self.predictions is not None:
            self.predicted = self.predictions.compute()
            self.predictions.reset()
        for metric in (self.scores, self.unknown_scores, self.masked_tokens, self.unknown_tokens):
            metric.reset()
        if self.trainer.state.fn is TrainerFn.FITTING:
            self.log_results()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def compute_results(self) -> dict[str, float]:
        """``results``, added up across processes."""
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

    def log_results(self) -> None:
        scores = ", ".join(f"{name} {self.results[str(name)]:.4f}" for name in self.scores)
        rank_zero_only(log.info)("step %d: validation %s", self.global_step, scores)
        for name, value in self.results.items():
            shown = name in ("cross_entropy", "accuracy")
            # added up across processes already; sync_dist only says so to Lightning
            self.log(f"val/{name}", value, prog_bar=shown, sync_dist=True)

    def nonfinite(self, batch: Batch, what: str) -> Exception:
        """What is raised for NaN or infinity: it names the module where they begin."""
        name = first_nonfinite_module(
            self.model, lambda: self.model(batch["input_ids"], batch["attention_mask"])
        )
        return FloatingPointError(f"{what}; the first module to make one: {name}")


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
