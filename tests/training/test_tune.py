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
from bitmaps.training.tune import difference, forward, masked_again, steps_of, tune
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
    """What tuning makes smaller, with masks that it does not draw."""
    with torch.no_grad():
        task = model.config.task
        read = [masked_again(b, task, TOY, 1000 + i) for i, b in enumerate(batches)]
        return sum(
            difference(forward(model, *one), forward(original, *one), one[0]).item() for one in read
        )


def cosine(model: Bert, original: Bert, batches: Sequence[Tokens]) -> float:
    """Between the vectors of both."""
    with torch.no_grad():
        read = [(b["input_ids"], b["attention_mask"], b["token_type_ids"]) for b in batches]
        pairs = [[one.head(one.encode(*b)[-1], b[1]) for one in (model, original)] for b in read]
        return sum(torch.cosine_similarity(*pair).mean().item() for pair in pairs)


def state_of(model: Bert) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("values", list(ValueSet))
@pytest.mark.parametrize("task", list(Task))
def test_the_whole_model_comes_nearer_to_the_original(task: Task, values: ValueSet) -> None:
    original, batches = model_for(task), batches_of()
    model = calibrated(original, LAYERS, Quantization(values, Scale.rank_one), batches)
    closeness = cosine(model, original, batches) if task is Task.sentence_embedding else 0.0
    before, kept = distance(model, original, batches), state_of(original)
    bits = [m.effective_weight > 0 for m in model.modules() if isinstance(m, QuantizedLinear)]
    words = model.embeddings.word.weight.clone()
    assert list(tune(model, original, batches, TOY)) == list(range(1, steps_of(batches) + 1))
    assert distance(model, original, batches) < 0.9 * before
    if task is Task.sentence_embedding:
        assert cosine(model, original, batches) > closeness
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
    list(tune(first, original, batches, TOY))
    with torch.no_grad():  # as a caller may
        list(tune(second, original.train(), batches, TOY))
    assert second.training
    assert original.training
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_word_table_in_one_bit_learns_too() -> None:
    original, batches = model_for(Task.masked_lm), batches_of()
    model = calibrated(original, tuple(Component), Quantization(), batches)
    before = model.embeddings.word.weight.clone()
    list(tune(model, original, batches, TOY))
    assert not torch.equal(model.embeddings.word.weight, before)
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert model.embeddings.word.pack().storage is Storage.bit  # type: ignore[operator]


def alone() -> list[Tokens]:
    """[CLS] [SEP]."""
    ids = torch.tensor([[2, 3]])
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


def test_texts_without_a_word_to_mask_change_nothing() -> None:
    original = model_for(Task.masked_lm)
    model = calibrated(original, LAYERS, Quantization(), batches_of())
    before = state_of(model)
    list(tune(model, original, alone(), TOY))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], msg=name)


def test_a_sentence_that_is_alone_is_compared_with_nothing_but_its_own_vector() -> None:
    original = model_for(Task.sentence_embedding)
    model = calibrated(original, LAYERS, Quantization(), batches_of())
    list(tune(model, original, alone(), TOY))
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
