"""A tiny sentence encoder with its tokenizer, and texts for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from conftest import WORDS
from numpy.typing import NDArray
from packed.packed_files import LAYERS
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.pooling import Pooling
from bitmaps.packed import format as folder
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Task

LENGTH = 9
CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=12,
    initializer_range=0.3,
    task=Task.sentence_embedding,
    pooling=Pooling("mean", True, LENGTH),
)


def encoder(pooling: Pooling = CONFIG.pooling, seed: int = 0) -> Bert:
    """Its layers in one bit."""
    model = Bert(replace(CONFIG, pooling=pooling))
    model.randomize(torch.Generator().manual_seed(seed))
    return binarize_naive(model, LAYERS, "pm1", "row", "matrices").eval()


def pack(model: Bert, tokenizer: PreTrainedTokenizerBase, to: Path) -> Path:
    folder.save(model, to, tokenizer)
    return to


def texts(count: int, seed: int = 0) -> list[str]:
    """Of no to twelve words; some are longer than the model takes."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(13))) for _ in range(count)]


@torch.inference_mode()
def one_by_one(model: Bert, given: list[str]) -> NDArray[np.float32]:
    """Their vectors by the model itself."""
    found = []
    for text in given:
        ids = model.tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt")
        found.append(model(ids["input_ids"], ids["attention_mask"])[0].numpy())
    return np.array(found).reshape(-1, model.config.hidden_size)
