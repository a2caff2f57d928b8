"""The layers of a packed BERT, each against the module in floats whose weights it has."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.attention import Attention
from bitmaps.bert.ffnn import FeedForward
from bitmaps.errors import InputError
from bitmaps.packed import custom_ops, layers, operations
from bitmaps.packed import format as folder
from bitmaps.packed import kernels as native
from bitmaps.packed.discover import one_bit
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedAttention, PackedEmbedding, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import COMPONENTS, binarize_naive, round_activations, store_words
from bitmaps.vocabulary import Act, Scale, Storage, ValueSet

WAYS = ("auto", "reference")
KINDS = ("pm1", "01", "two values", "rank one", "int8", "int4", "fp16")
GROUPS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "attention": ("attention",),
    "ffnn": ("ffnn",),
    "layers": ("attention", "ffnn"),
    "all": tuple(COMPONENTS),
}
TOP = {"a16": 32639, "a8": 127}

many = settings(max_examples=30, deadline=None)
every_act = pytest.mark.parametrize("act", ACTS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def computed_by(way: str) -> Any:
    """The kernels that every call takes from here on."""
    return mock.patch.object(native, "kernels", side_effect=partial(native.chosen, way))


@pytest.fixture(params=WAYS)
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with computed_by(request.param):
        yield


@pytest.fixture
def kernels() -> Iterator[None]:
    if not native.instruction_sets():
        pytest.skip("there was no C compiler, so there are no kernels")
    with computed_by("auto"):
        yield


in_both_ways = pytest.mark.usefixtures("both_ways")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_of(kind: str, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    weight, per_row = normal(rows, columns, seed=seed), normal(rows, 1, seed=seed + 1)
    if kind in ("int8", "int4", "fp16"):
        return PackedWeight.rounded(weight, kind)  # type: ignore[arg-type]
    low = {"pm1": -per_row, "01": 0 * per_row}.get(kind, per_row - 1)
    packed = one_bit(torch.where(weight > 0, per_row, low))
    assert packed is not None
    column = normal(columns, seed=seed + 2).exp() if kind == "rank one" else None
    return PackedWeight("bit", columns, packed.data, packed.high, packed.low, column)


def linear_of(kind: str, rows: int, columns: int, act: Act, seed: int = 0) -> PackedLinear:
    return PackedLinear(weight_of(kind, rows, columns, seed), normal(rows, seed=seed + 3), act)


def packed(
    model: Bert, act: Act, embeddings: Storage | None = None, head: Storage | None = None
) -> Bert:
    return folder.assemble(model.config, folder.pack_model(model, embeddings, head), act)


def shaped(**changes: Any) -> Bert:
    """A model of which no size is a multiple of 8."""
    sizes = {"vocab_size": 61, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 27, "max_position_embeddings": 12}
    config = BertConfig(**(sizes | {"initializer_range": 0.3} | changes))  # type: ignore[arg-type]
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


def binary(group: str, scale: Scale = "row", values: ValueSet = "pm1", **changes: Any) -> Bert:
    """One of which a group of components is in one bit."""
    return binarize_naive(shaped(**changes), GROUPS[group], values, scale, "matrices")


def off(logits: Tensor, expected: Tensor) -> float:
    """How far, relative to the expected."""
    return ((logits - expected).norm() / expected.norm()).item()


# One matrix


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
        if kind == "int8" and act in ("a8", "a1")
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


def block_of(model: Bert, act: Act, name: str) -> tuple[nn.Module, nn.Module]:
    """The first layer's attention or feed-forward network: in floats, and packed."""
    return tuple(getattr(m.encoder.layers[0], name) for m in (model, packed(model, act)))  # type: ignore[return-value]


def run(block: nn.Module, x: Tensor) -> Tensor:
    if isinstance(block, FeedForward):
        return block(x)
    mask = torch.ones(x.shape[0], 1, 1, x.shape[1], dtype=torch.bool)
    mask[0, ..., -2:] = False
    return block(x, mask)


# with heads of 32 numbers all of attention is one operation, on some processors
either_size = pytest.mark.parametrize("hidden", [20, 64])


@in_both_ways
@pytest.mark.parametrize("name", ["attention", "ffnn"])
@pytest.mark.parametrize("group", ["layers", "attention", "ffnn"])
@pytest.mark.parametrize("scale", ["row", "rank_one"])
@pytest.mark.parametrize("values", ["pm1", "01"])
@either_size
def test_a_block_computes_what_it_does_in_floats(
    name: str, group: str, scale: Scale, values: ValueSet, hidden: int
) -> None:
    x = normal(2, 5, hidden, seed=7)
    for act, most in (("f32", 1e-6), ("a16", 1e-4), ("a8", 0.03)):
        plain, block = block_of(binary(group, scale, values, hidden_size=hidden), act, name)  # type: ignore[arg-type]
        assert off(run(block, x), run(plain, x)) < most


def unfused(block: nn.Module) -> nn.Module:
    """The same block, its matrices multiplied one by one."""
    plain = Attention if isinstance(block, PackedAttention) else FeedForward
    block = copy.deepcopy(block)
    block.__class__ = plain
    return block


@in_both_ways
@every_act
@pytest.mark.parametrize("name", ["attention", "ffnn"])
@pytest.mark.parametrize("scale", ["row", "rank_one"])
@either_size
def test_fused_and_unfused_agree(act: Act, name: str, scale: Scale, hidden: int) -> None:
    _, block = block_of(binary("layers", scale, hidden_size=hidden), act, name)
    x = normal(2, 5, hidden, seed=8)
    # what is rounded may fall to the other side, now and then, where sums are added in another order
    assert off(run(block, x), run(unfused(block), x)) < {"f32": 1e-6, "a16": 1e-4}.get(act, 0.01)


@pytest.mark.parametrize(
    ("hidden_act", "fused"), [("gelu", True), ("gelu_new", False), ("relu", False)]
)
def test_only_the_exact_gelu_is_fused(
    hidden_act: str, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, block = block_of(binary("layers", hidden_act=hidden_act), "f32", "ffnn")
    x, calls = normal(2, 5, 20, seed=9), []
    ours = operations.ffnn
    monkeypatch.setattr(operations, "ffnn", lambda *args: calls.append(args) or ours(*args))
    assert off(block(x), plain(x)) < 1e-6
    assert bool(calls) is fused


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("mixed", "fused"), [(None, True), ("query", False), ("output", False)])
def test_attention_is_fused_where_all_of_it_is_in_one_bit(
    mixed: str | None, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not operations.attends(torch.zeros(1, 1, 64), None, 2):
        pytest.skip("these kernels leave attention to PyTorch")
    model = binary("layers", hidden_size=64)
    if mixed is not None:
        getattr(model.encoder.layers[0].attention, mixed).weight = nn.Parameter(
            normal(64, 64, seed=10)
        )
    plain, block = block_of(model, "f32", "attention")
    calls, ours = [], operations.attention
    monkeypatch.setattr(operations, "attention", lambda *args: calls.append(args) or ours(*args))
    x = normal(2, 5, 64, seed=9)
    assert off(run(block, x), run(plain, x)) < 1e-6
    assert bool(calls) is fused


@in_both_ways
@pytest.mark.parametrize("kind", ["one for all", "all or none", "pairs", "added", "none"])
def test_attention_takes_whatever_mask_pytorch_takes(kind: str) -> None:
    plain, block = block_of(binary("layers", hidden_size=64), "f32", "attention")
    x, kept = normal(3, 5, 64, seed=9), torch.tensor([True, True, False, True, False])
    masks = {
        "one for all": kept[None, None, None],
        "all or none": torch.tensor([True, False, True])[:, None, None, None],
        "pairs": torch.ones(5, 5, dtype=torch.bool).tril().expand(3, 1, 5, 5),
        "added": normal(3, 1, 1, 5, seed=10),
    }
    mask = masks.get(kind)
    assert off(block(x, mask), plain(x, mask)) < 1e-6


@in_both_ways
def test_a_block_drops_out_what_attention_does_while_it_is_trained() -> None:
    _, block = block_of(binary("layers", hidden_size=64), "f32", "attention")
    x = normal(3, 5, 64, seed=9)
    expected, block.attention_dropout = block(x, None), 0.5
    assert torch.equal(block(x, None), expected)
    assert not torch.allclose(block.train()(x, None), expected, atol=1e-2)


@in_both_ways
@pytest.mark.parametrize("hidden_act", ["gelu_new", "relu"])
def test_a_model_of_another_activation_agrees_too(hidden_act: str, ids: Tensor) -> None:
    model = binary("all", hidden_act=hidden_act)
    torch.testing.assert_close(packed(model, "f32")(ids), model(ids), atol=1e-5, rtol=0)


@in_both_ways
@pytest.mark.parametrize("mixed", ["query", "value", "output"])
def test_a_block_with_one_matrix_in_floats_agrees(mixed: str, ids: Tensor) -> None:
    model = binary("layers")
    layer = getattr(model.encoder.layers[0].attention, mixed)
    layer.weight = nn.Parameter(normal(*layer.weight.shape, seed=10))
    found = packed(model, "f32")
    assert isinstance(getattr(found.encoder.layers[0].attention, mixed), nn.Linear)
    torch.testing.assert_close(found(ids), model(ids), atol=1e-5, rtol=0)


# Models


@in_both_ways
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("scale", ["row", "rank_one"])
@pytest.mark.parametrize("values", ["pm1", "01"])
def test_a_packed_model_computes_what_it_does_in_floats(
    group: str, scale: Scale, values: ValueSet, ids: Tensor
) -> None:
    model = binary(group, scale, values)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    expected = model(ids, mask)
    for act, most in (("f32", 1e-5), ("a16", 1e-3)):
        torch.testing.assert_close(packed(model, act)(ids, mask), expected, atol=most, rtol=0)  # type: ignore[arg-type]
    rounded = packed(model, "a8")(ids, mask)
    assert off(rounded, expected) < 0.04
    assert torch.corrcoef(torch.stack([rounded.flatten(), expected.flatten()]))[0, 1] > 0.999
    assert torch.equal(rounded, expected) is (group == "nothing")


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_in_one_bit_is_packed_and_nothing_else(group: str) -> None:
    found = packed(binary(group), "a8")
    kinds = {
        name: module.storage
        for name, module in found.named_modules()
        if isinstance(module, PackedWeight)
    }
    assert set(kinds.values()) <= {"bit"}
    part_of = {
        "word": "embeddings",
        "position": "embeddings",
        "transform": "head",
        "expand": "ffnn",
        "contract": "ffnn",
    }
    part_of |= dict.fromkeys(("query", "key", "value", "output"), "attention")
    wanted = {
        name for name, module in found.named_modules()
        if part_of.get(name.rpartition(".")[2]) in GROUPS[group] and not isinstance(module, PackedWeight)
    }  # fmt: skip
    assert {name.removesuffix(".weight") for name in kinds} == wanted
    assert found.head.decoder.weight is found.embeddings.word.weight
    assert not any(p.requires_grad for p in found.parameters())
    assert not found.training


@in_both_ways
@in_both_ways
@pytest.mark.parametrize("words", ["int8", "int4", "fp16", "bit"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_word_table_in_few_bits_is_read_and_decoded_with(
    words: Storage, tied: bool, ids: Tensor
) -> None:
    model = store_words(binary("layers", tie_word_embeddings=tied), words)
    for act, most in (("f32", 1e-5), ("a16", 1e-3)):
        found = packed(model, act)  # type: ignore[arg-type]
        assert isinstance(found.embeddings.word, PackedEmbedding)
        assert found.embeddings.word.weight.storage == words
        assert isinstance(found.head.decoder, PackedLinear) is tied
        torch.testing.assert_close(found(ids), model(ids), atol=most, rtol=0)
    assert off(packed(model, "a8")(ids), model(ids)) < 0.04


def test_a_head_in_int8_computes_in_int8_where_one_bit_matrices_do(ids: Tensor) -> None:
    model = binary("layers")
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        weight = rounded.head.transform.weight
        weight.copy_(PackedWeight.rounded(weight, "int8").dense())
    torch.testing.assert_close(
        packed(model, "f32", head="int8")(ids), rounded(ids), atol=1e-5, rtol=0
    )
    assert 0 < off(packed(model, "a8", head="int8")(ids), rounded(ids)) < 0.04


@in_both_ways
@pytest.mark.parametrize("group", ["attention", "ffnn", "layers"])
def test_a8_is_what_a_run_with_int8_activations_is_trained_with(group: str, ids: Tensor) -> None:
    model = binary(group)
    found = packed(model, "a8")(ids)
    unrounded = model(ids)
    rounded = round_activations(model, GROUPS[group])(ids)
    assert off(found, rounded) < 0.3 * off(
        found, unrounded
    )  # all that is left is rounding to the other side


def test_logits_at_some_positions_are_those_there(ids: Tensor) -> None:
    found, positions = (
        packed(store_words(binary("layers"), "int8"), "a8"),
        torch.zeros(3, 7, dtype=torch.bool),
    )
    positions[0, 2] = positions[2, 5] = True
    torch.testing.assert_close(
        found(ids, positions=positions), found(ids)[positions], atol=1e-5, rtol=0
    )


@in_both_ways
def test_no_sequences_and_no_positions_give_no_logits(ids: Tensor) -> None:
    model = store_words(binary("layers"), "int8")
    none = torch.zeros_like(ids, dtype=torch.bool)
    for act in ACTS:
        assert packed(model, act)(ids, positions=none).shape == (0, 61)
        assert packed(model, act)(ids[:0]).shape == (0, 7, 61)


def test_nothing_is_computed_for_gradients(ids: Tensor) -> None:
    assert not packed(binary("all"), "a8")(ids).requires_grad


@pytest.mark.usefixtures("kernels")
def test_a_model_computes_with_any_kernels(ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found, calls, plan = packed(binary("layers"), "f32"), set(), native.Packed.plan
    monkeypatch.setattr(
        native.Packed,
        "plan",
        lambda self, found, act: calls.add(found.name) or plan(self, found, act),
    )
    logits = {}
    for way in ("reference", *native.instruction_sets(), "reference"):
        calls.clear()
        with computed_by(way):
            logits[way] = found(ids)
        assert calls == {way} - {"reference"}
    for found_logits in logits.values():
        torch.testing.assert_close(found_logits, logits["reference"], atol=1e-5, rtol=0)
    with (
        computed_by("avx1024"),
        pytest.raises(InputError, match=r"BITMAPS_KERNELS=avx1024 .* valid are auto, .*reference"),
    ):
        found(ids)


# Copies, and what else happens to modules


def test_a_model_that_moved_to_shared_memory_computes_from_there(ids: Tensor) -> None:
    found = packed(binary("layers"), "a8")
    expected = found(ids)
    before = {name: tensor.data_ptr() for name, tensor in found.named_buffers()}
    found.share_memory()
    assert not any(tensor.data_ptr() == before[name] for name, tensor in found.named_buffers())
    overwriting = [torch.full((n,), torch.nan) for n in range(1000)]
    assert torch.equal(found(ids), expected)
    del overwriting


@pytest.fixture
def both() -> tuple[Bert, Bert]:
    """Two packed models of the same shape and other weights, which have computed already."""
    models = [packed(store_words(binary("layers", "rank_one"), "int8"), "a8")]
    other = shaped()
    other.randomize(torch.Generator().manual_seed(1))
    binarize_naive(other, GROUPS["layers"], "pm1", "rank_one", "matrices")
    models.append(packed(store_words(other, "int8"), "a8"))
    for model in models:
        model(torch.tensor([[1, 2, 3]]))
    return models[0], models[1]


COPIES: dict[str, Callable[[Bert], Bert]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_computes_on_its_own_when_the_original_is_gone(
    copied: str, both: tuple[Bert, Bert], ids: Tensor
) -> None:
    original = both[0]
    expected, twin = original(ids), COPIES[copied](original)
    for buffer in original.buffers():
        buffer.zero_()
    del original, both
    gc.collect()
    assert torch.equal(twin(ids), expected)
    assert twin.head.decoder.weight is twin.embeddings.word.weight


def test_a_copy_does_not_share_its_weights(both: tuple[Bert, Bert], ids: Tensor) -> None:
    original, expected = both[0], both[0](ids)
    twin = copy.deepcopy(original)
    twin.load_state_dict(both[1].state_dict())
    assert torch.equal(original(ids), expected)
    assert torch.equal(twin(ids), both[1](ids))


@pytest.mark.parametrize("assign", [False, True])
def test_another_state_may_be_loaded(both: tuple[Bert, Bert], ids: Tensor, assign: bool) -> None:
    model, other = both
    before = model(ids)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(model(ids), other(ids))
    assert not torch.equal(model(ids), before)


def test_the_state_is_the_bits_and_what_goes_with_them(both: tuple[Bert, Bert]) -> None:
    state = both[0].state_dict()
    attention = "encoder.layers.1.attention"
    assert state[f"{attention}.query.weight.data"].dtype == torch.uint8
    assert state[f"{attention}.query.weight.data"].shape == (20, 3)
    assert {f"{attention}.query.{name}" for name in ("weight.high", "weight.column", "bias")} < set(
        state
    )
    assert not any("_packed" in name for name in state)
    assert state["embeddings.word.weight.data"] is not None
    assert (
        state["embeddings.word.weight.data"].data_ptr()
        == state["head.decoder.weight.data"].data_ptr()
    )


def test_a_model_that_was_in_fp64_computes_again_in_fp32(
    both: tuple[Bert, Bert], ids: Tensor
) -> None:
    model, expected = both[0], both[0](ids)
    model.to(torch.float64)
    with pytest.raises(ValueError, match=r"float64 .* valid is float32"):
        model(ids)
    assert torch.equal(model.to(torch.float32)(ids), expected)


@in_both_ways
@pytest.mark.parametrize("name", ["attention", "ffnn"])
def test_a_norm_of_another_type_is_refused(name: str) -> None:
    _, block = block_of(binary("layers"), "f32", name)
    block.norm.double()  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"float64 .* valid is float32 of shape \(20,\)"):
        run(block, normal(2, 5, 20, seed=11))


# Traces


class Logits(nn.Module):
    """A model as ``torch.export`` takes it: without ``positions``."""

    def __init__(self, model: Bert) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)


@every_act
@pytest.mark.filterwarnings("default")
def test_a_trace_of_the_whole_encoder_computes_what_it_does_untraced(act: Act) -> None:
    model, x = packed(binary("layers", "rank_one"), act), normal(3, 7, 20, seed=12)
    torch.compiler.reset()
    compiled = torch.compile(model.encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for theirs, ours in zip(compiled(x, None), model.encoder(x, None), strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@in_both_ways
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch.compile does things that torch itself warns of
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and there is no g++"
)
@pytest.mark.parametrize("hidden_act", ["gelu", "relu"])
def test_a_compiled_encoder_computes_what_it_does_uncompiled(hidden_act: str) -> None:
    model = packed(binary("layers", hidden_act=hidden_act), "a16")
    torch.compiler.reset()
    compiled = torch.compile(model.encoder, fullgraph=True)
    for length in (7, 5):
        x = normal(3, length, 20, seed=13)
        with torch.no_grad():
            for theirs, ours in zip(compiled(x, None), model.encoder(x, None), strict=True):
                torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)


@in_both_ways
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("words", ["fp32", "int8", "int4", "bit"])
def test_an_exported_model_computes_what_it_does_unexported(words: Storage, ids: Tensor) -> None:
    model = Logits(packed(store_words(binary("layers"), words), "a16"))
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(model, (ids,), dynamic_shapes={"ids": {0: batch}})
    assert "bitmaps" in str(program.graph)
    for inputs in (ids, ids[:2]):
        torch.testing.assert_close(program.module()(inputs), model(inputs), atol=1e-3, rtol=0)


@every_kind
def test_a_fake_tensor_has_the_shape_of_the_real_one(kind: str) -> None:
    layer, x = linear_of(kind, 9, 13, "a8"), normal(2, 3, 13, seed=14)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = layer(mode.from_tensor(x))
    assert (fake.shape, fake.dtype) == (layer(x).shape, layer(x).dtype)
