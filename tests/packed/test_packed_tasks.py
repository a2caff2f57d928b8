"""Sentence encoders and classifiers in real bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pack
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.errors import InputError
from bitmaps.packed.format import is_packed, load
from bitmaps.packed.model import to_float
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Component, Scale, Storage, Task

LABELS = ("no", "maybe", "yes")
BODY = (Component.embeddings, Component.attention, Component.ffnn)


def of_task(tiny: Bert, **changes: Any) -> Bert:
    config = replace(tiny.config, **changes)
    return Bert(config).randomize(torch.Generator().manual_seed(3)).eval()


def binarized(model: Bert) -> Bert:
    """All its matrices in {-1,1} times a scale a row."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                scale = parameter.abs().mean(1, keepdim=True)
                parameter.copy_(torch.where(parameter >= 0, scale, -scale))
                assert len(parameter[0].unique()) <= 2, name
    return model


ENCODERS = [Pooling(mode, normalize, 12) for mode in MODES for normalize in (True, False)]
TASKS: list[dict[str, Any]] = [
    *({"task": Task.sentence_embedding, "pooling": pooling} for pooling in ENCODERS),
    *({"task": Task.classification, "labels": labels} for labels in (LABELS, ())),
]


@pytest.mark.parametrize("changes", TASKS)
@pytest.mark.parametrize("bits", [True, False])
def test_a_packed_model_of_a_task_computes_what_its_floats_do(
    changes: dict[str, Any], bits: bool, tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    model = of_task(tiny, **changes)
    model = binarized(model) if bits else model
    mask = torch.ones_like(ids)
    mask[-1, 4:] = 0
    types = (torch.arange(7) > 3).long().expand_as(ids)
    folder = pack(model)
    packed = load(folder, act="f32")
    for name, value in changes.items():
        assert getattr(packed.config, name) == value
    with torch.no_grad():
        for inputs in ((ids,), (ids, mask), (ids, mask, types)):
            torch.testing.assert_close(packed(*inputs), model(*inputs), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(to_float(packed)(ids, mask), model(ids, mask), atol=1e-5, rtol=0)
    assert is_packed(folder)
    file = (folder / "model.safetensors").stat().st_size
    floats = 4 * sum(parameter.numel() for parameter in model.parameters())
    assert (file < floats) or not bits


@pytest.mark.parametrize("changes", TASKS)
def test_rounded_inputs_change_little(
    changes: dict[str, Any], tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    model = binarized(of_task(tiny, **changes))
    packed = load(pack(model), act=None)
    cosine = torch.cosine_similarity(packed(ids).flatten(), model(ids).flatten(), dim=0)
    assert cosine > 0.99


def test_the_head_of_a_classifier_can_be_rounded(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    model = of_task(tiny, task=Task.classification, labels=LABELS)
    packed = load(pack(model, head=Storage.int8), act="f32")
    torch.testing.assert_close(packed(ids), model(ids), atol=0.05, rtol=0.05)
    assert not torch.equal(packed(ids), model(ids))


def test_naive_binarization_of_a_classifier_reaches_its_head(
    tiny: Bert, ids: Tensor, pack: Pack
) -> None:
    model = of_task(tiny, task=Task.classification, labels=LABELS)
    binarize_naive(model, (*BODY, Component.head), (-1, 1), Scale.row)
    assert len(model.get_parameter("head.pooler.weight")[0].abs().unique()) == 1
    packed = load(pack(model), act="f32")
    torch.testing.assert_close(packed(ids), model(ids), atol=1e-4, rtol=1e-4)


def change(folder: Path, file: str, **changes: Any) -> None:
    values = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps(values | changes), encoding="utf-8")


def said(folder: Path, **changes: Any) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["bitmaps"]
    return found | changes


@pytest.mark.parametrize("changes", [{}, TASKS[0], TASKS[-2]])
@pytest.mark.parametrize("task", Task)
def test_another_task_is_refused(
    changes: dict[str, Any], task: Task, tiny: Bert, pack: Pack
) -> None:
    folder = pack(of_task(tiny, **changes))
    change(folder, "config.json", bitmaps=said(folder, task=task))
    if task is changes.get("task", Task.masked_lm):
        load(folder, act=None)
        return
    with pytest.raises(InputError, match=r"does not belong to these weights: (task|pooling) is"):
        load(folder, act=None)


@pytest.mark.parametrize("other", [Pooling("max", True, 12), Pooling("mean", False, 12)])
def test_another_pooling_is_refused(other: Pooling, tiny: Bert, pack: Pack, tmp_path: Path) -> None:
    folder = pack(of_task(tiny, task=Task.sentence_embedding, pooling=Pooling("mean", True, 12)))
    (tmp_path / "other").mkdir()
    other.write(tmp_path / "other", 16, 12)
    for path in (tmp_path / "other").rglob("*.json"):
        target = folder / path.relative_to(tmp_path / "other")
        target.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="does not belong to these weights: pooling is"):
        load(folder, act=None)


def test_an_encoder_of_no_set_length_is_packed(tiny: Bert, ids: Tensor, pack: Pack) -> None:
    """The files of its folder give the number of positions as its length."""
    model = binarized(of_task(tiny, task=Task.sentence_embedding, pooling=Pooling()))
    packed = load(pack(model), act="f32")
    torch.testing.assert_close(packed(ids), model(ids), atol=1e-5, rtol=0)


def test_classes_that_the_head_does_not_have_are_refused(tiny: Bert, pack: Pack) -> None:
    folder = pack(of_task(tiny, task=Task.classification, labels=LABELS))
    change(folder, "config.json", id2label={"0": "no", "1": "yes"})
    with pytest.raises(InputError, match=r"classifier\."):
        load(folder, act=None)
