"""A tiny model and sentences to train and score it on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from bitmaps.bert import Bert, BertConfig
from bitmaps.data.batches import Batch
from bitmaps.data.masking import Vocabulary

of_lightning = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*",  # Lightning 2.6 on torch 2.13
    "ignore:.*does not have many workers.*",
)

Array = NDArray[np.float64]

MASK, UNKNOWN, SIZE, HEADS = 4, 1, 60, 2
TINY = BertConfig(
    vocab_size=SIZE,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=HEADS,
    intermediate_size=32,
    max_position_embeddings=16,
    initializer_range=0.3,
)


def tiny(seed: int = 0) -> Bert:
    return Bert(TINY).randomize(torch.Generator().manual_seed(seed)).set_dropout(0.0).eval()


def batch(
    seed: int, rows: int = 8, length: int = 10, first: int = 0, unknown: str = "one"
) -> Batch:
    """Sentences of one repeated piece, which a model can learn to fill in; the last is half padding. None, one or all of the
    targets are unknown; sentences are numbered from ``first``."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (rows, 1), generator=generator).repeat(1, length)
    attended = torch.ones_like(ids, dtype=torch.bool)
    attended[-1, length // 2 :] = False
    chosen = (torch.rand(ids.shape, generator=generator) < 0.3) & attended
    chosen[:, 1] = True
    labels = torch.where(chosen, ids, -100)
    if unknown == "one":
        labels[0, 1] = UNKNOWN
    if unknown == "all":
        labels[chosen] = UNKNOWN
    return {
        "sentences": torch.arange(first, first + rows),
        "input_ids": torch.where(chosen, MASK, ids).where(attended, 0),
        "attention_mask": attended,
        "labels": labels,
    }


class Sentences(LightningDataModule):
    """Eleven sentences to score."""

    vocabulary = Vocabulary(
        mask=MASK, pad=0, unknown=UNKNOWN, untouched=(2, 3), replacements=np.arange(5, SIZE)
    )

    def __init__(self, *unknown: str) -> None:
        super().__init__()
        first, second = unknown or ("one", "one")
        self.scored = [batch(100, unknown=first), batch(101, rows=3, first=8, unknown=second)]

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader([batch(seed) for seed in range(12)] * 20, batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.scored, batch_size=None)  # type: ignore[arg-type]

    test_dataloader = val_dataloader


def trainer(**settings: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", num_sanity_val_steps=0, max_epochs=-1, **quiet | settings)


def array(x: Tensor) -> Array:
    result: Array = x.detach().double().numpy()
    return result


def softmax(logits: Array) -> Array:
    powers: Array = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def poison(model: Bert, name: str) -> Bert:
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = torch.nan
    return model
