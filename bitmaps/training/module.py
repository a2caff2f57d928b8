"""Training for each task, with distillation from the unbinarized model."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bitmaps.bert import Bert
from bitmaps.data.batches import Batch
from bitmaps.data.masking import Vocabulary, mask_more
from bitmaps.errors import InputError
from bitmaps.metrics import IGNORE
from bitmaps.scoring.classes import ScoredClasses, classification_error
from bitmaps.scoring.module import Scored, ScoredModel
from bitmaps.scoring.vectors import ScoredVectors
from bitmaps.training.losses import Forward, LossWeights, distances, run, run_classes, run_vectors
from bitmaps.training.sharding import shard


class Trained(Scored):
    """Trains a ``Bert``, and scores it as the class beside it does.

    Args:
        model: the student.
        teacher: the unbinarized model. It is no submodule, so it is neither trained, nor saved, nor
            put in training mode.
        loss: the weights of the parts of the loss.
        optimizer: takes the parameters.
        schedule: takes the optimizer, and is stepped once a training step; ``None`` is a constant
            rate.
        more_masked: fraction of the non-target tokens that is masked too, at the first step and at
            the last, with a straight line between. The student learns what the teacher predicts
            there. It is 0 without a teacher.
        seed: of ``more_masked`` and dropout.
        scored: what the scoring class takes besides the model.
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
        **scored: Any,
    ) -> None:
        super().__init__(model, **scored)
        self.loss = loss or LossWeights()
        if self.loss.distill and teacher is None:
            raise ValueError("distillation needs a teacher")
        needed = teacher is not None and self.loss.distill
        self._teacher = (teacher.eval().requires_grad_(False),) if teacher and needed else ()
        self.more_masked, self.seed = more_masked if self._teacher else (0.0, 0.0), seed
        self.optimizer, self.schedule = optimizer, schedule
        self._whole: tuple[Bert, ...] = ()  # no submodule either, where the model is sharded

    @abstractmethod
    def parts(self, batch: Batch) -> dict[str, Tensor]:
        """The parts of the loss, by the names of their weights."""

    def compared(
        self, forward: Callable[[Bert], Forward], mask: Tensor
    ) -> tuple[Forward, dict[str, Tensor]]:
        """What the student makes of a batch, and its distances from what the teacher makes of it.

        Args:
            forward: runs a model on the batch.
            mask: (batch, length), true at tokens.
        """
        student, parts = forward(self.model), {}
        for model in self._teacher:
            with torch.no_grad():
                teacher = forward(model)
            parts = distances(student, teacher, mask.bool(), self.loss)
        return student, parts

    def configure_model(self) -> None:
        """Shard the model, if the strategy trains parts of it. The whole one is kept aside."""
        mesh = self.device_mesh
        if mesh is not None and not self._whole:
            self._whole = (copy.deepcopy(self.model),)
            shard(self.model, mesh["data_parallel"])

    def gather(self, state: dict[str, Tensor]) -> Bert:
        """The model with the weights of a checkpoint, whole and on the CPU."""
        for model in self._whole:
            self.model = model
        self.load_state_dict(state)
        return self.model.cpu()

    def configure_optimizers(self) -> Any:
        if self.optimizer is None:
            raise ValueError("a model that was given no optimizer can only be scored")
        optimizer = self.optimizer(self.model.parameters())
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_fit_start(self) -> None:
        for teacher in self._teacher:
            teacher.to(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for callback in self.trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                move_checkpoints(state, str(callback.dirpath))

    def draw(self) -> tuple[int, int, int]:
        """What every draw of a training step depends on, and nothing else: the seed, the number of
        the batch and the process. A resumed run makes the same draws."""
        return self.seed, self.trainer.fit_loop.total_batch_idx, self.global_rank

    def on_train_batch_start(self, *args: Any) -> None:
        # for dropout, and for whatever else draws in this step
        torch.manual_seed(int(np.random.SeedSequence(self.draw()).generate_state(2)[1]))

    def training_step(self, batch: Batch, _: int) -> Tensor:
        parts = self.parts(batch)
        weighted = [getattr(self.loss, name) * part for name, part in parts.items()]
        loss = torch.stack(weighted).sum()
        if not torch.isfinite(loss):
            raise self.nonfinite(batch, "a loss that is NaN or infinite")
        self.log_dict({f"train/{name}": part.detach() for name, part in parts.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def nonfinite(self, batch: Batch, what: str) -> Exception:
        """A training that diverges is a mistake in its settings."""
        return InputError(
            f"training diverged: at step {self.global_step} {super().nonfinite(batch, what)}; "
            "lower optimizer.lr, optimizer.weight_decay or the weights of loss, "
            "or set trainer.gradient_clip_val"
        )

    def mask_more(self, input_ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The batch with ``more_masked`` of its other tokens masked, and which tokens are masked or
        targets now."""
        if not any(self.more_masked):
            return input_ids, targets
        first, last = self.more_masked
        share = first + (last - first) * self.trainer.global_step / self.trainer.max_steps
        vocabulary: Vocabulary = self.trainer.datamodule.vocabulary  # type: ignore[attr-defined]
        return mask_more(input_ids, targets, share, vocabulary, self.draw())


class MaskedLanguageModel(Trained, ScoredModel):
    """Learns masked words: the true ones, and what the teacher predicts at every masked token."""

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        targets, mask = batch["labels"] != IGNORE, batch["attention_mask"]
        ids, masked = self.mask_more(batch["input_ids"], targets)
        project = self.loss.of_projections
        student, parts = self.compared(lambda model: run(model, ids, mask, masked, project), mask)
        # a small batch may have no masked token: 0, not the NaN of a mean over nothing
        of_targets = student.logits[targets[masked]].float()
        labels = batch["labels"][targets]
        total = F.cross_entropy(of_targets, labels, reduction="sum")
        return {"cross_entropy": total / max(1, len(of_targets)), **parts}


class SentenceEncoder(Trained, ScoredVectors):
    """Learns the vectors of a teacher, and which sentences of a batch are alike by them."""

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        mask, project = batch["attention_mask"], self.loss.of_projections
        ids, _ = self.mask_more(batch["input_ids"], torch.zeros_like(mask))
        _, parts = self.compared(lambda model: run_vectors(model, ids, mask, project), mask)
        return parts


class SentenceClassifier(Trained, ScoredClasses):
    """Learns labels, and the scores that a teacher gives to each class."""

    def parts(self, batch: Batch) -> dict[str, Tensor]:
        mask, types = batch["attention_mask"], batch["token_type_ids"]
        ids, _ = self.mask_more(batch["input_ids"], torch.zeros_like(mask))
        project = self.loss.of_projections
        student, parts = self.compared(
            lambda model: run_classes(model, ids, mask, types, project), mask
        )
        return {"cross_entropy": classification_error(student.logits, batch["labels"]), **parts}


def move_checkpoints(state: dict[str, Any], folder: str) -> None:
    """Point the saved state of a ``ModelCheckpoint`` to ``folder`` if its best checkpoint is there:
    the run was moved. Lightning goes by the old paths otherwise, forgets how good the best
    checkpoint was, and overwrites it with the next.

    Lightning also removes files that the state names. What lies outside ``folder`` is left out, as
    somebody else may have written the state.
    """
    paths, best = ("best_model_path", "kth_best_model_path", "last_model_path"), "best_k_models"
    old = str(state["dirpath"])
    here = {
        path: path.replace(old, folder, 1)
        for path in (*(state[name] for name in paths), *state[best])
    }
    outside = {path for path in here if not is_inside(here[path], folder)}
    state[best] = {path: score for path, score in state[best].items() if path not in outside}
    for name in ("kth_best_model_path", "last_model_path"):
        if state[name] in outside:
            state[name] = ""
    best_path = here[state["best_model_path"]]
    if not best_path or Path(best_path).is_file():
        state |= {name: here.get(state[name], "") for name in paths}
        state |= {"dirpath": folder, best: {here[p]: score for p, score in state[best].items()}}


def is_inside(path: str, folder: str) -> bool:
    """Whether a file lies in a folder, links and ``..`` followed."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())
