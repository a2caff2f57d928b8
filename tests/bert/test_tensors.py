"""Files, shards and names of tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bert.folders import (
    LAYER,
    WORDS,
    opened_by_transformers,
    rewrite,
    same,
    theirs,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import load
from bitmaps.errors import InputError


@pytest.mark.parametrize("tied", [True, False])
def test_sharded_checkpoint_is_read_whole(
    tiny: Bert, tmp_path: Path, ids: Tensor, tied: bool
) -> None:
    reference = theirs(tiny, vocab_size=300, intermediate_size=200, tie_word_embeddings=tied)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    same(load(tmp_path)(ids), reference(ids).logits)


def test_missing_shard_is_named(tiny: Bert, tmp_path: Path) -> None:
    theirs(tiny, vocab_size=300, intermediate_size=200).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    shard = min(tmp_path.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        load(tmp_path)


def test_damaged_index_is_named(tiny: Bert, tmp_path: Path) -> None:
    theirs(tiny, vocab_size=300, intermediate_size=200).save_pretrained(
        tmp_path, max_shard_size="20KB"
    )
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loads_as_fp32(tiny: Bert, tmp_path: Path, dtype: torch.dtype) -> None:
    reference = theirs(tiny).to(dtype)
    reference.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(
        model.embeddings.word.weight, reference.bert.embeddings.word_embeddings.weight.float()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_odd_floating_point_types_are_read(folder: Path, ids: Tensor, dtype: torch.dtype) -> None:
    rewrite(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    same(load(folder)(ids), opened_by_transformers(folder, ids))


def test_old_names_and_other_tasks_tensors_are_understood(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    old = {
        "LayerNorm.weight": "LayerNorm.gamma",
        "LayerNorm.bias": "LayerNorm.beta",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }

    def age(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for new, name in old.items():
            tensors = {k.replace(new, name): v for k, v in tensors.items()}
        return tensors | {
            "bert.embeddings.position_ids": torch.arange(12)[None],
            "bert.pooler.dense.weight": torch.zeros(16, 16),
            "cls.seq_relationship.bias": torch.zeros(2),
        }

    rewrite(folder, age)
    assert "bert.embeddings.LayerNorm.gamma" in load_file(folder / "model.safetensors")
    assert torch.equal(load(folder)(ids), tiny(ids))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.model."])
@pytest.mark.parametrize("body", [False, True])
def test_the_prefix_of_a_wrapper_is_dropped(
    tiny: Bert, folder: Path, ids: Tensor, prefix: str, body: bool
) -> None:
    start = "bert." if body else ""
    rewrite(
        folder,
        lambda tensors: (
            {
                prefix + name.removeprefix("bert."): t
                for name, t in tensors.items()
                if name.startswith(start)
            }
            if body
            else {prefix + name: t for name, t in tensors.items()}
        ),
    )
    model = load(folder, head="new" if body else "checkpoint")
    assert torch.equal(model.encode(ids)[-1], tiny.encode(ids)[-1])
    assert body or torch.equal(model(ids), tiny(ids))


def test_two_tensors_of_one_name_must_be_the_same(tiny: Bert, folder: Path, ids: Tensor) -> None:
    new, old = "bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"
    rewrite(folder, lambda tensors: tensors | {old: tensors[new]})
    assert torch.equal(load(folder)(ids), tiny(ids))
    rewrite(folder, lambda tensors: tensors | {old: tensors[new] + 1})
    with pytest.raises(InputError, match=f"two different tensors for {new}$"):
        load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors$"):
        load(folder)


def test_pickle_is_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is a pickle"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"model\.safetensors is truncated"):
        load(folder)


def test_a_single_file_goes_before_an_index(tiny: Bert, folder: Path, ids: Tensor) -> None:
    index = {"weight_map": {LAYER: "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert torch.equal(load(folder)(ids), tiny(ids))
    same(opened_by_transformers(folder, ids), tiny(ids))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"weight_map": {}}', r"index\.json names no file"),
        ('{"weight_map": []}', r"index\.json is damaged"),
        ('{"weight_map": {"a": 3}}', r"index\.json is damaged"),
        ('{"weight_map": {"a": "b", "c": null}}', r"index\.json is damaged"),
        ('{"weight_map": {"a": "b"}}', r"saved/b is missing"),
        ('{"weight_map": {"a": "../b"}}', r"index\.json names .*/saved/\.\./b; valid are files"),
        ('{"weight_map": {"a": "/tmp/b"}}', r"index\.json names /tmp/b; valid are files beside it"),
        ("{}", r"index\.json is damaged"),
        ('{"a":' * 100_000, r"index\.json is damaged"),
    ],
)
def test_an_index_without_shards_is_named(folder: Path, content: str, said: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        load(folder)


def test_shards_may_repeat_a_tensor_but_not_differ_in_it(
    tiny: Bert, folder: Path, ids: Tensor
) -> None:
    (folder / "model.safetensors").rename(folder / "1.safetensors")
    index = {"weight_map": {LAYER: "1.safetensors", WORDS: "2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    tensor = load_file(folder / "1.safetensors")[LAYER]
    save_file({LAYER: tensor}, folder / "2.safetensors")
    assert torch.equal(load(folder)(ids), tiny(ids))
    save_file({LAYER: tensor + 1}, folder / "2.safetensors")
    with pytest.raises(InputError, match=f"2.safetensors and another shard differ in {LAYER}"):
        load(folder)
