"""Bits in tiles: the same matrices, in the order that kernels which look sums up read."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import Pack
from hypothesis import given, settings
from hypothesis import strategies as st
from packed.layers_by_hand import binary
from packed.matrices import BACKENDS, Matrix, each_act, random_inputs, random_matrix, run, using
from torch import Tensor

from bitmaps.packed import custom_ops, format, tiles
from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import ACTS, REFERENCE, Packed, Part
from bitmaps.packed.layers import PackedLinear
from bitmaps.packed.model import to_float
from bitmaps.packed.operations import linears
from bitmaps.packed.weights import PackedWeight
from bitmaps.vocabulary import Act, Storage

LOOKUP = "avx512_lookup"
needs_lookup = pytest.mark.skipif(
    LOOKUP not in BACKENDS, reason="this processor has no AVX-512 VBMI, or no kernels were built"
)
needs_kernels = pytest.mark.skipif(native.kernels() is None, reason="no kernels were built")


def in_tiles(matrix: Matrix) -> Part:
    data, *rest = matrix.part()
    return tiles.in_tiles(data), *rest  # type: ignore[return-value]


def weight_in_tiles(rows: int, columns: int) -> PackedWeight:
    data, high, low, _, column = in_tiles(random_matrix(rows, columns, column=True))
    return PackedWeight(Storage.bit, columns, data, high, low, column)


@given(rows=st.integers(1, 4), words=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_a_tile_has_four_bytes_of_each_of_sixteen_rows(rows: int, words: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = torch.from_numpy(random.integers(0, 256, (16 * rows, 4 * words), dtype=np.uint8))
    tiled = tiles.in_tiles(data)
    for row in range(16 * rows):
        for byte in range(4 * words):
            assert tiled[row // 16, byte // 4, row % 16, byte % 4] == data[row, byte]
    assert tiled.is_contiguous()
    assert torch.equal(tiles.in_rows(tiled), data)
    assert torch.equal(tiles.in_rows(data), data)


@pytest.mark.parametrize(("shape", "fits"), [((16, 4), True), ((17, 4), False), ((16, 5), False)])
def test_only_whole_tiles_fit(shape: tuple[int, int], fits: bool) -> None:
    assert tiles.fits(torch.zeros(shape, dtype=torch.uint8)) is fits


@each_act
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.sampled_from([0, 1, 1, 2, 3, 5, 6, 7, 13, 193]),
    rows=st.sampled_from([16, 48, 64, 80, 128, 144]),
    columns=st.sampled_from([25, 32, 61, 64, 96, 128, 160, 384, 768, 2048]),
    column=st.booleans(),
    low=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_they_multiply_as_rows_do(
    backend: str, act: Act, tokens: int, rows: int, columns: int, column: bool, low: bool, seed: int
) -> None:
    """To the bit, whether the kernel reads tiles or not."""
    matrix = random_matrix(rows, columns, column=column, low=low, seed=seed)
    x = random_inputs(tokens, columns, seed)
    with using(backend):
        expected = run(x, matrix, act)
        (actual,) = linears(torch.from_numpy(x), Packed([in_tiles(matrix)], columns), act)
    if act == Act.f32:
        torch.testing.assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_matrices_may_differ_in_their_order(backend: str) -> None:
    first, second = random_matrix(32, 64), random_matrix(9, 64, seed=1)
    x = torch.from_numpy(random_inputs(1, 64))
    with using(backend):
        expected = linears(x, Packed([first.part(), second.part()], 64), Act.a6)
        actual = linears(x, Packed([in_tiles(first), second.part()], 64), Act.a6)
    assert all(map(torch.equal, actual, expected))


@each_act
def test_operations_of_traces_take_them(act: Act) -> None:
    matrix, x = random_matrix(32, 64), torch.from_numpy(random_inputs(3, 64))
    actual = custom_ops.binary_linear(x, *in_tiles(matrix), act)
    torch.testing.assert_close(actual, run(x, matrix, act))
    lists = ([tensor] for tensor in in_tiles(matrix))
    torch.library.opcheck(custom_ops.binary_linears, (x, *lists, act))


@needs_lookup
@each_act
def test_weights_are_arranged_for_kernels_that_read_tiles(act: Act) -> None:
    weight = PackedWeight.of_bits(torch.rand(32, 64) < 0.5, torch.rand(32))
    with using(LOOKUP):
        found = weight.arranged(act)
    assert tiles.is_tiled(found.data) is (act not in (Act.f32, Act.a1))
    assert found.nbytes == weight.nbytes
    assert found.shape == weight.shape
    assert torch.equal(found.dense(), weight.dense())
    assert torch.equal(found.dense(slice(3, 7)), weight.dense(slice(3, 7)))
    assert torch.equal(found.in_rows, weight.data)


@pytest.mark.parametrize("backend", sorted({*BACKENDS} - {LOOKUP}))
def test_other_kernels_keep_rows(backend: str) -> None:
    weight = PackedWeight.of_bits(torch.rand(32, 64) < 0.5, torch.rand(32))
    with using(backend):
        assert all(weight.arranged(act) is weight for act in ACTS)


@needs_lookup
@pytest.mark.parametrize(
    "weight",
    [
        PackedWeight.of_bits(torch.rand(33, 64) < 0.5, torch.rand(33)),
        PackedWeight.of_bits(torch.rand(32, 72) < 0.5, torch.rand(32)),
        PackedWeight.rounded(torch.rand(32, 64), Storage.int8),
        PackedWeight.rounded(torch.rand(32, 64), Storage.int4),
    ],
    ids=["33 rows", "9 bytes", "int8", "int4"],
)
def test_other_weights_keep_rows(weight: PackedWeight) -> None:
    with using(LOOKUP):
        assert weight.arranged(Act.a6) is weight


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_is_in_rows_whatever_the_order(assign: bool) -> None:
    tiled, state = weight_in_tiles(32, 64), weight_in_tiles(32, 64).state_dict()
    assert state["data"].shape == (32, 8)
    state["data"] = 255 - state["data"]
    tiled.load_state_dict(state, assign=assign)
    assert tiles.is_tiled(tiled.data)
    assert torch.equal(tiled.in_rows, state["data"])
    rows = PackedWeight(Storage.bit, 64, torch.zeros(32, 8, dtype=torch.uint8), *[
        None if t is None else t.clone() for t in (tiled.high, tiled.low, tiled.column)
    ])  # fmt: skip
    rows.load_state_dict(tiled.state_dict(), assign=assign)
    assert torch.equal(rows.data, state["data"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        tiled.load_state_dict(state | {"data": torch.zeros(31, 8, dtype=torch.uint8)})


def test_a_layer_keeps_them_when_it_is_copied_or_rounds_otherwise() -> None:
    layer = PackedLinear(weight_in_tiles(32, 64), None, Act.a6)
    x = torch.from_numpy(random_inputs(2, 64))
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    rounded = PackedLinear(layer.weight, None, Act.a8)
    with using(REFERENCE):
        assert torch.equal(layer(x), expected)
        plain: Tensor = rounded(x)
    assert torch.equal(rounded(x), plain)


@needs_kernels
def test_a_model_in_tiles_stands_for_the_same_floats(
    pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing is multiplied, so that any processor can hold the tiles
    monkeypatch.setattr(native.Kernels, "reads_tiles", lambda self, act: act is Act.a6)
    folder = pack(binary("layers", hidden_size=32, intermediate_size=64))
    tiled, rows = format.load(folder, Act.a6), format.load(folder, Act.f32)
    data = tiled.encoder.layers[0].ffnn.expand.weight.data
    assert tiles.is_tiled(data)
    assert not tiles.is_tiled(rows.encoder.layers[0].ffnn.expand.weight.data)
    floats = to_float(tiled).state_dict()
    for name, tensor in to_float(rows).state_dict().items():
        assert torch.equal(floats[name], tensor), name
    for name, tensor in rows.state_dict().items():
        assert torch.equal(tiled.state_dict()[name], tensor), name


@needs_lookup
def test_the_choice_is_that_of_many_tokens() -> None:
    found = native.chosen("auto")
    assert found is not None
    for act in ACTS:
        fastest = native.choice(act, 2**20)
        assert found.reads_tiles(act) is (fastest == LOOKUP)
