"""Whether a ``config.json`` belongs to the weights beside it, found before a model is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from bitmaps.bert import BertConfig
from bitmaps.errors import InputError
from bitmaps.vocabulary import Activations, Task

SHAPING = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
    "tie_word_embeddings",
)  # fmt: skip
LAYERS = "bert.encoder.layer."
SIZED_BY = {  # the tensor whose first dimension a size is; any storage keeps the rows of a matrix
    "vocab_size": "bert.embeddings.word_embeddings.weight",
    "hidden_size": "bert.embeddings.LayerNorm.bias",
    "intermediate_size": f"{LAYERS}0.intermediate.dense.bias",
    "max_position_embeddings": "bert.embeddings.position_embeddings.weight",
    "type_vocab_size": "bert.embeddings.token_type_embeddings.weight",
}


def shaping_keys(config: BertConfig) -> dict[str, Any]:
    """What shapes the forward pass: names of ``config.json``, the layers of one-bit inputs, int6
    activations if the model was trained with them, an architecture other than BERT, and a task
    other than masked words."""
    keys = {name: getattr(config, name) for name in SHAPING}
    keys["one_bit_inputs"] = "+".join(sorted(config.one_bit_inputs()))
    if (needed := config.needed_activations()) is Activations.int6:
        keys["activations"] = needed
    if config.model_type != "bert":
        keys["family"] = config.model_type
    if config.task is not Task.masked_lm:  # which older files do not name
        keys["task"] = config.task
    if config.task is Task.sentence_embedding:
        keys["pooling"] = {"mode": config.pooling.mode, "normalize": config.pooling.normalize}
    return keys


def canonical(keys: Mapping[str, Any]) -> str:
    """The one JSON text of these keys."""
    return json.dumps(keys, sort_keys=True, separators=(",", ":"))


def check_keys(config: BertConfig, written: Mapping[str, Any]) -> None:
    """Compare a configuration with the keys that the weights were written for.

    Raises:
        InputError: for the first key that differs.
    """
    found = shaping_keys(config)
    for name in sorted({*found, *written}):
        if found.get(name) != written.get(name):
            raise InputError(
                f"config.json does not belong to these weights: {name} is {found.get(name)!r}, "
                f"and they were written for {written.get(name)!r}"
            )


def check_sizes(config: BertConfig, tensors: Mapping[str, Tensor]) -> None:
    """Compare the sizes of a configuration with the tensors, so that they bound the model.

    Raises:
        InputError: for the first size that is another, or a tensor that is missing.
    """
    rows = {name.rsplit(".", 1)[0]: tensor for name, tensor in tensors.items()} | dict(tensors)
    sizes = {"num_hidden_layers": len({n.split(".")[3] for n in tensors if n.startswith(LAYERS)})}
    for size, name in SIZED_BY.items():
        if name not in rows:
            raise InputError(f"{name} is missing")
        sizes[size] = rows[name].shape[0] if rows[name].ndim else 0
    for size, found in sizes.items():
        if getattr(config, size) != found:
            raise InputError(f"{size} is {getattr(config, size)} in config.json, but {found} here")
