"""Tuning of calibrated models."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scoring.examples import SIZE, TINY
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.bert.pooling import Pooling
from bitmaps.data.masking import Vocabulary
from bitmaps.quantize.calibrate import Tokens, calibrated
from bitmaps.quantize.convert import matrices, to_float
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization
from bitmaps.training.losses import distillation
from bitmaps.training.tune import masked_again, predictions, tune
from bitmaps.vocabulary import Component, Scale, Storage, Task, ValueSet

MASK = 4
TOY = Vocabulary(mask=MASK, pad=0, unknown=1, untouched=(2, 3), replacements=np.arange(5, SIZE))
LAYERS = (Component.attention, Component.ffnn)


def model_for(task: Task) -> Bert:
    labels = ("no", "maybe", "yes") if task is Task.classification else None
    pooling = Pooling("mean", normalize=True) if task is Task.sentence_embedding else None
    config = replace(TINY, task=task, labels=labels, pooling=pooling)
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


def batches_of(count: int = 3, rows: int = 16) -> list[Tokens]:
    generator = torch.Generator().manual_seed(1)
    found: list[Tokens] = []
    for _ in range(count):
        ids = torch.randint(5, SIZE, (rows, 12), generator=generator)
        attended = torch.arange(12) < torch.randint(6, 13, (rows, 1), generator=generator)
        types = torch.randint(2, ids.shape, generator=generator)
        found.append(
            {
                "input_ids": ids.where(attended, 0),
                "attention_mask": attended,
                "token_type_ids": types,
            }
        )
    return found


def distance(model: Bert, original: Bert, batches: Sequence[Tokens]) -> float:
    """KL(original || model), with masks that tuning does not draw."""
    with torch.no_grad():
        read = [masked_again(b, model, TOY, 1000 + i) for i, b in enumerate(batches)]
        return sum(
            distillation(predictions(model, *one), predictions(original, *one)).item()
            for one in read
        )


def state_of(model: Bert) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("values", list(ValueSet))
@pytest.mark.parametrize("task", list(Task))
def test_the_whole_model_comes_nearer_to_the_original(task: Task, values: ValueSet) -> None:
    original, batches = model_for(task), batches_of()
    model = calibrated(original, LAYERS, Quantization(values, Scale.rank_one), batches)
    before, kept = distance(model, original, batches), state_of(original)
    bits = [m.effective_weight > 0 for m in model.modules() if isinstance(m, QuantizedLinear)]
    words = model.embeddings.word.weight.clone()
    tune(model, original, batches, TOY)
    assert distance(model, original, batches) < 0.9 * before
    assert torch.equal(model.embeddings.word.weight, words)  # which stays in floats
    now = [m.effective_weight > 0 for m in model.modules() if isinstance(m, QuantizedLinear)]
    flipped = sum((a != b).sum().item() for a, b in zip(bits, now, strict=True))
    assert 0 < flipped < 0.2 * sum(one.numel() for one in bits)
    for name, tensor in original.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    for name, weight in matrices(to_float(model), LAYERS).items():
        assert torch.isfinite(weight).all(), name


def test_it_comes_out_the_same_again_and_leaves_modes_alone() -> None:
    original, batches = model_for(Task.masked_lm), batches_of()
    first = calibrated(original, LAYERS, Quantization(), batches)
    second = copy.deepcopy(first).train()
    tune(first, original, batches, TOY)
    with torch.no_grad():  # as a caller may
        tune(second, original.train(), batches, TOY)
    assert second.training
    assert original.training
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_word_table_in_one_bit_learns_too() -> None:
    original, batches = model_for(Task.masked_lm), batches_of()
    model = calibrated(original, tuple(Component), Quantization(), batches)
    before = model.embeddings.word.weight.clone()
    tune(model, original, batches, TOY)
    assert not torch.equal(model.embeddings.word.weight, before)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert model.embeddings.word.pack().storage is Storage.bit  # type: ignore[operator]


def test_texts_without_anything_to_mask_or_to_compare_change_nothing() -> None:
    """A sentence alone is like no other, and [CLS] [SEP] has no word."""
    for task in (Task.masked_lm, Task.sentence_embedding):
        original = model_for(task)
        model = calibrated(original, LAYERS, Quantization(), batches_of())
        before = state_of(model)
        ids = torch.tensor([[2, 3]])
        tune(model, original, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], TOY)
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], msg=name)
