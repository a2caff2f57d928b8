"""Products with packed matrices: the kernels and the reference, each against the formula in fp64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import erfc, sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.packed import kernels as native
from bitmaps.packed import operations
from bitmaps.packed.kernels import ACTS, LARGEST_K, REFERENCE, Packed, Part
from bitmaps.packed.operations import (
    attends,
    attention,
    binary_ffnn,
    binary_linear,
    binary_linear_norm,
    binary_linears,
    ffnn,
    linear_norm,
    linears,
    pack,
    unpack,
)
from bitmaps.vocabulary import Act

Array = NDArray[Any]
KERNELS = list(native.instruction_sets())
BACKENDS = [*KERNELS, REFERENCE]
ROUNDED: tuple[Act, ...] = ("a16", "a8", "a1")
TOP = {"a16": 32639, "a8": 127}
INPUTS = (1, 7, 8, 31, 33, 64, 255, 256, 257, 512, 770)
OUTPUTS = (1, 3, 15, 16, 17, 63, 64, 65, 130)  # about the edges of tiles, of 16 and 64
TOKENS = (*range(1, 14), 193)  # about those of 4 and 6; a block of rows is 192
EPSILON = 1e-12

thoroughly = settings(max_examples=40, deadline=None)
each_act = pytest.mark.parametrize("act", ACTS)


@dataclass(frozen=True)
class Matrix:
    """What is packed: bits or int8 (n, k), and the numbers that go with them."""

    weight: Array
    high: Array
    low: Array | None = None
    bias: Array | None = None
    column: Array | None = None

    def part(self) -> Part:
        weight = torch.from_numpy(self.weight)
        rest = (
            None if t is None else torch.from_numpy(t)
            for t in (self.high, self.low, self.bias, self.column)
        )
        return (pack(weight) if self.weight.dtype == bool else weight, *rest)  # type: ignore[return-value]

    def packed(self) -> Packed:
        return Packed([self.part()], self.weight.shape[1])

    def rows(self, n: int) -> Matrix:
        low, bias = (None if t is None else t[:n] for t in (self.low, self.bias))
        return replace(self, weight=self.weight[:n], high=self.high[:n], low=low, bias=bias)

    def lows(self) -> Array:
        if self.low is not None:
            return self.low.astype(np.float64)
        return (
            -self.high.astype(np.float64) if self.weight.dtype == bool else np.zeros(len(self.high))
        )

    def values(self) -> Array:
        """The matrix that it stands for, in fp64, without its column scales."""
        high, low = self.high.astype(np.float64)[:, None], self.lows()[:, None]
        return np.where(self.weight, high, low) if self.weight.dtype == bool else high * self.weight


def random_matrix(
    n: int,
    k: int,
    *,
    low: bool = True,
    bias: bool = True,
    column: bool = False,
    byte: bool = False,
    seed: int = 0,
) -> Matrix:
    random = np.random.default_rng(seed)
    weight = (
        random.integers(-127, 128, (n, k), dtype=np.int8) if byte else random.random((n, k)) < 0.5
    )

    def numbers(size: int) -> Array:
        return random.normal(size=size).astype(np.float32)

    scale = np.float32(1 / sqrt(k) / (64 if byte else 1))
    return Matrix(
        weight,
        scale * numbers(n),
        scale * numbers(n) if low and not byte else None,
        numbers(n) if bias else None,
        numbers(k) if column else None,
    )


def random_inputs(m: int, k: int, seed: int = 1) -> Array:
    """Tokens of different magnitudes, of which some numbers are 0."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(m, k)) * 10 ** random.uniform(-2, 2, (m, 1))
    return np.where(random.random((m, k)) < 0.02, 0, x).astype(np.float32)


def columns_applied(x: Array, matrix: Matrix) -> Array:
    return x if matrix.column is None else x * matrix.column


def whole_numbers(x: Array, act: Act) -> tuple[Array, Array]:
    """q and s of each token. The quotient is taken as everywhere, times the inverse in fp32: ties fall on the same side."""
    if act == "f32":
        return x.astype(np.float64), np.ones((len(x), 1))
    if act == "a1":
        return np.where(x >= 0, 1.0, -1.0), np.abs(x.astype(np.float64)).mean(-1, keepdims=True)
    most: Array = np.abs(x).max(-1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(TOP[act]) / most
    there = np.isfinite(inverse)
    q = np.rint(x * np.where(there, inverse, np.float32(0))).astype(np.float64)
    return q, np.where(there, most.astype(np.float64) / TOP[act], 0.0)


def formula(x: Array, matrix: Matrix, act: Act) -> Array:
    q, s = whole_numbers(columns_applied(x, matrix), act)
    high, low = matrix.high.astype(np.float64), matrix.lows()
    y = s * (
        (high - low) * (q @ matrix.weight.astype(np.float64).T) + low * q.sum(-1, keepdims=True)
    )
    return y if matrix.bias is None else y + matrix.bias


def exact(x: Array, matrix: Matrix) -> Array:
    """The product without any rounding."""
    column = 1.0 if matrix.column is None else matrix.column.astype(np.float64)
    y = (x.astype(np.float64) * column) @ matrix.values().T
    return y if matrix.bias is None else y + matrix.bias


def magnitudes(x: Array, matrix: Matrix, act: Act) -> Array:
    """What the formula gives where nothing cancels: errors of fp32 are fractions of this."""
    q, s = whole_numbers(columns_applied(x, matrix), act)
    high, low = np.abs(matrix.high).astype(np.float64), np.abs(matrix.lows())
    largest = 127 if matrix.weight.dtype == np.int8 else 1
    y = s * np.abs(q).sum(-1, keepdims=True) * (largest * high + 2 * low)
    return y if matrix.bias is None else y + np.abs(matrix.bias)


def limits(x: Array, matrix: Matrix, act: Act, backend: str) -> Array:
    """How far from the formula a product may be. To PyTorch ``127.0 / tensor`` is 127 times the reciprocal, so that the reference
    may take another level next to a tie."""
    limit = 2e-6 * magnitudes(x, matrix, act)
    if backend != REFERENCE or act not in TOP:
        return limit
    scaled = columns_applied(x, matrix).astype(np.float64)
    _, s = whole_numbers(columns_applied(x, matrix), act)
    q = np.abs(scaled / np.where(s > 0, s, np.inf))
    ties = (np.abs(q % 1 - 0.5) <= 4e-7 * q).sum(-1, keepdims=True)
    largest = 127 if matrix.weight.dtype == np.int8 else 1
    return limit + s * ties * largest * (np.abs(matrix.high) + np.abs(matrix.lows()))


def relative(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-300))


def run(x: Array | Tensor, matrix: Matrix, act: Act) -> Tensor:
    (y,) = linears(torch.as_tensor(x), matrix.packed(), act)
    return y


@contextmanager
def using(backend: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", lambda: native.chosen(backend))
        yield


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(n: int) -> tuple[Tensor, Tensor, float]:
    return normal(n, seed=5), normal(n, seed=6), EPSILON


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


# -- the formula --


@pytest.mark.parametrize(("act", "byte"), [*((act, False) for act in ACTS), ("a8", True)])
def test_every_shape_is_the_formula(backend: str, act: Act, byte: bool) -> None:
    for k in INPUTS:
        x = random_inputs(max(TOKENS), k)
        cases = []
        for low, bias, column in product((False, True), repeat=3):
            matrix = random_matrix(
                max(OUTPUTS), k, low=low, bias=bias, column=column, byte=byte, seed=k
            )
            expected, limit = formula(x, matrix, act), limits(x, matrix, act, backend)
            if backend != REFERENCE or act not in TOP:
                assert relative(run(x, matrix, act).numpy(), expected) <= 1e-5
            packed = {n: matrix.rows(n).packed() for n in OUTPUTS}
            cases.append((packed, expected, limit))
        for i, (n, m) in enumerate(
            product(OUTPUTS, TOKENS)
        ):  # an output depends on its token and row alone
            packed, expected, limit = cases[i % len(cases)]
            y = linears(torch.from_numpy(x[:m]), packed[n], act)[0].numpy()
            assert y.shape == (m, n)
            assert y.dtype == np.float32
            assert (np.abs(y - expected[:m, :n]) <= limit[:m, :n]).all(), (m, n, k)


@given(
    st.tuples(st.integers(1, 30), st.integers(1, 140), st.integers(1, 600)),
    st.sampled_from([*((act, False) for act in ACTS), ("a8", True)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_any_shape_is_the_formula_and_all_backends_agree(
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
        assert (np.abs(outputs[-1] - expected) <= limits(x, matrix, act, name)).all(), name
    for y in outputs[:-1]:
        assert (np.abs(y - outputs[-1]) <= limits(x, matrix, act, REFERENCE)).all()


@pytest.mark.parametrize("act", TOP)
def test_the_reference_rounds_activations_as_the_kernels_do(act: Act) -> None:
    x = random_inputs(5000, 770)
    planes, _ = operations.round_inputs(torch.from_numpy(x), act)
    q = planes[0] if act == "a8" else 256 * planes[0] + planes[1]
    assert np.array_equal(q.numpy(), whole_numbers(x, act)[0])


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("low", [False, True])
def test_the_formula_is_the_product_with_the_two_values(low: bool, column: bool) -> None:
    matrix, x = random_matrix(65, 257, low=low, column=column), random_inputs(13, 257)
    assert relative(formula(x, matrix, "f32"), exact(x, matrix)) < 1e-6
    byte = random_matrix(65, 257, column=column, byte=True)
    q, s = whole_numbers(columns_applied(x, byte), "a8")
    assert byte.bias is not None
    assert relative(formula(x, byte, "a8"), s * q @ byte.values().T + byte.bias) < 1e-12


@pytest.mark.parametrize(("act", "limit"), [("f32", 1e-6), ("a16", 1e-4), ("a8", 3e-2)])
@pytest.mark.parametrize("column", [False, True])
def test_rounded_activations_are_as_close_as_they_say(
    backend: str, act: Act, limit: float, column: bool
) -> None:
    for k in (33, 257, 770):
        matrix, x = random_matrix(130, k, bias=False, column=column), normal(13, k).numpy()
        assert relative(run(x, matrix, act).numpy(), exact(x, matrix)) <= limit


def test_products_with_int8_weights_are_as_close(backend: str) -> None:
    matrix, x = random_matrix(130, 257, byte=True), normal(13, 257).numpy()
    assert relative(run(x, matrix, "a8").numpy(), exact(x, matrix)) < 2e-2


@pytest.mark.parametrize("m", [1, 5, 6, 7])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("act", "byte"), [*((act, False) for act in ROUNDED), ("a8", True)])
def test_the_largest_sums_fit(backend: str, act: Act, byte: bool, sign: float, m: int) -> None:
    """As many inputs as there may be, all of them the largest."""
    n = 17
    weight = np.full((n, LARGEST_K), 127, np.int8) if byte else np.ones((n, LARGEST_K), bool)
    weight[1::2] = -128 if byte else 0
    matrix = Matrix(weight, np.linspace(0.5, 1.5, n, dtype=np.float32))
    x = np.full((m, LARGEST_K), sign, np.float32)
    tolerance = 1e-4 if backend == REFERENCE else 1e-6  # PyTorch adds them up in fp32
    np.testing.assert_allclose(run(x, matrix, act).numpy(), exact(x, matrix), rtol=tolerance)


@pytest.mark.parametrize("m", [1, 6])
def test_lower_bytes_may_all_be_the_least_there_is(backend: str, m: int) -> None:
    """128 is 256 - 128: the lower plane of a16 is -128 for all but one of the inputs, which is what the scale is 1 by."""
    k = 5000
    matrix = Matrix(np.ones((17, k), bool), np.ones(17, np.float32))
    x = np.full((m, k), 128, np.float32)
    x[:, 0] = 32639
    np.testing.assert_array_equal(
        run(x, matrix, "a16").numpy(), np.full((m, 17), 32639 + 128 * (k - 1))
    )


def test_ties_of_activations_go_to_even(backend: str) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]], np.float32)
    matrix = Matrix(np.eye(8, dtype=bool), np.ones(8, np.float32), np.zeros(8, np.float32))
    for m in (1, 2, 6):
        y = run(np.repeat(x, m, 0), matrix, "a8")
        assert y.tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]] * m


def test_zero_has_a_positive_sign(backend: str) -> None:
    x = np.array([[0.0, -0.0, 3.0, -1.0]], np.float32)
    matrix = Matrix(np.eye(4, dtype=bool), np.ones(4, np.float32), np.zeros(4, np.float32))
    for m in (1, 4, 6):
        assert run(np.repeat(x, m, 0), matrix, "a1").tolist() == [[1, 1, 1, -1]] * m


@pytest.mark.parametrize("m", [1, 5, 9])
def test_signs_that_cancel_give_zero(backend: str, m: int) -> None:
    """Of which the next layer takes the sign."""
    matrix = replace(random_matrix(200, 256, bias=False), low=None)
    signs = np.where(random_inputs(m, 256) >= 0, np.float32(1), np.float32(-1))
    cancels = signs @ np.where(matrix.weight, 1, -1).T == 0
    assert cancels.any()
    assert (run(signs, matrix, "a1").numpy()[cancels] == 0).all()


# -- fused --


@each_act
@pytest.mark.parametrize(("m", "n", "k"), [(1, 16, 64), (5, 33, 31), (13, 130, 257), (200, 64, 40)])
def test_linear_norm_is_linears_and_layer_norm(
    backend: str, act: Act, m: int, n: int, k: int
) -> None:
    x, residual, (gain, shift, epsilon) = normal(m, k), normal(m, n, seed=2), norm_of(n)
    for column in (False, True):
        packed = random_matrix(n, k, column=column).packed()
        expected = F.layer_norm(residual + linears(x, packed, act)[0], (n,), gain, shift, epsilon)
        torch.testing.assert_close(
            linear_norm(x, packed, residual, *norm_of(n), act), expected, rtol=1e-5, atol=1e-5
        )


@each_act
@pytest.mark.parametrize(
    ("m", "k", "width"), [(1, 16, 64), (5, 33, 130), (13, 130, 257), (200, 40, 64)]
)
def test_ffnn_is_its_two_products_gelu_and_layer_norm(
    backend: str, act: Act, m: int, k: int, width: int
) -> None:
    x, (gain, shift, epsilon) = normal(m, k), norm_of(k)
    for column in (False, True):
        first, second = (
            random_matrix(*shape, bias=False, column=column) for shape in ((width, k), (k, width))
        )
        first = replace(first, high=first.high / 4, low=None)  # see the next test
        expand, contract = first.packed(), second.packed()
        inner = linears(x, expand, act)[0]
        assert inner.min() > -5
        expected = F.layer_norm(
            x + linears(F.gelu(inner), contract, act)[0], (k,), gain, shift, epsilon
        )
        difference = (
            (ffnn(x, expand, contract, gain, shift, epsilon, act) - expected).abs().amax(-1)
        )
        # the last bit of a GELU may take an activation to the next level, which with a16 does not count
        limit, excepted = (
            (2e-5, min(m // 5, 4)) if act in ("a8", "a1") else (2e-4 if act == "a16" else 2e-5, 0)
        )
        assert (difference >= limit).sum() <= excepted
        assert difference.max() < 0.1


def test_ffnn_takes_the_sign_of_gelu(backend: str) -> None:
    """Below -5.2 the kernels' is 0, below -5.5 PyTorch's, and the sign of 0 is positive; above, it is negative up to 0."""
    x = np.array([-5.2, -5.0, -4.0, -2.0, -1.0, -0.1, -1e-3, 5.0], np.float32)
    zeros, ones = np.zeros(8, np.float32), np.ones(8, np.float32)
    expand = Matrix(np.zeros((8, 8), bool), zeros, zeros, x)
    contract = Matrix(np.eye(8, dtype=bool), ones, zeros)
    y = ffnn(
        torch.zeros(1, 8),
        expand.packed(),
        contract.packed(),
        torch.ones(8),
        torch.zeros(8),
        EPSILON,
        "a1",
    )
    assert (y < 0).tolist() == [[True] * 7 + [False]]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("m", [1, 4, 7, 193])
def test_matrices_that_read_the_same_inputs_are_as_each_alone(
    backend: str, act: Act, m: int
) -> None:
    k, sizes = 257, (64, 17, 130)
    x = torch.from_numpy(random_inputs(m, k))
    alone = [random_matrix(n, k, low=i > 0, bias=i < 2, seed=i).part() for i, n in enumerate(sizes)]
    first, second = normal(k, seed=8), normal(k, seed=9)
    for columns in product((None, first, second), repeat=3):
        parts = [(*part[:4], column) for part, column in zip(alone, columns, strict=True)]
        together = linears(x, Packed(parts, k), act)
        for y, part in zip(together, parts, strict=True):
            assert torch.equal(y, linears(x, Packed([part], k), act)[0])


def test_bits_and_bytes_that_read_the_same_inputs_are_as_each_alone(backend: str) -> None:
    k = 130
    parts = [
        random_matrix(33, k, byte=byte, seed=i).part()
        for i, byte in enumerate((False, True, True, False))
    ]
    for m in (1, 5, 6, 193):
        x = torch.from_numpy(random_inputs(m, k))
        for y, part in zip(linears(x, Packed(parts, k), "a8"), parts, strict=True):
            assert torch.equal(y, linears(x, Packed([part], k), "a8")[0])


@pytest.mark.parametrize("name", KERNELS)
@each_act
def test_the_number_of_threads_changes_nothing(
    name: str, act: Act, threads: Callable[[int], None]
) -> None:
    with using(name):
        for m, column in (
            (7, False),
            (193, True),
            (450, False),
        ):  # products enough for more than one
            expand = random_matrix(1200, 257, column=column).packed()
            contract = random_matrix(257, 1200, column=column, seed=1).packed()
            x, results = normal(m, 257), []
            for count in (1, 2, 3):
                threads(count)
                results.append((
                    linears(x, expand, act)[0],
                    linear_norm(normal(m, 1200), contract, x, *norm_of(257), act),
                    ffnn(x, expand, contract, *norm_of(257), act),
                ))  # fmt: skip
            for result in results[1:]:
                assert all(map(torch.equal, result, results[0]))


def test_two_callers_at_once_get_what_each_gets_alone(backend: str) -> None:
    def work(seed: int) -> list[Tensor]:
        torch.set_num_threads(2)  # each of Python's threads has a number of its own
        results = []
        for act in ACTS:
            for m in (1, 5, 40, 200):
                x = normal(m, 257, seed=seed)
                expand = random_matrix(300, 257, seed=seed).packed()
                contract = random_matrix(257, 300, column=True, seed=seed).packed()
                results += linears(x, expand, act)
                results.append(ffnn(x, expand, contract, *norm_of(257), act))
        return results

    with ThreadPoolExecutor(2) as pool:
        alone = {seed: pool.submit(work, seed).result() for seed in (0, 1)}
        for seed, future in [(seed, pool.submit(work, seed)) for _ in range(3) for seed in (0, 1)]:
            for actual, expected in zip(future.result(), alone[seed], strict=True):
                assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


# -- attention --


def attention_of(hidden: int, act: Act, seed: int = 0, **options: bool) -> tuple[Packed, Packed]:
    """Queries, keys and values, and the output projection."""
    project = [
        replace(random_matrix(hidden, hidden, seed=seed + i, **options), low=None) for i in range(3)
    ]
    return Packed([matrix.part() for matrix in project], hidden), random_matrix(
        hidden, hidden, seed=seed + 3
    ).packed()


def attention_in_torch(
    x: Tensor,
    project: Packed,
    output: Packed,
    mask: Tensor | None,
    heads: int,
    norm: tuple[Tensor, Tensor, float],
    act: Act,
) -> Tensor:
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in linears(x, project, act)]
    context = F.scaled_dot_product_attention(*split, attn_mask=mask).transpose(1, 2).flatten(-2)
    return linear_norm(context, output, x, *norm, act)


@pytest.fixture(
    params=[name for name in KERNELS if (found := native.chosen(name)) and found.attends]
)
def attending(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


@each_act
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "size"),
    [
        (1, 1, 1, 32),
        (2, 7, 3, 64),
        (9, 33, 2, 32),
        (5, 64, 1, 96),
        (2, 200, 2, 32),
        (30, 16, 1, 32),
        (1, 385, 1, 32),
    ],
)
def test_attention_is_its_products_and_pytorchs_attention(
    attending: str,
    threads: Callable[[int], None],
    batch: int,
    length: int,
    heads: int,
    size: int,
    column: bool,
    act: Act,
) -> None:
    hidden = heads * size
    project, output = attention_of(hidden, act, column=column)
    x, norm = normal(batch, length, hidden), norm_of(hidden)
    kept = torch.rand(batch, 1, 1, length, generator=torch.Generator().manual_seed(1)) < 0.7
    kept[..., 0] = True
    for mask in (None, kept):
        expected = attention_in_torch(x, project, output, mask, heads, norm, act)
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(attention(x, project, output, mask, heads, *norm, act))
            assert torch.equal(results[0], results[-1])
        difference = (results[0] - expected).abs().amax(-1)
        # the last bit of a context may take it to the next level, or a sign to the other
        limit, excepted = {
            "a8": (1e-4, 0.1),
            "a1": (1e-4, 0.1),
            "a16": (1e-4, 0.0),
            "f32": (1e-4, 0.0),
        }[act]
        assert (difference > limit).float().mean() <= excepted
        assert difference.max() < 0.2


def test_attention_is_exact_to_some_millionths(attending: str) -> None:
    """With matrices that change nothing but the place of a number: against the formula in fp64."""
    length, size = 70, 32
    same = Matrix(
        np.eye(size, dtype=bool), np.ones(size, np.float32), np.zeros(size, np.float32)
    ).part()
    project, output = Packed([same] * 3, size), Packed([same], size)
    x = 3 * normal(2, length, size)
    gain, shift, epsilon = torch.ones(size), torch.zeros(size), EPSILON
    mask = torch.ones(2, 1, 1, length, dtype=torch.bool)
    mask[1, ..., 40:] = False
    wide = x.double()
    scores = (wide @ wide.mT / sqrt(size)).masked_fill(~mask[:, 0], -torch.inf)
    expected = F.layer_norm(wide + scores.softmax(-1) @ wide, (size,), eps=epsilon)
    actual = attention(x, project, output, mask, 1, gain, shift, epsilon, "f32")
    assert (actual - expected).abs().max() < 5e-6


def test_a_token_that_may_attend_to_nothing_gets_zeros(attending: str) -> None:
    project, output = attention_of(32, "f32")
    x, norm, mask = normal(2, 5, 32), norm_of(32), torch.zeros(2, 1, 1, 5, dtype=torch.bool)
    mask[1] = True
    actual = attention(x, project, output, mask, 1, *norm, "f32")
    expected = linear_norm(torch.zeros(5, 32), output, x[0], *norm, "f32")
    torch.testing.assert_close(actual[0], expected)
    torch.testing.assert_close(actual[1:], attention(x[1:], project, output, None, 1, *norm, "f32"))


@each_act
def test_a_sentence_that_is_not_finite_leaves_the_others_alone(attending: str, act: Act) -> None:
    project, output = attention_of(64, act)
    x, norm = normal(3, 6, 64), norm_of(64)
    alone = attention(x, project, output, None, 2, *norm, act)
    x[1, 2, 3] = torch.nan
    actual = attention(x, project, output, None, 2, *norm, act)
    assert actual[1].isnan().all()
    assert torch.equal(actual[[0, 2]], alone[[0, 2]])


def test_attention_takes_any_layout_and_type(attending: str) -> None:
    project, output = attention_of(64, "a8")
    x, norm = normal(4, 6, 64), norm_of(64)
    mask = torch.ones(4, 1, 1, 12, dtype=torch.bool)[..., ::2]
    mask[:, ..., 5] = False
    expected = attention(x, project, output, mask, 2, *norm, "a8")
    assert torch.equal(
        attention(x.mT.contiguous().mT, project, output, mask, 2, *norm, "a8"), expected
    )
    assert torch.equal(attention(x, project, output, mask[:1], 2, *norm, "a8"), expected)
    half = attention(x.bfloat16(), project, output, mask, 2, *norm, "a8")
    assert torch.equal(
        half, attention(x.bfloat16().float(), project, output, mask, 2, *norm, "a8").bfloat16()
    )
    all_or_none = torch.tensor([True, False])[:, None, None, None]
    expected = attention(x[:2], project, output, all_or_none.expand(2, 1, 1, 6), 2, *norm, "a8")
    assert torch.equal(attention(x[:2], project, output, all_or_none, 2, *norm, "a8"), expected)
    for shape in ((0, 6, 64), (4, 0, 64)):
        assert attention(torch.zeros(shape), project, output, None, 2, *norm, "a8").shape == shape


def test_scores_that_overflow_are_nothing_to_attend_to_as_in_pytorch(attending: str) -> None:
    size = 32
    same = Matrix(np.eye(size, dtype=bool), np.ones(size, np.float32), np.zeros(size, np.float32))
    project, output = (
        Packed([same.part(), replace(same, high=-same.high).part(), same.part()], size),
        same.packed(),
    )
    x, norm = torch.full((1, 3, size), 1e30), norm_of(size)
    x[0, 1, 3] = 2e30
    expected = attention_in_torch(x, project, output, None, 1, norm, "f32")
    assert expected.isfinite().all()
    torch.testing.assert_close(attention(x, project, output, None, 1, *norm, "f32"), expected)


def attention_inputs(**changes: Any) -> dict[str, Any]:
    project, output = attention_of(64, "a8")
    gain, shift, epsilon = norm_of(64)
    fitting = {
        "x": normal(2, 5, 64),
        "project": project,
        "output": output,
        "mask": None,
        "heads": 2,
    }
    return fitting | {"gain": gain, "shift": shift, "epsilon": epsilon, "act": "a8"} | changes


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("no attention for .* 4 heads and no mask", {"heads": 4}),
        (r"a mask of torch.bool, \(2, 5\)", {"mask": torch.ones(2, 5, dtype=torch.bool)}),
        ("a mask of torch.int64", {"mask": torch.ones(2, 1, 1, 5, dtype=torch.int64)}),
        (
            r"a mask of torch.bool, \(2, 1, 5, 5\)",
            {"mask": torch.ones(2, 1, 5, 5, dtype=torch.bool)},
        ),
        (r"matrices of \[64\]", {"project": random_matrix(64, 64).packed()}),
        (r"64 to \[32\]", {"output": random_matrix(32, 64).packed()}),
        (r"inputs of \(5, 64\)", {"x": torch.zeros(5, 64)}),
        ("inputs of shape", {"x": torch.zeros(2, 5, 32)}),
        ("act='a2'", {"act": "a2"}),
        ("float32 of", {"gain": torch.zeros(3)}),
    ],
)
def test_attention_refuses_what_does_not_fit(
    attending: str, message: str, changes: dict[str, Any]
) -> None:
    assert attention(**attention_inputs()).shape == (2, 5, 64)
    with pytest.raises(ValueError, match=message):
        attention(**attention_inputs(**changes))


def test_attention_is_refused_where_the_kernels_have_none(backend: str) -> None:
    inputs = attention_inputs()
    found = native.kernels()
    assert attends(inputs["x"], None, 2) is (found is not None and found.attends)
    if found is None or not found.attends:
        with pytest.raises(ValueError, match="the kernels have no attention"):
            attention(**inputs)


def test_other_heads_are_left_to_pytorch(attending: str) -> None:
    assert attends(torch.zeros(1, 1, 96), None, 3)
    assert not attends(torch.zeros(1, 1, 96), None, 2)
    assert not attends(torch.zeros(1, 1, 40), None, 1)


# -- the GELU --


def gelus(x: Array, scale: Array) -> Array:
    """``scale * gelu(x)`` as ``ffnn`` computes it: x is the bias of the first matrix, and each row of the second takes one
    of its outputs. They come twice, with both signs, so that their mean is 0, and epsilon is so large that the standard
    deviation is a power of two, which the gain takes back: LayerNorm changes nothing but the last bit of the mean."""
    n = len(x)
    zeros, power = np.zeros(2 * n, np.float32), 2.0**30
    expand = Matrix(np.zeros((n, 2 * n), bool), zeros[:n], zeros[:n], x)
    contract = Matrix(
        np.tile(np.eye(n, dtype=bool), (2, 1)), np.concatenate([scale, -scale]), zeros
    )
    norm = (torch.full((2 * n,), power), torch.zeros(2 * n), power**2)
    y = ffnn(torch.zeros(1, 2 * n), expand.packed(), contract.packed(), *norm, "f32")[0].numpy()
    return (y[:n] - y[n:]) / 2


def exact_gelu(x: Array) -> Array:
    return np.array([v * 0.5 * erfc(-v / sqrt(2)) for v in x.astype(np.float64)])


def test_gelu_is_exact_to_two_millionths(backend: str) -> None:
    around = np.array([5.2, 5.25, 5.5, 6.0, 8.0, 1e-3, 1e-20, 1e-40, 0.0], np.float32)
    edges = np.concatenate(
        [np.nextafter(around, np.float32(9)), around, np.nextafter(around, np.float32(-9))]
    )
    x = np.concatenate([np.linspace(-10, 10, 2001, dtype=np.float32), edges, -edges])
    for some in np.split(x, range(100, len(x), 100)):
        np.testing.assert_allclose(
            gelus(some, np.ones_like(some)), exact_gelu(some), rtol=0, atol=2e-6
        )


def test_gelu_of_large_numbers_is_themselves_or_zero(backend: str) -> None:
    x = np.array([12.5, 1e3, 4e9, 1e19, 3e19, 1e25, 1.5e38], np.float32)
    scale = np.concatenate([1 / x, 1 / x])
    expected = np.concatenate([np.ones(len(x)), np.zeros(len(x))])
    np.testing.assert_allclose(gelus(np.concatenate([x, -x]), scale), expected, rtol=0, atol=1e-6)


# -- inputs --


def equal(backend: str, actual: Tensor, expected: Tensor) -> None:
    """To the bit; PyTorch's own products may add in another order."""
    tolerance = 1e-5 if backend == REFERENCE else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@each_act
def test_any_layout_and_dimensions_of_inputs(backend: str, act: Act) -> None:
    k, n = 65, 33
    packed = random_matrix(n, k).packed()
    gain, shift, epsilon = norm_of(n)
    x, residual = normal(4, 3, k), normal(4, 3, n, seed=2)
    expected = linears(x, packed, act)[0]
    assert expected.shape == (4, 3, n)
    fused = linear_norm(x, packed, residual, gain, shift, epsilon, act)
    assert fused.shape == residual.shape
    strided = normal(4, 3, 2 * k)
    strided[..., ::2] = x
    for same in (
        x.mT.contiguous().mT,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        strided[..., ::2],
    ):
        assert not same.is_contiguous()
        equal(backend, linears(same, packed, act)[0], expected)
        turned = residual.mT.contiguous().mT
        equal(backend, linear_norm(same, packed, turned, gain, shift, epsilon, act), fused)
    equal(backend, linears(x[0, 0], packed, act)[0], expected[0, 0])
    repeated = x[:, :1].expand(4, 3, k)
    equal(backend, linears(repeated, packed, act)[0], expected[:, :1].expand(4, 3, n))


@each_act
def test_ffnn_takes_any_layout(backend: str, act: Act) -> None:
    expand, contract = random_matrix(33, 16).packed(), random_matrix(16, 33).packed()
    x = normal(4, 3, 16)
    expected = ffnn(x, expand, contract, *norm_of(16), act)
    assert expected.shape == x.shape
    equal(backend, ffnn(x.mT.contiguous().mT, expand, contract, *norm_of(16), act), expected)


@each_act
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_are_of_the_inputs_type(backend: str, act: Act, dtype: torch.dtype) -> None:
    matrix, back = random_matrix(33, 64).packed(), random_matrix(64, 33).packed()
    x, residual = normal(5, 64).to(dtype), normal(5, 33).to(dtype)
    norm, other = norm_of(33), norm_of(64)
    for compute in (
        lambda x, residual: linears(x, matrix, act)[0],
        lambda x, residual: linear_norm(x, matrix, residual, *norm, act),
        lambda x, residual: ffnn(x, matrix, back, *other, act),
    ):
        actual = compute(x, residual)
        assert actual.dtype == dtype
        assert torch.equal(actual, compute(x.float(), residual.float()).to(dtype))


@each_act
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 2)])
def test_no_tokens_give_no_outputs(backend: str, act: Act, shape: Any) -> None:
    matrix, back, x = (
        random_matrix(33, 64).packed(),
        random_matrix(64, 33).packed(),
        torch.zeros(*shape, 64),
    )
    assert ffnn(x, matrix, back, *norm_of(64), act).shape == x.shape
    assert linear_norm(x, matrix, torch.zeros(*shape, 33), *norm_of(33), act).shape == (*shape, 33)
    assert linears(x, matrix, act)[0].shape == (*shape, 33)


@pytest.mark.parametrize("act", ROUNDED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("m", [1, 5, 9, 193])
def test_a_token_that_is_not_finite_is_nan_and_the_others_are_not_touched(
    backend: str, act: Act, bad: float, m: int
) -> None:
    matrix, x = random_matrix(65, 257), normal(m, 257)
    packed, back = matrix.packed(), random_matrix(257, 65).packed()
    norm, other = norm_of(65), norm_of(257)
    residual = normal(m, 65)
    for place in (0, 100, 256):
        token = place % m
        changed = x.clone()
        changed[token, place] = bad
        others = torch.arange(m) != token
        for compute in (
            lambda x: linears(x, packed, act)[0],
            lambda x: linear_norm(x, packed, residual, *norm, act),
            lambda x: ffnn(x, packed, back, *other, act),
        ):
            actual = compute(changed)
            assert actual[token].isnan().all()
            assert torch.equal(actual[others], compute(x)[others])


def test_a_token_that_is_not_finite_is_nan_with_int8_weights_too(backend: str) -> None:
    packed, x = random_matrix(65, 257, byte=True).packed(), normal(9, 257)
    for m in (1, 5, 9):
        changed = x[:m].clone()
        changed[0, 100] = float("nan")
        actual = linears(changed, packed, "a8")[0]
        assert actual[0].isnan().all()
        assert torch.equal(actual[1:], linears(x[:m], packed, "a8")[0][1:])


def test_f32_leaves_what_is_not_finite_to_the_arithmetic(backend: str) -> None:
    packed, x = random_matrix(65, 257).packed(), normal(9, 257)
    changed = x.clone()
    changed[4, 100] = float("nan")
    actual = linears(changed, packed, "f32")[0]
    assert actual[4].isnan().all()
    others = torch.arange(9) != 4
    assert torch.equal(actual[others], linears(x, packed, "f32")[0][others])


@each_act
@pytest.mark.parametrize("m", [1, 5, 9])
def test_tokens_of_zeros_and_of_subnormal_numbers_give_the_bias(
    backend: str, act: Act, m: int
) -> None:
    matrix, x = random_matrix(65, 257), normal(m, 257).numpy()
    assert matrix.bias is not None
    for tiny in (0.0, 2**-149, 1e-40, 1e-37):
        x[0] = tiny
        y = run(x, matrix, act).numpy()
        np.testing.assert_allclose(y[0], matrix.bias, rtol=0, atol=1e-35)
        assert (np.abs(y - formula(x, matrix, act)) <= limits(x, matrix, act, backend)).all()


@pytest.mark.parametrize("act", ROUNDED)
@pytest.mark.parametrize("m", [1, 5, 9])
@pytest.mark.parametrize("size", [1e-30, 1e30, 1e36])
def test_scales_may_be_of_any_magnitude(backend: str, act: Act, m: int, size: float) -> None:
    matrix = random_matrix(65, 100, bias=False)
    x = (normal(m, 100) * size).numpy()
    actual = run(x, matrix, act).numpy().astype(np.float64)
    assert (np.abs(actual - formula(x, matrix, act)) <= limits(x, matrix, act, backend)).all()


@pytest.mark.parametrize("act", ["a16", "a8"])
@pytest.mark.parametrize("m", [1, 5, 9])
def test_activations_may_be_as_large_as_there_are(backend: str, act: Act, m: int) -> None:
    matrix = random_matrix(65, 100, bias=False)
    matrix = replace(matrix, high=matrix.high / 1000, low=None)
    x = (normal(m, 100).clamp(-3, 3) * 1e38).numpy()
    actual = run(x, matrix, act).numpy().astype(np.float64)
    assert (np.abs(actual - formula(x, matrix, act)) <= limits(x, matrix, act, backend)).all()


def test_inputs_are_left_as_they_are(backend: str) -> None:
    x, residual = normal(9, 64), normal(9, 33)
    before = x.clone(), residual.clone()
    matrix, back = (
        random_matrix(33, 64, column=True).packed(),
        random_matrix(64, 33, column=True).packed(),
    )
    for act in ACTS:
        linears(x, matrix, act)
        linear_norm(x, matrix, residual, *norm_of(33), act)
        ffnn(x, matrix, back, *norm_of(64), act)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


# -- what is refused --


def test_too_many_inputs_are_refused() -> None:
    k = LARGEST_K + 1
    weight, high = torch.zeros(1, (k + 7) // 8, dtype=torch.uint8), torch.ones(1)
    with pytest.raises(ValueError, match=f"{k} inputs: valid are 1 to {LARGEST_K}"):
        Packed([(weight, high, None, None, None)], k)
    with pytest.raises(ValueError, match="0 inputs: valid are 1 to"):
        Packed([(weight[:, :0], high, None, None, None)], 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(5, 3, dtype=torch.int64)}, "torch.int64.*valid are uint8.*int8"),
        ({"weight": torch.zeros(5, 3, dtype=torch.bool)}, "torch.bool.*valid are uint8.*int8"),
        ({"weight": torch.zeros(5, 2, dtype=torch.uint8)}, r"\(5, 2\).*17"),
        ({"weight": torch.zeros(5, 4, dtype=torch.uint8)}, r"\(5, 4\).*17"),
        ({"weight": torch.zeros(5, 16, dtype=torch.int8), "low": None}, r"\(5, 16\).*17"),
        ({"weight": torch.zeros(15, dtype=torch.uint8)}, r"\(15,\).*17"),
        ({"weight": torch.zeros(5, 17, dtype=torch.int8)}, "int8.*no low"),
        ({"high": torch.zeros(4)}, r"\(4,\) where float32 of \(5,\)"),
        ({"high": torch.zeros(5, 1)}, r"\(5, 1\) where float32 of \(5,\)"),
        ({"high": torch.zeros(5, dtype=torch.float64)}, r"float64.*where float32 of \(5,\)"),
        ({"low": torch.zeros(6)}, r"\(6,\) where float32 of \(5,\)"),
        ({"low": torch.zeros(5, dtype=torch.bfloat16)}, r"bfloat16.*where float32 of \(5,\)"),
        ({"bias": torch.zeros(17)}, r"\(17,\) where float32 of \(5,\)"),
        ({"bias": torch.zeros(5, dtype=torch.float16)}, r"float16.*where float32 of \(5,\)"),
        ({"column": torch.zeros(5)}, r"\(5,\) where float32 of \(17,\)"),
        ({"column": torch.zeros(17, dtype=torch.int64)}, r"int64.*where float32 of \(17,\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    names = ("weight", "high", "low", "bias", "column")
    parts = dict(zip(names, random_matrix(5, 17, column=True).part(), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        Packed([tuple(parts.values())], 17)
    with pytest.raises(ValueError, match=message):
        binary_linear(torch.zeros(2, 17), **parts)


def refused(backend: str, message: str, compute: Callable[[], object]) -> None:
    with using(backend), pytest.raises(ValueError, match=message):
        compute()


def test_inputs_of_another_size_are_refused(backend: str) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 18)
    message = r"inputs of shape \(2, 18\) where the matrix takes 17 numbers"
    refused(backend, message, lambda: linears(x, matrix, "a8"))
    refused(backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), "a8"))
    refused(
        backend, message, lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), "a8")
    )


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_inputs_that_are_not_floating_point_are_refused(backend: str, dtype: torch.dtype) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 17, dtype=dtype)
    message = f"{dtype}; valid are floating point"
    refused(backend, message, lambda: linears(x, matrix, "a8"))
    refused(backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), "a8"))
    refused(
        backend, message, lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), "a8")
    )


def test_a_single_number_is_refused(backend: str) -> None:
    refused(
        backend,
        r"inputs of shape \(\) where the matrix takes 17",
        lambda: linears(torch.tensor(1.0), random_matrix(5, 17).packed(), "a8"),
    )


def test_what_is_on_another_device_is_refused(backend: str) -> None:
    def moved(part: Part) -> Part:
        return tuple(None if t is None else t.to("meta") for t in part)  # type: ignore[return-value]

    x, here = torch.zeros(2, 17), random_matrix(5, 17)
    away, gain = Packed([moved(here.part())], 17), norm_of(5)
    refused(backend, "inputs on cpu where the matrix is elsewhere", lambda: linears(x, away, "a8"))
    refused(backend, "inputs on meta", lambda: linears(x.to("meta"), here.packed(), "a8"))
    refused(
        backend, "several devices: cpu, meta", lambda: Packed([here.part(), moved(here.part())], 17)
    )
    message = "a residual of .* on meta"
    refused(
        backend,
        message,
        lambda: linear_norm(x, here.packed(), torch.zeros(2, 5, device="meta"), *gain, "a8"),
    )
    there = (gain[0].to("meta"), *gain[1:])
    refused(
        backend,
        "on meta where float32",
        lambda: linear_norm(x, here.packed(), torch.zeros(2, 5), *there, "a8"),
    )
    back = Packed([moved(random_matrix(17, 5).part())], 5)
    refused(
        backend, "on different devices", lambda: ffnn(x, here.packed(), back, *norm_of(17), "a8")
    )


def test_activations_that_do_not_exist_are_refused(backend: str) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 17)
    act: Any = "a4"
    message = "act='a4'.*valid are f32, a16, a8, a1"
    refused(backend, message, lambda: linears(x, matrix, act))
    refused(backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), act))
    refused(
        backend, message, lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), act)
    )
    refused(backend, message, lambda: binary_linear(x, *random_matrix(5, 17).part(), act))


@pytest.mark.parametrize("act", ["f32", "a16", "a1"])
def test_int8_weights_take_a8_alone(backend: str, act: Act) -> None:
    bits, byte = random_matrix(5, 17), random_matrix(5, 17, byte=True)
    x, message = torch.zeros(2, 17), f"act='{act}' is not there.*valid are a8$"
    refused(backend, message, lambda: linears(x, byte.packed(), act))
    refused(backend, message, lambda: linears(x, Packed([bits.part(), byte.part()], 17), act))
    refused(
        backend, message, lambda: linear_norm(x, byte.packed(), torch.zeros(2, 5), *norm_of(5), act)
    )
    refused(
        backend,
        message,
        lambda: ffnn(x, byte.packed(), random_matrix(17, 5).packed(), *norm_of(17), act),
    )


def test_int8_weights_take_a8_alone_in_the_second_matrix_of_ffnn_too(backend: str) -> None:
    expand, contract = random_matrix(5, 17).packed(), random_matrix(17, 5, byte=True).packed()
    refused(backend, "a8$", lambda: ffnn(torch.zeros(2, 17), expand, contract, *norm_of(17), "a16"))


def test_blocks_that_do_not_fit_are_refused(backend: str) -> None:
    x, first = torch.zeros(2, 17), random_matrix(5, 17)
    for contract in (random_matrix(17, 6), random_matrix(16, 5)):
        refused(
            backend,
            r"17 to \[5",
            lambda c=contract: ffnn(x, first.packed(), c.packed(), *norm_of(17), "a8"),
        )
    two = Packed([first.part(), first.part()], 17)
    refused(
        backend,
        r"17 to \[5",
        lambda: ffnn(x, two, random_matrix(17, 5).packed(), *norm_of(17), "a8"),
    )


def wrong_norms(n: int) -> list[tuple[Tensor, Tensor]]:
    """Gain and shift; none that the kernels would read beyond, should they be taken."""
    right = torch.zeros(n)
    return [
        (right.double(), right),
        (right, right.double()),
        (torch.zeros(n, 2), right),
        (right, torch.zeros(n + 1)),
    ]


def test_residuals_that_do_not_fit_are_refused(backend: str) -> None:
    matrix, x, norm = random_matrix(5, 17).packed(), torch.zeros(2, 17), norm_of(5)
    for residual in (torch.zeros(3, 5), torch.zeros(2, 6), torch.zeros(2, 2, 5)):
        refused(
            backend, "valid|where|of", lambda r=residual: linear_norm(x, matrix, r, *norm, "a8")
        )


def test_gains_and_shifts_that_do_not_fit_are_refused(backend: str) -> None:
    matrix, back, x = (
        random_matrix(5, 17).packed(),
        random_matrix(17, 5).packed(),
        torch.zeros(2, 17),
    )
    for gain, shift in wrong_norms(5):
        refused(
            backend,
            "valid|where|of",
            lambda g=gain, s=shift: linear_norm(x, matrix, torch.zeros(2, 5), g, s, 1e-5, "a8"),
        )
    for gain, shift in wrong_norms(17):
        refused(
            backend,
            "valid|where|of",
            lambda g=gain, s=shift: ffnn(x, matrix, back, g, s, 1e-5, "a8"),
        )


def test_several_matrices_are_refused_where_there_is_one_output(backend: str) -> None:
    two = Packed([random_matrix(5, 17).part()] * 2, 17)
    refused(
        backend,
        "valid|where|of",
        lambda: linear_norm(torch.zeros(2, 17), two, torch.zeros(2, 5), *norm_of(5), "a8"),
    )


def test_gains_and_shifts_of_any_layout(backend: str) -> None:
    matrix, back, x = random_matrix(5, 17).packed(), random_matrix(17, 5).packed(), normal(2, 17)
    for n, compute in (
        (5, lambda *norm: linear_norm(x, matrix, x[:, :5], *norm, "a8")),
        (17, lambda *norm: ffnn(x, matrix, back, *norm, "a8")),
    ):
        gain, shift = normal(n, 2).unbind(1)
        assert torch.equal(
            compute(gain, shift, 1e-5), compute(gain.contiguous(), shift.contiguous(), 1e-5)
        )


# -- as operations of PyTorch --


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """One call of each custom operation, with and without the parts that may be missing."""
    x, residual = normal(3, 4, 64), normal(3, 4, 33)
    first, second = (
        random_matrix(33, 64, column=True).part(),
        random_matrix(16, 64, low=False, bias=False).part(),
    )
    norm, other = norm_of(33), norm_of(64)
    back, plain = random_matrix(64, 33).part(), random_matrix(33, 64, low=False, bias=False).part()
    lists = tuple(map(list, zip(first, second, strict=True)))
    return [
        (binary_linears, (x, *lists, "a8")),
        (
            binary_linears,
            (x.bfloat16(), *([part] for part in random_matrix(5, 64, byte=True).part()), "a8"),
        ),
        (binary_linear_norm, (x, *first, residual, *norm, "a16")),
        (binary_linear_norm, (x.half(), *plain, residual.half(), *norm, "a1")),
        (binary_ffnn, (x, *first, *back, *other, "a8")),
        (binary_ffnn, (x, *plain, *back, *other, "f32")),
    ]


@pytest.mark.parametrize("i", range(6))
def test_custom_operations_are_what_they_declare(i: int) -> None:
    operation, arguments = calls()[i]
    torch.library.opcheck(operation, arguments)


@pytest.mark.parametrize("i", [0, 2, 4])
def test_custom_operations_on_inputs_of_any_layout_are_what_they_declare(i: int) -> None:
    operation, (x, *rest) = calls()[i]
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    torch.library.opcheck(operation, (turned, *rest), test_utils=("test_schema", "test_faketensor"))


def test_custom_operations_are_the_functions(backend: str) -> None:
    x, residual, (gain, shift, epsilon) = normal(3, 64), normal(3, 33), norm_of(33)
    matrix, back = random_matrix(33, 64, column=True), random_matrix(64, 33, low=False)
    packed = matrix.packed()
    assert torch.equal(binary_linear(x, *matrix.part()), linears(x, packed, "a8")[0])
    assert torch.equal(binary_linear(x, *matrix.part(), "a16"), linears(x, packed, "a16")[0])
    for y, expected in zip(
        binary_linears(x, *([t, t] for t in matrix.part()), "a1"),
        2 * linears(x, packed, "a1"),
        strict=True,
    ):
        assert torch.equal(y, expected)
    assert torch.equal(
        binary_linear_norm(x, *matrix.part(), residual, gain, shift, epsilon, "a8"),
        linear_norm(x, packed, residual, gain, shift, epsilon, "a8"),
    )
    assert torch.equal(
        binary_ffnn(x, *matrix.part(), *back.part(), *norm_of(64), "a8"),
        ffnn(x, packed, back.packed(), *norm_of(64), "a8"),
    )


class Layer(nn.Module):
    """A product between two other operations."""

    weight: Tensor
    high: Tensor
    low: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in zip(
            ("weight", "high", "low", "bias"), random_matrix(33, 64).part()[:4], strict=True
        ):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return binary_linear(x + 1, self.weight, self.high, self.low, self.bias, act="a8").relu()


def test_compiled_without_a_break_it_is_the_same() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for m in (1, 3, 7):
        torch.testing.assert_close(compiled(normal(m, 64)), layer(normal(m, 64)))


@pytest.mark.slow  # compiles C++
def test_compiled_by_inductor_it_is_the_same() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True)
    for m in (1, 3, 7):
        torch.testing.assert_close(compiled(normal(m, 64)), layer(normal(m, 64)))


def test_exported_it_is_the_same() -> None:
    layer = Layer()
    exported = torch.export.export(
        layer, (normal(3, 64),), dynamic_shapes=({0: torch.export.Dim("tokens")},)
    )
    assert "bitmaps.binary_linears" in exported.graph_module.code
    module = exported.module()
    for m in (2, 3, 9):
        torch.testing.assert_close(module(normal(m, 64)), layer(normal(m, 64)))
