"""The LightningModule: masked-language modelling, with distillation from the unbinarized model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MetricCollection, SumMetric

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Layer
from bitmaps.data.module import Batch
from bitmaps.metrics import IGNORE, MaskedAccuracy, MaskedCrossEntropy, MaskedMRR, SentenceSums
from bitmaps.quantize.rounding import InputQuantizer
from bitmaps.scoring.predictions import Predicted, Predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LossWeights:
    """How much each part of the loss counts. All but the first distil from a teacher, which is not run where they all weigh 0.

    Attributes:
        cross_entropy: of the true tokens.
        logits: KL(teacher || student) of the predictions; its gradient is that of a soft cross entropy.
        hidden: mean squared error of the hidden states, averaged over the embeddings' output and every layer's.
        directions: the same between hidden states that are scaled to unit length (Xu et al. 2024, OneBit, equation 12).
        attention: mean squared error of the attention scores q k^T / sqrt(d) (Bai et al. 2021, BinaryBERT, section 3.2).
        relations: squared distance between the directions of q q^T, k k^T and v v^T (Qin et al. 2022, BiBERT, section 3.3).
    """

    cross_entropy: float = 1.0
    logits: float = 0.0
    hidden: float = 0.0
    directions: float = 0.0
    attention: float = 0.0
    relations: float = 0.0

    @property
    def distill(self) -> bool:
        return any(weight for name, weight in asdict(self).items() if name != "cross_entropy")


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) in nats, summed over the vocabulary and averaged over the n masked tokens; (n, v), (n, v) -> ().
    0 where nothing is masked."""
    teacher_log = F.log_softmax(teacher.float(), -1)
    total = F.kl_div(
        F.log_softmax(student.float(), -1), teacher_log, reduction="sum", log_target=True
    )
    return total / max(1, len(student))


def hidden_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Mean squared error between hidden states (batch, length, hidden), over all states and the tokens that ``kept`` (batch,
    length) marks."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([F.mse_loss(s[kept].float(), t[kept].float()) for s, t in pairs]).mean()


def direction_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Squared distance of hidden states as unit vectors, 2 - 2 cos, averaged over tokens and states; shapes as above."""
    pairs = zip(student, teacher, strict=True)
    cosines = [F.cosine_similarity(s[kept].float(), t[kept].float(), dim=-1) for s, t in pairs]
    return torch.stack([2 - 2 * cosine for cosine in cosines]).mean()


def attention_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """Mean squared error of the attention scores between tokens of one sentence.

    Both lists hold the queries, keys and values of each layer in turn: (batch, heads, length, d)."""
    pairs = (kept[:, None, :, None] & kept[:, None, None, :]).expand(
        -1, student[0].shape[1], -1, -1
    )
    errors = []
    with torch.autocast(kept.device.type, enabled=False):
        for layer in range(0, len(student), 3):
            ours, theirs = (
                x[layer].float() @ x[layer + 1].float().mT / math.sqrt(x[layer].shape[-1])
                for x in (student, teacher)
            )
            errors.append(F.mse_loss(ours[pairs], theirs[pairs]))
    return torch.stack(errors).mean()


def relation_error(student: list[Tensor], teacher: list[Tensor], kept: Tensor) -> Tensor:
    """With P = x x^T / ||x x^T|| for the x (length, d) of a head, the squared distance of student and teacher, averaged over
    sentences, heads, layers, and queries, keys and values. Lists as above; padding is left out."""
    errors = []
    with torch.autocast(kept.device.type, enabled=False):
        for pair in zip(student, teacher, strict=True):
            ours, theirs = (x.float() * kept[:, None, :, None] for x in pair)
            ours, theirs = (F.normalize((x @ x.mT).flatten(-2), dim=-1) for x in (ours, theirs))
            errors.append((ours - theirs).square().sum(-1).mean())
    return torch.stack(errors).mean()


@contextmanager
def projections(model: Bert, wanted: bool) -> Iterator[list[Tensor]]:
    """The queries, keys and values of each layer in turn, split into heads, while the model runs; nothing unless ``wanted``."""
    caught: list[Tensor] = []
    handles = []
    for layer in cast("list[Layer]", list(model.encoder.layers)) if wanted else ():
        heads = layer.attention.split_heads
        for linear in (layer.attention.query, layer.attention.key, layer.attention.value):
            handles.append(
                linear.register_forward_hook(
                    lambda _m, _i, out, heads=heads: caught.append(heads(out))
                )
            )
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


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


class OneBitInputs(Callback):
    """Brings one-bit inputs in step by step.

    Their share rises from 0 to 1 over the first half of training. Validation and the trained model
    have all of it.

    Args:
        inputs: the input quantizers of one bit.
    """

    def __init__(self, inputs: list[InputQuantizer]) -> None:
        self.inputs = inputs

    def bring_in(self, share: float) -> None:
        for quantizer in self.inputs:
            quantizer.share = torch.full_like(quantizer.share, share)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        self.bring_in(min(1.0, 2 * trainer.global_step / trainer.max_steps))

    def on_validation_start(self, *args: Any) -> None:
        self.bring_in(1.0)

    def on_train_end(self, *args: Any) -> None:
        self.bring_in(1.0)


class MaskedLanguageModel(LightningModule):
    """Trains and scores a ``Bert``.

    Args:
        model: the student, or just a model to be scored.
        teacher: the unbinarized model; it is not a submodule, so it is neither trained, nor saved, nor put in training mode.
        loss: what the parts of the loss weigh.
        optimizer: takes the parameters.
        schedule: takes the optimizer; stepped once a training step. ``None``: a constant rate.
        more_masked: the share of the pieces that are no targets which are masked all the same, at the first step and at the
            last; in between it goes in a straight line. What the teacher predicts there is more to distil from each sentence, but
            the sentences are less like those that are scored. Without a teacher nothing is.
        seed: of ``more_masked``.
        sentences: how many there are, to leave what each came to (``sentence_sums``) and what is predicted for each masked token
            (``predicted``) when the model is scored; or 0.
    """

    def __init__(
        self,
        model: Bert,
        teacher: Bert | None = None,
        loss: LossWeights | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        schedule: Callable[[Optimizer], LRScheduler] | None = None,
        more_masked: tuple[float, float] = (0.0, 0.0),
        seed: int = 0,
        sentences: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = loss or LossWeights()
        if self.loss.distill and teacher is None:
            raise ValueError("distillation needs a teacher")
        self._teacher = (
            (teacher.eval().requires_grad_(False),)
            if teacher is not None and self.loss.distill
            else ()
        )
        self.more_masked, self.seed = more_masked if self._teacher else (0.0, 0.0), seed
        self.optimizer, self.schedule = optimizer, schedule
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

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise ValueError("a model that was given no optimizer can only be scored")
        optimizer = self.optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"},
        }

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Finds the checkpoints of a run that was moved where they are now. Lightning, which goes by their paths, would forget how
        good the best one was, and overwrite it with the next."""
        for callback in self.trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if not isinstance(callback, ModelCheckpoint) or state is None:
                continue
            paths, best = (
                ("best_model_path", "kth_best_model_path", "last_model_path"),
                state["best_k_models"],
            )
            old, new = str(state["dirpath"]), str(callback.dirpath)
            here = {
                path: path.replace(old, new, 1)
                for path in (*(state[name] for name in paths), *best)
            }
            if Path(here[state["best_model_path"]]).is_file():
                state |= {name: here[state[name]] for name in paths}
                state |= {
                    "dirpath": new,
                    "best_k_models": {here[path]: score for path, score in best.items()},
                }

    def training_step(self, batch: Batch, _: int) -> Tensor:
        targets, tokens, loss = batch["labels"] != IGNORE, batch["attention_mask"].bool(), self.loss
        related = bool(loss.attention or loss.relations)
        ids, kept = self.mask_more(batch["input_ids"], targets)
        with projections(self.model, related) as ours:
            states = self.model.encode(ids, batch["attention_mask"])
        logits = self.model.head(states[-1][kept])
        # a small batch may come without a single masked token: 0, not the NaN of a mean over nothing
        of_targets = logits[targets[kept]].float()
        cross_entropy = F.cross_entropy(
            of_targets, batch["labels"][targets], reduction="sum"
        ) / max(1, len(of_targets))
        parts = {"cross_entropy": cross_entropy}
        for teacher in self._teacher:
            with torch.no_grad(), projections(teacher, related) as theirs:
                teacher_states = teacher.encode(ids, batch["attention_mask"])
                teacher_logits = teacher.head(teacher_states[-1][kept])
            if loss.logits:
                parts["logits"] = distillation(logits, teacher_logits)
            # the distance of the hidden states is logged whether it counts or not
            parts["hidden"] = hidden_error(states, teacher_states, tokens)
            if loss.directions:
                parts["directions"] = direction_error(states, teacher_states, tokens)
            if loss.attention:
                parts["attention"] = attention_error(ours, theirs, tokens)
            if loss.relations:
                parts["relations"] = relation_error(ours, theirs, tokens)
        total = torch.stack([getattr(loss, name) * part for name, part in parts.items()]).sum()
        if not torch.isfinite(total):
            raise self.nonfinite(
                batch, f"at step {self.global_step} a loss that is NaN or infinite"
            )
        self.log_dict({f"train/{name}": part.detach() for name, part in parts.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def mask_more(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with ``more_masked`` of its other pieces masked, special ones apart, and which are masked or targets now. The
        draw depends on the seed and the batch's number alone, so that a run that is resumed makes the same one."""
        if not any(self.more_masked):
            return input_ids, targets
        first, last = self.more_masked
        share = first + (last - first) * self.trainer.global_step / self.trainer.max_steps
        vocabulary = self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]
        number = self.trainer.fit_loop.total_batch_idx
        seed = np.random.SeedSequence([self.seed, number, self.global_rank]).generate_state(1)[0]
        draw = torch.rand(input_ids.shape, generator=torch.Generator().manual_seed(int(seed)))
        special = torch.tensor(
            [vocabulary.pad, vocabulary.mask, *vocabulary.untouched], device=input_ids.device
        )
        chosen = (draw.to(input_ids.device) < share) & ~targets & ~torch.isin(input_ids, special)
        return input_ids.masked_fill(chosen, vocabulary.mask), targets | chosen

    def validation_step(self, batch: Batch, _: int) -> None:
        kept = batch["labels"] != IGNORE
        logits, labels = (
            self.model(batch["input_ids"], batch["attention_mask"], positions=kept),
            batch["labels"][kept],
        )
        unknown = labels == self.trainer.datamodule.vocabulary.unknown  # type: ignore[attr-defined]
        try:
            self.scores.update(logits, labels)
        except FloatingPointError as error:
            raise self.nonfinite(batch, str(error)) from error
        self.unknown_scores.update(logits[unknown], labels[unknown])
        self.masked_tokens.update(labels.numel())
        self.unknown_tokens.update(int(unknown.sum()))
        if self.by_sentence is not None:
            self.by_sentence.update(
                logits, labels, batch["sentences"][:, None].expand_as(kept)[kept]
            )
        if self.predictions is not None:
            self.predictions.update(logits, labels, batch["input_ids"][kept])

    def on_validation_epoch_end(self) -> None:
        """Leaves ``results``, at full precision: the scores and, prefixed ``known_``, those without [UNK] targets."""
        count, unknown = self.masked_tokens.compute().item(), self.unknown_tokens.compute().item()
        self.results = {name: value.item() for name, value in self.scores.compute().items()}
        if unknown < count:
            of_unknown = {
                n: v.item() if unknown else 0.0 for n, v in self.unknown_scores.compute().items()
            }
            self.results |= {
                f"known_{name}": (self.results[name] * count - of_unknown[name] * unknown)
                / (count - unknown)
                for name in of_unknown
            }
        self.results |= {"masked_tokens": count, "known_tokens": count - unknown}
        if self.by_sentence is not None:
            self.sentence_sums = self.by_sentence.compute().cpu()
            self.by_sentence.reset()
        if self.predictions is not None:
            self.predicted = self.predictions.compute()
            self.predictions.reset()
        for metric in (self.scores, self.unknown_scores, self.masked_tokens, self.unknown_tokens):
            metric.reset()
        if self.trainer.state.fn is not TrainerFn.FITTING:
            return
        scores = ", ".join(f"{name} {self.results[str(name)]:.4f}" for name in self.scores)
        rank_zero_only(log.info)("step %d: validation %s", self.global_step, scores)
        for (
            name,
            value,
        ) in (
            self.results.items()
        ):  # already added up across processes; sync_dist only says so to Lightning
            self.log(
                f"val/{name}", value, prog_bar=name in ("cross_entropy", "accuracy"), sync_dist=True
            )

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def nonfinite(self, batch: Batch, what: str) -> FloatingPointError:
        name = first_nonfinite_module(
            self.model, lambda: self.model(batch["input_ids"], batch["attention_mask"])
        )
        return FloatingPointError(f"{what}; the first module to make one: {name}")
