"""Folders of models, read and changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitmaps.bert import Bert

LAYER = "bert.encoder.layer.1.intermediate.dense.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
DECODER = "cls.predictions.decoder.weight"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )


def reconfigure(folder: Path, **changes: Any) -> None:
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | changes), encoding="utf-8")


def same(logits: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def opened_by_transformers(folder: Path, ids: Tensor) -> Tensor:
    """Its logits, of a folder in which it misses nothing."""
    model, report = transformers.BertForMaskedLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    return model.eval()(ids).logits


def theirs(tiny: Bert, **changes: Any) -> transformers.BertForMaskedLM:
    torch.manual_seed(4)
    model = transformers.BertForMaskedLM(
        transformers.BertConfig(**(tiny.config.to_dict() | changes))
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.3)
    return model.eval()


def write_adapter(folder: Path, tensors: dict[str, Tensor], base: Path) -> Path:
    path = folder / "adapter.safetensors"
    save_file(tensors, path, {"base_sha256": hashlib.sha256(base.read_bytes()).hexdigest()})
    return path
