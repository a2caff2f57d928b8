"""Packed blocks and whole packed models."""

from __future__ import annotations

import copy
import gc
import pickle
import shutil
from collections.abc import Callable

import pytest
import torch
from packed.layers_by_hand import (
    GROUPS,
    binary,
    computed_by,
    every_act,
    every_kind,
    in_both_ways,
    linear_of,
    normal,
    off,
    packed,
    shaped,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bitmaps.bert import Bert
from bitmaps.bert.attention import Attention
from bitmaps.bert.ffnn import FeedForward
from bitmaps.errors import InputError
from bitmaps.packed import kernels as native
from bitmaps.packed import operations
from bitmaps.packed.kernels import ACTS
from bitmaps.packed.layers import PackedAttention, PackedEmbedding, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import binarize_naive, round_activations, store_words
from bitmaps.vocabulary import Act, Activations, Scale, Storage, ValueSet


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
    # what is rounded may fall to the other side, now and then, where sums are added in another
    # order
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
@pytest.mark.parametrize("activations", [Activations.int8, Activations.int6])
@pytest.mark.parametrize(("scale", "values"), [("row", "01"), ("rank_one", "pm1")])
def test_a_run_with_rounded_activations_is_trained_with_what_the_kernels_compute(
    group: str, activations: Activations, scale: Scale, values: ValueSet, ids: Tensor
) -> None:
    model = binary(group, scale, values)
    found, unrounded = packed(model, activations.act)(ids), model(ids)
    assert off(found, unrounded) > 1e-3
    rounded = round_activations(model, GROUPS[group], activations)(ids)
    torch.testing.assert_close(found, rounded, atol=1e-4, rtol=0)


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
