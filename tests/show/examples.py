"""Runs of tiny models, as a training leaves them, without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from report.examples import row
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import save
from bitmaps.command.parts import Binarize, Data, Model
from bitmaps.command.schema import Train
from bitmaps.packed import format as packed
from bitmaps.quantize.convert import binarize_naive
from bitmaps.runs.folder import RunFolder, ScoredRow
from bitmaps.vocabulary import Component, Scale, Scope, Task

LAYERS = [Component.attention, Component.ffnn]


def tiny_model(task: Task, labels: tuple[str, ...] = ()) -> Bert:
    """A model with more word pieces than the tokenizer of the tests, and 12 positions."""
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, initializer_range=0.3, task=task, labels=labels,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


def tiny_run(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: Task = Task.masked_lm,
    labels: tuple[str, ...] = (),
    bits: bool = True,
) -> Path:
    """A run that binarized the layers. Its start lies beside it, in ``<folder>-start``.

    Args:
        bits: whether it wrote a packed folder.
    """
    start, source = tiny_model(task, labels), folder.with_name(f"{folder.name}-start")
    save(start, source)
    tokenizer.save_pretrained(source)
    teacher = str(source) if task is Task.classification else None
    known = row("layers", "trained", task=task, teacher=teacher)
    run = RunFolder(folder)
    config = Train(
        task=task,
        binarize=Binarize("layers", list(LAYERS), Scope.matrices),
        scale=Scale.row,
        model=Model(name="hub", source=str(source)),
        data=Data(name="labeled" if teacher else "text", dir="elsewhere"),
    )
    run.claim(OmegaConf.to_yaml(OmegaConf.structured(config)), known.facts)
    trained = binarize_naive(start, LAYERS, config.values, Scale.row, Scope.matrices)
    trained.config = replace(trained.config, bitmaps={"components": "layers", "task": task})
    save(trained, folder / "model")
    tokenizer.save_pretrained(folder / "model")
    if bits:
        packed.save(trained, folder / "packed", tokenizer)
    run.finish([ScoredRow(known, None, None)])
    return folder
