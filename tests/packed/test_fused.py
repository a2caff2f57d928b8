"""Products with what follows them: LayerNorm, GELU, several matrices at once, and several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle, product
from math import erfc, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packed.matrices import (
    EPSILON,
    KERNELS,
    Array,
    Matrix,
    each_act,
    identity,
    norm_of,
    normal,
    random_inputs,
    random_matrix,
    using,
)
from torch import Tensor

from bitmaps.bert.activations import SignedGELU
from bitmaps.packed.kernels import ACTS, Packed
from bitmaps.packed.operations import ffnn, linear_norm, linears
from bitmaps.vocabulary import Act


@each_act
def test_linear_norm_is_linears_and_layer_norm(backend: str, act: Act) -> None:
    shapes = [(1, 16, 64), (5, 33, 31), (13, 130, 257), (200, 64, 40)]
    for (m, n, k), column in product(shapes, (False, True)):
        x, residual, (gain, shift, epsilon) = normal(m, k), normal(m, n, seed=2), norm_of(n)
        packed = random_matrix(n, k, column=column).packed()
        expected = F.layer_norm(residual + linears(x, packed, act)[0], (n,), gain, shift, epsilon)
        torch.testing.assert_close(
            linear_norm(x, packed, residual, *norm_of(n), act), expected, rtol=1e-5, atol=1e-5
        )


@each_act
def test_ffnn_is_its_two_products_gelu_and_layer_norm(backend: str, act: Act) -> None:
    shapes = [(1, 16, 64), (5, 33, 130), (13, 130, 257), (200, 40, 64)]
    # the last bit of a GELU may move an activation to the next integer; with a16 that is negligible
    limit = 2e-4 if act == Act.a16 else 2e-5
    for (m, k, width), column in product(shapes, (False, True)):
        x, (gain, shift, epsilon) = normal(m, k), norm_of(k)
        first, second = (
            random_matrix(*shape, bias=False, column=column) for shape in ((width, k), (k, width))
        )
        first = replace(first, low=None)
        expand, contract = first.packed(), second.packed()
        inner = linears(x, expand, act)[0]
        expected = F.layer_norm(
            x + linears(SignedGELU()(inner), contract, act)[0], (k,), gain, shift, epsilon
        )
        actual = ffnn(x, expand, contract, gain, shift, epsilon, act)
        difference = (actual - expected).abs().amax(-1)
        excepted = min(m // 5, 4) if act in (Act.a11, Act.a8, Act.a6) else 0
        assert (difference >= limit).sum() <= excepted
        assert difference.max() < 0.1


def signs_of_gelu(x: Array) -> Array:
    """The signs that the second matrix of a block reads, where x is the bias of the first."""
    n = len(x)
    zeros = np.zeros(n, np.float32)
    expand = Matrix(np.zeros((n, n), bool), zeros, zeros, x).packed()
    norm = (torch.ones(n), torch.zeros(n), EPSILON)
    one = np.full(n, 1 / np.abs(x).mean(dtype=np.float64), np.float32)
    contract = replace(identity(n), high=one).packed()
    y = ffnn(torch.zeros(1, n), expand, contract, *norm, Act.a1)
    return np.where(y[0].numpy() > 0, 1, -1)


def test_gelu_has_the_sign_of_its_argument(backend: str) -> None:
    """Over all exponents, subnormal numbers among them, and densely where erf rounds to -1."""
    exponents = np.arange(-149, 121)
    mantissas = np.array([1.0, 1.25, 1.625, 1.9999999])
    every = np.ldexp(mantissas[:, None], exponents).ravel()
    tail = np.concatenate([np.linspace(4.5, 6, 3000), np.linspace(6, 40, 500)])
    beside = 5.2 + np.arange(-200, 200) * 2.0**-21
    positive = np.concatenate([every, tail, beside]).astype(np.float32)
    for some in np.array_split(positive, 8):
        some = np.append(some, np.float32(1))  # or else the scale may be 0
        x = np.concatenate([some, -some])  # so that the mean lies between the signs
        np.testing.assert_array_equal(signs_of_gelu(x), np.sign(x))


def test_gelu_of_zero_has_a_positive_sign(backend: str) -> None:
    x = np.array([0.0, -0.0, -1.0, 1.0], np.float32)
    assert signs_of_gelu(x).tolist() == [1, 1, -1, 1]


def test_no_sign_of_a_random_block_flips(backend: str) -> None:
    """Of inputs so large that GELU is nearly 0 for many of them."""
    for seed in range(4):
        expand = replace(random_matrix(300, 64, seed=seed), low=None).packed()
        contract = replace(random_matrix(64, 300, seed=seed + 9), low=None).packed()
        x = 8 * normal(40, 64, seed=seed)
        inner = linears(x, expand, Act.a1)[0]
        assert (inner < -5.5).float().mean() > 0.1
        second = linears(SignedGELU()(inner), contract, Act.a1)[0]
        expected = F.layer_norm(x + second, (64,), *norm_of(64))
        actual = ffnn(x, expand, contract, *norm_of(64), Act.a1)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# -- several matrices --


@each_act
def test_matrices_that_read_the_same_inputs_are_as_each_alone(backend: str, act: Act) -> None:
    k, sizes = 257, (64, 17, 130)
    alone = [random_matrix(n, k, low=i > 0, bias=i < 2, seed=i).part() for i, n in enumerate(sizes)]
    choices = product((None, normal(k, seed=8), normal(k, seed=9)), repeat=3)
    for columns, m in zip(choices, cycle((1, 4, 7, 193))):
        x = torch.from_numpy(random_inputs(m, k))
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
        for y, part in zip(linears(x, Packed(parts, k), Act.a8), parts, strict=True):
            assert torch.equal(y, linears(x, Packed([part], k), Act.a8)[0])


# -- threads --


@pytest.mark.parametrize("name", KERNELS)
@each_act
def test_the_number_of_threads_changes_nothing(
    name: str, act: Act, threads: Callable[[int], None]
) -> None:
    """With enough products for more than one thread: few tokens, and more than one block of 192."""
    cases = ((7, 2400, False), (193, 130, True), (450, 130, False))
    with using(name):
        for m, n, column in cases:
            assert m * n * 257 > 2 * 2**21  # SMALL in native/stages.h, twice for signs
            expand = random_matrix(n, 257, column=column).packed()
            contract = random_matrix(257, n, column=column, seed=1).packed()
            x, results = normal(m, 257), []
            for count in (1, 2, 3):
                threads(count)
                results.append((
                    linears(x, expand, act)[0],
                    linear_norm(normal(m, n), contract, x, *norm_of(257), act),
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


# -- the GELU --


def gelus(x: Array, scale: Array) -> Array:
    """``scale * gelu(x)`` as ``ffnn`` computes it. x is the bias of the first matrix, and each row
    of the second takes one of its outputs. The rows come twice, with both signs, so that their mean
    is 0. Epsilon is so large that the standard deviation is a power of two, which the gain undoes:
    LayerNorm changes nothing but the last bit of the mean."""
    n = len(x)
    zeros, power = np.zeros(2 * n, np.float32), 2.0**30
    expand = Matrix(np.zeros((n, 2 * n), bool), zeros[:n], zeros[:n], x)
    contract = Matrix(
        np.tile(np.eye(n, dtype=bool), (2, 1)), np.concatenate([scale, -scale]), zeros
    )
    norm = (torch.full((2 * n,), power), torch.zeros(2 * n), power**2)
    y = ffnn(torch.zeros(1, 2 * n), expand.packed(), contract.packed(), *norm, Act.f32)[0].numpy()
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
        actual = gelus(some, np.ones_like(some))
        np.testing.assert_allclose(actual, exact_gelu(some), rtol=0, atol=2e-6)


def test_gelu_of_large_numbers_is_themselves_or_zero(backend: str) -> None:
    x = np.array([12.5, 1e3, 4e9, 1e19, 3e19, 1e25, 1.5e38], np.float32)
    scale = np.concatenate([1 / x, 1 / x])
    expected = np.concatenate([np.ones(len(x)), np.zeros(len(x))])
    np.testing.assert_allclose(gelus(np.concatenate([x, -x]), scale), expected, rtol=0, atol=1e-6)
