"""The LightningModule: masked-language modelling, with distillation from the unbinarized model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection, SumMetric

from bitmaps.bert import Bert
from bitmaps.data.module import Batch
from bitmaps.metrics import IGNORE, MaskedAccuracy, MaskedCrossEntropy, MaskedMRR

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts; where both parts that distil weigh 0, no teacher is run.

    Attributes:
        cross_entropy: of the true tokens.
        logits: KL(teacher || student) of the predictions.
        hidden: mean squared error of the hidden states, averaged over the embeddings' output and every layer's.
    """

    cross_entropy: float = 1.0
    logits: float = 1.0
    hidden: float = 1.0

    @property
    def distill(self) -> bool:
        return bool(self.logits or self.hidden)


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, summed over the vocabulary and averaged over the n masked tokens; (n, v), (n, v) -> ().
    0 where nothing is masked."""
    teacher_log = F.log_softmax(teacher.float(), -1)
    total = F.kl_div(F.log_softmax(student.float(), -1), teacher_log, reduction="sum", log_target=True)
    return total / max(1, len(student))


def hidden_error(student: list[Tensor], teacher: list[Tensor], attention_mask: Tensor) -> Tensor:
    """Mean squared error between hidden states (batch, length, hidden), over tokens that are not padding and all states."""
    kept = attention_mask.bool()
    return torch.stack(
        [F.mse_loss(s[kept].float(), t[kept].float()) for s, t in zip(student, teacher, strict=True)]
    ).mean()


def first_nonfinite_module(model: nn.Module, run: Callable[[], object]) -> str:
    """The name of the first module, in order of execution, whose output has a NaN or infinity, while ``run`` runs."""
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


class MaskedLanguageModel(LightningModule):
    """Trains and scores a ``Bert``.

    Args:
        model: the student, or just a model to be scored.
        teacher: the unbinarized model; it is not a submodule, so it is neither trained, nor saved, nor put in training mode.
        loss: what the parts of the loss weigh.
        optimizer: takes the parameters.
        schedule: takes the optimizer; stepped once a training step. ``None``: a constant rate.
    """

    def __init__(
        self,
        model: Bert,
        teacher: Bert | None = None,
        loss: LossWeights | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or LossWeights(logits=0, hidden=0)
        if self.loss.distill and teacher is None:
            raise ValueError("distillation needs a teacher")
        self._teacher = (teacher.eval().requires_grad_(False),) if teacher is not None and self.loss.distill else ()
        self.optimizer, self.schedule = optimizer, schedule
        self.scores = MetricCollection(
            {"cross_entropy": MaskedCrossEntropy(), "accuracy": MaskedAccuracy(), "mrr": MaskedMRR()},
            compute_groups=False,
        )
        self.known_scores = self.scores.clone()  # without the targets that the tokenizer does not know
        self.masked_tokens, self.known_tokens = SumMetric(), SumMetric()
        self.results: dict[str, float] = {}

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise ValueError("a model that was given no optimizer can only be scored")
        optimizer = self.optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        kept = batch["labels"] != IGNORE
        states = self.model.encode(batch["input_ids"], batch["attention_mask"])
        logits = self.model.head(states[-1][kept])
        # a small batch may come without a single masked token: 0, not the NaN of a mean over nothing
        cross_entropy = F.cross_entropy(logits.float(), batch["labels"][kept], reduction="sum") / max(1, len(logits))
        parts = {"cross_entropy": cross_entropy}
        for teacher in self._teacher:
            with torch.no_grad():
                teacher_states = teacher.encode(batch["input_ids"], batch["attention_mask"])
                teacher_logits = teacher.head(teacher_states[-1][kept])
            if self.loss.logits:
                parts["logits"] = distillation(logits, teacher_logits)
            if self.loss.hidden:
                parts["hidden"] = hidden_error(states, teacher_states, batch["attention_mask"])
        loss = torch.stack([getattr(self.loss, name) * part for name, part in parts.items()]).sum()
        if not torch.isfinite(loss):
            raise self.nonfinite(batch, f"at step {self.global_step} a loss that is NaN or infinite")
        self.log_dict({f"train/{name}": part.detach() for name, part in parts.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        kept = batch["labels"] != IGNORE
        logits, labels = self.model(batch["input_ids"], batch["attention_mask"], positions=kept), batch["labels"][kept]
        known = labels != self.trainer.datamodule.vocabulary.unknown  # type: ignore[attr-defined]
        try:
            self.scores.update(logits, labels)
        except FloatingPointError as error:
            raise self.nonfinite(batch, str(error)) from error
        self.known_scores.update(logits[known], labels[known])
        self.masked_tokens.update(labels.numel())
        self.known_tokens.update(int(known.sum()))

    def on_validation_epoch_end(self) -> None:
        """Leaves ``results``, at full precision: the scores and, prefixed ``known_``, those without [UNK] targets."""
        self.results = {name: value.item() for name, value in self.scores.compute().items()}
        self.results |= {f"known_{name}": value.item() for name, value in self.known_scores.compute().items()}
        self.results |= {
            "masked_tokens": self.masked_tokens.compute().item(),
            "known_tokens": self.known_tokens.compute().item(),
        }
        for metric in (self.scores, self.known_scores, self.masked_tokens, self.known_tokens):
            metric.reset()
        if self.trainer.state.fn is not TrainerFn.FITTING:
            return
        scores = ", ".join(f"{name} {self.results[str(name)]:.4f}" for name in self.scores)
        rank_zero_only(log.info)("step %d: validation %s", self.global_step, scores)
        for (
            name,
            value,
        ) in self.results.items():  # already added up across processes; sync_dist only says so to Lightning
            self.log(f"val/{name}", value, prog_bar=name in ("cross_entropy", "accuracy"), sync_dist=True)

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def nonfinite(self, batch: Batch, what: str) -> FloatingPointError:
        name = first_nonfinite_module(self.model, lambda: self.model(batch["input_ids"], batch["attention_mask"]))
        return FloatingPointError(f"{what}; the first module to make one: {name}")
