"""A packed BERT as a whole: moved, converted, taken apart."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Pack
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.errors import InputError
from bitmaps.packed.format import load, write_model
from bitmaps.packed.layers import PackedEmbedding, PackedLinear
from bitmaps.packed.model import PackedBert, assemble
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Act, Storage


@pytest.fixture(params=list(Storage))
def packed(request: pytest.FixtureRequest, tiny: Bert, pack: Pack) -> PackedBert:
    """Its layers in one bit, and its words in each storage."""
    binarize_naive(tiny, ("attention", "ffnn"), "pm1", "rank_one", "matrices")
    words = request.param
    if words == Storage.bit:
        binarize_naive(tiny, ("embeddings",), "01", "row", "matrices")
    return load(pack(tiny, words if words != Storage.bit else None), Act.f32)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def test_a_packed_model_stays_in_fp32(packed: PackedBert, ids: Tensor) -> None:
    before, expected = dict(tensors(packed)), packed(ids)
    calls: dict[str, Any] = {
        "float16": packed.half, "bfloat16": packed.bfloat16, "float64": packed.double,
    }  # fmt: skip
    for name, call in calls.items():
        for again in (call, lambda name=name: packed.to(getattr(torch, name))):
            with pytest.raises(
                InputError, match=f"computes in float32, not in {name}: its weights"
            ):
                again()
        with pytest.raises(InputError, match=name):
            nn.Sequential(packed).to("cpu", getattr(torch, name))
    after = tensors(packed)
    assert after.keys() == before.keys()
    assert all(after[name] is tensor for name, tensor in before.items())
    assert torch.equal(packed(ids), expected)


def test_float_changes_no_storage(packed: PackedBert, ids: Tensor) -> None:
    """A table in fp16 stays in fp16."""
    kinds, expected = {name: t.dtype for name, t in tensors(packed).items()}, packed(ids)
    for model in (packed.float(), packed.to(torch.float32), packed.cpu(), packed.to("cpu")):
        assert {name: t.dtype for name, t in tensors(model).items()} == kinds
        assert torch.equal(model(ids), expected)


def test_all_of_it_moves_to_another_device(packed: PackedBert) -> None:
    kinds = {name: (t.dtype, t.shape) for name, t in tensors(packed).items()}
    moved = copy.deepcopy(packed).to("meta")
    assert {tensor.device.type for tensor in tensors(moved).values()} == {"meta"}
    assert {name: (t.dtype, t.shape) for name, t in tensors(moved).items()} == kinds


def test_its_parts_make_it_again(packed: PackedBert, ids: Tensor, tmp_path: Path) -> None:
    again = assemble(packed.config, packed.parts(), Act.f32)
    assert torch.equal(again(ids), packed(ids))
    for name, model in (("one", packed), ("two", again)):
        (tmp_path / name).mkdir()
        write_model(model.config, model.parts(), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_packed_layer_in_another_model_gives_the_type_of_its_inputs(dtype: torch.dtype) -> None:
    """It keeps its own numbers, which the kernels read."""
    weight = PackedWeight.of_bits(torch.rand(32, 32) > 0.5, torch.rand(32), None, torch.rand(32))
    linear, x = PackedLinear(weight, torch.rand(32), Act.a8), torch.randn(3, 32)
    table = PackedEmbedding(weight)
    expected, rows = linear(x.to(dtype).float()), table(torch.tensor([[3, 1]]))
    outer = nn.ModuleDict({"linear": linear, "table": table, "norm": nn.LayerNorm(32)}).to(dtype)
    assert linear(x.to(dtype)).dtype is dtype
    torch.testing.assert_close(linear(x.to(dtype)), expected.to(dtype))
    assert torch.equal(table(torch.tensor([[3, 1]])), rows.to(dtype))
    assert outer["norm"].weight.dtype is dtype
    kinds = {name: tensor.dtype for name, tensor in weight.named_buffers()}
    assert kinds == {"data": torch.uint8, "high": torch.float32, "column": torch.float32}
    assert linear.bias is not None
    assert linear.bias.dtype is torch.float32
    assert table.float()(torch.tensor([[3, 1]])).dtype is torch.float32
