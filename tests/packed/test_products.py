"""Products with packed matrices: the kernels and the reference, each against the formula in fp64."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from packed.matrices import (
    BACKENDS,
    PRODUCTS,
    ROUNDED,
    TOP,
    Array,
    Matrix,
    columns_applied,
    each_act,
    each_product,
    exact,
    formula,
    identity,
    limits,
    normal,
    random_inputs,
    random_matrix,
    relative,
    rounded,
    run,
    using,
)

from bitmaps.packed.activations import LARGEST, round_activations
from bitmaps.packed.kernels import LARGEST_K
from bitmaps.packed.operations import linears, pack, unpack
from bitmaps.vocabulary import Act

INPUTS = (1, 7, 8, 31, 33, 64, 255, 256, 257, 512, 770)
OUTPUTS = (1, 3, 15, 16, 17, 63, 64, 65, 130)  # around tiles of 16 and 64
TOKENS = (*range(1, 14), 193)  # around tiles of 4 and 6; a block of rows is 192

thoroughly = settings(max_examples=40, deadline=None)
each_rounded_product = pytest.mark.parametrize(
    ("act", "byte"), [(act, byte) for act, byte in PRODUCTS if act != Act.f32]
)


# -- bits --


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40)))
@thoroughly
def test_pack_is_numpys_and_unpack_gives_back(bits: Array) -> None:
    packed = pack(torch.from_numpy(bits))
    assert packed.dtype == torch.uint8
    assert np.array_equal(packed.numpy(), np.packbits(bits, axis=-1, bitorder="little"))
    assert torch.equal(pack(torch.from_numpy(bits.astype(np.uint8))), packed)
    assert np.array_equal(unpack(packed, bits.shape[1]).numpy(), bits)


@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, max_side=6)), st.integers(0, 7))
@thoroughly
def test_unpack_is_numpys_and_leaves_padding_out(packed: Array, padding: int) -> None:
    k = 8 * packed.shape[-1] - padding
    unpacked = unpack(torch.from_numpy(packed), k).numpy()
    assert np.array_equal(unpacked, np.unpackbits(packed, axis=-1, count=k, bitorder="little"))


# -- shapes --


@each_product
def test_products_at_the_edges_of_tiles_are_the_formula(act: Act, byte: bool) -> None:
    """Each number of outputs meets each number of tokens, and each pair several numbers of inputs.
    An output depends on its token and its row alone, so one formula covers all of a matrix."""
    pairs = cycle(product(OUTPUTS, TOKENS))
    for k in INPUTS:
        x = random_inputs(max(TOKENS), k)
        cases = []
        for low, bias, column in product((False, True), repeat=3):
            matrix = random_matrix(
                max(OUTPUTS), k, low=low, bias=bias, column=column, byte=byte, seed=k
            )
            cases.append((matrix, formula(x, matrix, act)))
            for name in BACKENDS:
                with using(name):
                    y = run(x, matrix, act).numpy()
                assert (np.abs(y - cases[-1][1]) <= limits(x, matrix, act)).all(), (name, k)
                assert relative(y, cases[-1][1]) <= 1e-5, (name, k)
        for (matrix, expected), (n, m) in zip(cycle(cases), islice(pairs, 23), strict=False):
            some, inputs = matrix.rows(n), torch.from_numpy(x[:m])
            packed = some.packed()
            for name in BACKENDS:
                with using(name):
                    y = linears(inputs, packed, act)[0].numpy()
                assert y.shape == (m, n)
                assert y.dtype == np.float32
                limit = limits(x[:m], some, act)
                assert (np.abs(y - expected[:m, :n]) <= limit).all(), (name, m, n, k)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 140), st.integers(1, 600)),
    st.sampled_from(PRODUCTS),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_any_product_is_the_formula_and_all_backends_agree(
    shape: tuple[int, int, int],
    act_and_byte: tuple[Act, bool],
    parts: tuple[bool, bool, bool],
    seed: int,
) -> None:
    (m, n, k), (act, byte), (low, bias, column) = shape, act_and_byte, parts
    matrix = random_matrix(n, k, low=low, bias=bias, column=column, byte=byte, seed=seed)
    x = random_inputs(m, k, seed)
    expected, outputs = formula(x, matrix, act), []
    for name in BACKENDS:
        with using(name):
            outputs.append(run(x, matrix, act).numpy())
        assert (np.abs(outputs[-1] - expected) <= limits(x, matrix, act)).all(), name
    for y in outputs[:-1]:  # the same whole numbers, and so the same bits
        if act == Act.f32:
            assert (np.abs(y - outputs[-1]) <= limits(x, matrix, act)).all()
        else:
            assert np.array_equal(y, outputs[-1])


# -- the formula --


@pytest.mark.parametrize("act", TOP)
def test_the_reference_rounds_activations_as_the_kernels_do(act: Act) -> None:
    x = random_inputs(5000, 770)
    x[0], x[1] = np.abs(x[0]), -np.abs(x[1])
    q, s = round_activations(torch.from_numpy(x), act)
    expected, scale = rounded(x, act)
    assert np.array_equal(q.numpy(), expected)
    np.testing.assert_allclose(s.numpy(), scale, rtol=1e-6)
    assert np.abs(expected).max() <= LARGEST[act]
    if act == Act.a6:
        assert (expected.max(-1) - expected.min(-1)).max() == 62


@pytest.mark.parametrize("column", [False, True])
def test_the_formula_is_the_product_with_the_two_values(column: bool) -> None:
    x = random_inputs(13, 257)
    for low in (False, True):
        matrix = random_matrix(65, 257, low=low, column=column)
        assert relative(formula(x, matrix, Act.f32), exact(x, matrix)) < 1e-6
    byte = random_matrix(65, 257, column=column, byte=True)
    q, s = rounded(columns_applied(x, byte), Act.a8)
    assert byte.bias is not None
    assert relative(formula(x, byte, Act.a8), s * q @ byte.values().T + byte.bias) < 1e-12


@pytest.mark.parametrize(
    ("act", "byte", "limit"),
    [
        (Act.f32, False, 1e-6),
        (Act.a16, False, 1e-4),
        (Act.a11, False, 3e-3),
        (Act.a8, False, 3e-2),
        (Act.a6, False, 1e-1),
        (Act.a8, True, 2e-2),
    ],
)
def test_rounded_activations_are_as_close_as_documented(
    backend: str, act: Act, byte: bool, limit: float
) -> None:
    for k, column in product((33, 257, 770), (False, True)):
        matrix = random_matrix(130, k, bias=byte, column=column and not byte, byte=byte)
        x = normal(13, k).numpy()
        assert relative(run(x, matrix, act).numpy(), exact(x, matrix)) <= limit


# -- extremes --


@each_rounded_product
def test_the_largest_sums_fit(backend: str, act: Act, byte: bool) -> None:
    """The most inputs allowed, all at the largest magnitude."""
    n = 17
    weight = np.full((n, LARGEST_K), 127, np.int8) if byte else np.ones((n, LARGEST_K), bool)
    weight[1::2] = -128 if byte else 0
    matrix = Matrix(weight, np.linspace(0.5, 1.5, n, dtype=np.float32))
    x = np.ones((7, LARGEST_K), np.float32)
    x[1::2] = -1
    expected = exact(x, matrix)
    for rows in (slice(0, 1), slice(1, 2), slice(0, 5), slice(1, 7), slice(0, 7)):
        actual = run(x[rows], matrix, act).numpy()
        np.testing.assert_allclose(actual, expected[rows], rtol=1e-6)


def test_lower_bytes_may_all_be_the_least_there_is(backend: str) -> None:
    """128 is 256 - 128: the lower plane of a16 is -128 everywhere but in the first input, which sets
    the scale to 1."""
    k = 5000
    matrix = Matrix(np.ones((17, k), bool), np.ones(17, np.float32))
    x = np.full((6, k), 128, np.float32)
    x[:, 0] = 32639
    for m in (1, 6):
        y = run(x[:m], matrix, Act.a16).numpy()
        np.testing.assert_array_equal(y, np.full((m, 17), 32639 + 128 * (k - 1)))


def test_ties_of_activations_go_to_even(backend: str) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    for m in (1, 2, 6):
        y = run(np.repeat(x, m, 0), identity(8), Act.a8)
        assert y.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]] * m
    x[0, [0, 7]] = 59.5, -1.5  # 62 steps of 1 down to -2.5
    for m in (1, 2, 6):
        y = run(np.repeat(x, m, 0), identity(8), Act.a6)
        assert y.tolist() == [[60, 0, 2, 2, 0, -2, -2, -2]] * m


@pytest.mark.parametrize(("low", "high"), [(0, 62), (-62, 0), (-31, 31), (-1, 61), (-61, 1)])
def test_the_window_of_a6_lies_where_the_numbers_are(backend: str, low: int, high: int) -> None:
    x = np.linspace(low, high, 63, dtype=np.float32)[None]
    for m in (1, 2, 6):
        y = run(np.repeat(x, m, 0), identity(63), Act.a6)
        assert y.tolist() == np.repeat(np.rint(x), m, 0).tolist()


def test_zero_has_a_positive_sign(backend: str) -> None:
    x = np.array([[0.0, -0.0, 3.0, -1.0]], np.float32)
    for m in (1, 4, 6):
        assert run(np.repeat(x, m, 0), identity(4), Act.a1).tolist() == [[1, 1, 1, -1]] * m


def test_signs_that_cancel_give_zero(backend: str) -> None:
    """Exactly, because the next layer takes its sign."""
    matrix = replace(random_matrix(200, 256, bias=False), low=None)
    for m in (1, 5, 9):
        signs = np.where(random_inputs(m, 256) >= 0, np.float32(1), np.float32(-1))
        cancels = signs @ np.where(matrix.weight, 1, -1).T == 0
        assert cancels.any()
        assert (run(signs, matrix, Act.a1).numpy()[cancels] == 0).all()


@each_act
def test_tokens_of_zeros_and_of_subnormal_numbers_give_the_bias(backend: str, act: Act) -> None:
    matrix = random_matrix(65, 257)
    assert matrix.bias is not None
    for m, tiny in product((1, 5, 9), (0.0, 2**-149, 1e-40, 1e-37)):
        x = normal(m, 257).numpy()
        x[0] = tiny
        y = run(x, matrix, act).numpy()
        np.testing.assert_allclose(y[0], matrix.bias, rtol=0, atol=1e-35)
        assert (np.abs(y - formula(x, matrix, act)) <= limits(x, matrix, act)).all()


@pytest.mark.parametrize("act", ROUNDED)
def test_activations_may_be_of_any_magnitude(backend: str, act: Act) -> None:
    matrix = random_matrix(65, 100, bias=False)
    small = replace(matrix, high=matrix.high / 1000, low=None)
    for m, size in product((1, 5, 9), (1e-30, 1e30, 1e36, 1e38)):
        x, used = (normal(m, 100) * size).numpy(), matrix
        if size == 1e38:  # up to the largest number there is; a1 is left out: a sum overflows
            if act == Act.a1:
                continue
            x, used = (normal(m, 100).clamp(-3, 3) * size).numpy(), small
        actual = run(x, used, act).numpy().astype(np.float64)
        assert (np.abs(actual - formula(x, used, act)) <= limits(x, used, act)).all()
