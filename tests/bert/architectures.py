"""Models of ``transformers`` of every architecture, with random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from bitmaps.bert.families import FAMILIES
from bitmaps.vocabulary import Task

OTHERS = [name for name in FAMILIES if name != "bert"]
AUTO = {
    Task.masked_lm: transformers.AutoModelForMaskedLM,
    Task.sentence_embedding: transformers.AutoModel,
    Task.classification: transformers.AutoModelForSequenceClassification,
}
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 12, "hidden_act": "gelu",
}  # fmt: skip


def own_config(name: str, **sizes: Any) -> transformers.PretrainedConfig:
    """The configuration of ``transformers`` for sizes by a BERT's names, positions without those
    for padding."""
    keys = FAMILIES[name].keys
    values = {keys.get(key, key): value for key, value in (SIZES | sizes).items()}
    config = transformers.AutoConfig.for_model(name, **values)
    config.max_position_embeddings += FAMILIES[name].first_position(config.pad_token_id)
    if hasattr(config, "embedding_size"):
        config.embedding_size = config.hidden_size
    return config


def own_model(name: str, task: Task, seed: int = 0, **sizes: Any) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = AUTO[task].from_config(own_config(name, **sizes), attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.3)
    return model.eval()


def inputs(config: transformers.PretrainedConfig, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Three rows, the last half padding, which no other token is."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(config.vocab_size - 1, (3, length), generator=generator)
    ids = draw + (draw >= config.pad_token_id)
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    return {"input_ids": ids.masked_fill(mask == 0, config.pad_token_id), "attention_mask": mask}
