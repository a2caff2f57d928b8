"""Packed folders of every architecture and task, with the floats that they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig, checkpoint
from bitmaps.bert.families import FAMILIES
from bitmaps.packed.format import load, save
from bitmaps.packed.model import to_float
from bitmaps.quantize.convert import binarize_naive, store_words
from bitmaps.vocabulary import Act, Component, Scale, Scope, Storage, Task, ValueSet

LAYERS = (Component.attention, Component.ffnn)
LABELS = ("bad", "fair", "good")
POSITIONS = 12


@dataclass(frozen=True)
class Folders:
    """Attributes:
    packed: the packed folder.
    floats: what ``python -m bitmaps.packed to_float`` makes of it, which transformers opens.
    config: the model's.
    """

    packed: Path
    floats: Path
    config: BertConfig


def model_of(name: str, task: Task, pieces: int, **changes: Any) -> Bert:
    """A model of random weights, its layers in one bit and its words in int8."""
    family = FAMILIES[name]
    config = BertConfig(
        **{
            "vocab_size": pieces, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 48, "initializer_range": 0.3,
            "max_position_embeddings": POSITIONS, "pad_token_id": 0, "model_type": name,
            "type_vocab_size": 2 if family.token_types and not family.positions_after_padding else 1,
            "task": task, "labels": LABELS if task is Task.classification else (),
        }
        | changes
    )  # fmt: skip
    model = Bert(config).randomize(torch.Generator().manual_seed(5)).eval()
    binarize_naive(model, LAYERS, ValueSet("pm1"), Scale.rank_one, Scope.matrices)
    return store_words(model, Storage.int8)


def folders_of(
    name: str, task: Task, to: Path, tokenizer: PreTrainedTokenizerBase, **changes: Any
) -> Folders:
    """Args:
    changes: of the model's configuration (``BertConfig``)."""
    model = model_of(name, task, len(tokenizer), **changes)
    save(model, to / "packed", tokenizer)
    checkpoint.save(to_float(load(to / "packed", Act.f32)), to / "floats")
    tokenizer.save_pretrained(to / "floats")
    return Folders(to / "packed", to / "floats", model.config)


def batch_of(config: BertConfig, length: int = 7) -> dict[str, Tensor]:
    """Three rows, the last half padding, which no other token is."""
    ids = torch.randint(
        1, config.vocab_size, (3, length), generator=torch.Generator().manual_seed(2)
    )
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def files(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
