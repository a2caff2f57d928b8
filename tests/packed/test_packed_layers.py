"""The layers of a packed BERT, each against the module in floats whose weights it has."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from packed.layers_by_hand import (
    TOP,
    WAYS,
    computed_by,
    every_act,
    every_kind,
    in_both_ways,
    linear_of,
    many,
    normal,
    weight_of,
)
from torch import Tensor, nn

from bitmaps.packed import custom_ops, layers, operations
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedEmbedding, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.vocabulary import Act


@every_kind
@every_act
@many
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    tokens=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_a_product_is_that_of_the_dense_matrix_with_rounded_inputs(
    act: Act, kind: str, rows: int, columns: int, tokens: int, seed: int
) -> None:
    layer, x = linear_of(kind, rows, columns, act, seed), normal(tokens, columns, seed=seed + 4)
    weight, bias, inputs = layer.weight.dense().double(), layer.bias, x.double()
    assert bias is not None
    if (
        column := layer.weight.column
    ) is not None:  # inputs are multiplied with it before they are rounded
        weight, inputs = weight / column.double(), inputs * column.double()
    rounds: str = (
        act
        if layer.weight.storage == "bit"
        else "a8"
        if kind == "int8" and act in ("a8", "a6", "a1")
        else "f32"
    )
    size = inputs.abs() @ weight.abs().mT
    error = 1e-5 * size
    if rounds == "a1":
        inputs = inputs.abs().mean(-1, keepdim=True) * torch.where(x >= 0, 1.0, -1.0)
        error = 1e-5 * inputs.abs() @ weight.abs().mT
    elif rounds != "f32":  # by half a step at most
        error += 0.5 * inputs.abs().amax(-1, keepdim=True) / TOP[rounds] * weight.abs().sum(-1)
    for way in WAYS:
        layer._packed = None
        with computed_by(way):
            y = layer(x)
        assert y.dtype == torch.float32
        assert ((y - (inputs @ weight.mT + bias)).abs() <= 1.001 * error + 1e-5).all()


@in_both_ways
@every_kind
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_product_has_the_shape_and_the_type_of_the_inputs(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layer, x = linear_of(kind, 9, 13, "a8"), normal(*shape, 13, seed=5).to(dtype)
    y = layer(x)
    assert y.shape == (*shape, 9)
    assert y.dtype == dtype
    torch.testing.assert_close(y, layer(x.float()).to(dtype))


@pytest.fixture
def plain(
    kernels: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[PackedLinear, Tensor], Tensor]:
    """A layer's product as native/python.c computes it, without a way round it."""

    def product(layer: PackedLinear, x: Tensor) -> Tensor:
        layer(x)  # the first call makes what it calls from then on
        if not layer.packed().calls:
            pytest.skip("the kernels were built without Python's headers")
        with monkeypatch.context() as patch:
            patch.setattr(
                "bitmaps.packed.operations.linears", lambda *_: pytest.fail("was not plain")
            )
            return layer(x)

    return product


@pytest.mark.parametrize(
    "shape", [(20,), (1, 20), (3, 20), (0, 20), (2, 0, 20), (2, 3, 1, 20), (1,) * 7 + (20,)]
)
@pytest.mark.parametrize(
    ("kind", "act"),
    [
        *((kind, act) for kind in ("pm1", "01", "rank one") for act in ACTS),
        ("int8", "a8"),
        ("int8", "a6"),
        ("int8", "a1"),
    ],
)
def test_a_plain_call_computes_what_others_do(
    kind: str, act: Act, shape: tuple[int, ...], plain: Callable[[PackedLinear, Tensor], Tensor]
) -> None:
    layer, x = linear_of(kind, 33, 20, act), normal(*shape, seed=7)
    y = plain(layer, x)
    assert (y.shape, y.dtype) == ((*shape[:-1], 33), torch.float32)
    assert torch.equal(y, operations.linears(x, layer.packed(), layer.product_act)[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 200, 768])
def test_rows_of_768_inputs_are_those_of_any_other_number(
    rows: int, plain: Callable[[PackedLinear, Tensor], Tensor]
) -> None:
    layer, x = linear_of("pm1", rows, 768, "a1"), normal(1, 768, seed=7)
    signs = torch.where(x >= 0, 1.0, -1.0)
    expected = F.linear(signs, layer.weight.dense()) * x.abs().mean() + layer.bias
    torch.testing.assert_close(plain(layer, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(), lambda x: x.bfloat16(), lambda x: nn.Parameter(x), lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.expand(3, 20)[:, None], lambda x: x.view((1,) * 8 + (20,)), lambda x: x.T.contiguous().T.expand(2, 20),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_computed_too(
    change: Callable[[Tensor], Tensor], plain: Callable[[PackedLinear, Tensor], Tensor]
) -> None:
    layer, x = linear_of("rank one", 33, 20, "a8"), normal(1, 20, seed=7)
    expected, changed = plain(layer, x), change(x)
    call = layer.packed().calls["a8"]
    assert call(changed, layer.weight._buffers, layer._buffers) is None
    y = layer(changed)
    assert (y.shape, y.dtype) == ((*changed.shape[:-1], 33), changed.dtype)
    torch.testing.assert_close(y, expected.expand_as(y).to(y.dtype), rtol=0.05, atol=0.05)


def test_after_a_plain_call_other_inputs_are_refused_as_before(
    plain: Callable[[PackedLinear, Tensor], Tensor],
) -> None:
    layer = linear_of("pm1", 33, 20, "a8")
    plain(layer, normal(1, 20, seed=7))
    for x, what in (
        (normal(1, 21, seed=7), "takes 20 numbers"),
        (torch.tensor(1.0), "takes 20 numbers"),
    ):
        with pytest.raises(ValueError, match=what):
            layer(x)
    with pytest.raises(ValueError, match="floating point"):
        layer(torch.ones(1, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match="without numbers"):
        torch.func.functionalize(layer)(normal(1, 20, seed=7))


@pytest.mark.parametrize("name", ["data", "high", "low", "column", "bias"])
def test_after_a_plain_call_a_tensor_may_be_replaced(
    name: str, plain: Callable[[PackedLinear, Tensor], Tensor]
) -> None:
    layer, x = linear_of("01", 33, 20, "a8"), normal(1, 20, seed=7)
    layer.weight.column = torch.ones(20)
    before, of = plain(layer, x), layer if name == "bias" else layer.weight
    tensor = getattr(of, name)
    setattr(of, name, 255 - tensor if name == "data" else 2 * tensor + 1)
    after = layer(x)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, custom_ops.binary_linear(x, *layer.part(), "a8"))
    assert torch.equal(plain(layer, x), after)


@in_both_ways
@every_kind
def test_inputs_may_lie_anyhow(kind: str) -> None:
    layer, x = linear_of(kind, 9, 13, "a8"), normal(13, 5, seed=5)
    torch.testing.assert_close(layer(x.mT), layer(x.mT.contiguous()))
    every_other = normal(10, 13, seed=6)[::2]
    torch.testing.assert_close(layer(every_other), layer(every_other.clone()))


@every_kind
def test_a_product_may_go_without_a_bias(kind: str) -> None:
    layer, x = linear_of(kind, 9, 13, "a8"), normal(4, 13, seed=5)
    bare = PackedLinear(layer.weight, None, "a8")
    torch.testing.assert_close(bare(x) + layer.bias, layer(x))


@pytest.mark.parametrize("kind", ["int4", "fp16"])
def test_a_table_of_many_rows_is_multiplied_part_by_part(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = linear_of(kind, 50, 13, "a8"), normal(4, 13, seed=5)
    dense, seen = layer.weight.dense(), []
    monkeypatch.setattr(layers, "ROWS", 16)
    monkeypatch.setattr(PackedWeight, "dense", lambda self, rows: seen.append(rows) or dense[rows])
    torch.testing.assert_close(layer(x), F.linear(x, dense, layer.bias))
    assert len(seen) == 4
    assert all(len(dense[rows]) <= 16 for rows in seen)


def test_inputs_of_another_size_or_an_act_that_does_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match=r"14,.* but the matrix takes 13"):
        linear_of("pm1", 9, 13, "a8")(torch.zeros(14))
    with pytest.raises(ValueError, match=r"'a4'.*f32, a16, a8, a1"):
        linear_of("pm1", 9, 13, "a4")(torch.zeros(13))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="int64"):
        linear_of("pm1", 9, 13, "a8")(torch.zeros(13, dtype=torch.int64))


@every_kind
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,)])
def test_an_embedding_gives_rows(kind: str, shape: tuple[int, ...]) -> None:
    weight, ids = (
        weight_of(kind, 9, 13),
        torch.randint(9, shape, generator=torch.Generator().manual_seed(0)),
    )
    torch.testing.assert_close(
        PackedEmbedding(weight)(ids), F.embedding(ids, weight.dense()), rtol=0, atol=0
    )


@pytest.mark.parametrize(
    "ids", [torch.tensor([-1]), torch.tensor([9]), torch.zeros(9, dtype=torch.bool)]
)
@pytest.mark.parametrize("kind", ["bit", "int8", "int4", "fp16"])
def test_an_embedding_refuses_what_is_no_row(kind: str, ids: Tensor) -> None:
    with pytest.raises((IndexError, RuntimeError)):
        PackedEmbedding(weight_of(kind, 9, 13))(ids)


@in_both_ways
def test_a_trace_computes_what_the_layer_does() -> None:
    layer, x = PackedLinear(weight_of("bit", 9, 13), torch.arange(9.0), "a8"), torch.randn(2, 13)
    layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(layer, (x,))
    other = torch.randn(2, 13)
    torch.testing.assert_close(traced(other), layer(other))


@in_both_ways
def test_autocast_changes_nothing() -> None:
    layer, x = PackedLinear(weight_of("bit", 9, 13), torch.arange(9.0), "a16"), torch.randn(2, 13)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert torch.equal(found, layer(x))


@in_both_ways
def test_other_data_of_a_tensor_leaves_what_is_pointed_to_alive() -> None:
    layer, x = PackedLinear(weight_of("bit", 64, 13), torch.arange(64.0), "a8"), torch.randn(2, 13)
    before = layer(x)
    assert layer.bias is not None
    layer.bias.data = torch.full((64,), 5.0)
    taken = [torch.full((64,), 1e30) for _ in range(100)]  # of the memory that was freed, if it was
    assert torch.equal(layer(x), before)
    del taken


# Blocks
