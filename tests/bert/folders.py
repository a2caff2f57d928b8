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
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
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


def write_roberta(folder: Path, sentences: list[str]) -> None:
    """A RoBERTa as on the Hub: random weights, byte-level pieces, and no ``tokenizer_class``."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet),
    )
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=66, type_vocab_size=1,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
