"""Random matrices and inputs for the tests of the kernels, and the formula in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import ACTS, REFERENCE, Packed, Part
from bitmaps.packed.operations import linears, pack
from bitmaps.vocabulary import Act

Array = NDArray[Any]
KERNELS = list(native.instruction_sets())
BACKENDS = [*KERNELS, REFERENCE]
ROUNDED: tuple[Act, ...] = (Act.a16, Act.a11, Act.a8, Act.a6, Act.a1)
TOP = {Act.a16: 32639, Act.a11: 1023, Act.a8: 127, Act.a6: 31}
# How inputs are rounded, and whether weights are bytes instead of bits: every product there is.
PRODUCTS = [*((act, False) for act in ACTS), (Act.a8, True)]
EPSILON = 1e-12

each_act = pytest.mark.parametrize("act", ACTS)
each_product = pytest.mark.parametrize(("act", "byte"), PRODUCTS)


@dataclass(frozen=True)
class Matrix:
    """A matrix before packing: bits or int8 (n, k), and the scales and bias that belong to it."""

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
        """The dense matrix in fp64, without its column scales."""
        high, low = self.high.astype(np.float64)[:, None], self.lows()[:, None]
        return np.where(self.weight, high, low) if self.weight.dtype == bool else high * self.weight


def identity(n: int) -> Matrix:
    return Matrix(np.eye(n, dtype=bool), np.ones(n, np.float32), np.zeros(n, np.float32))


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
    """Tokens of different magnitudes; some of their numbers are 0."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(m, k)) * 10 ** random.uniform(-2, 2, (m, 1))
    return np.where(random.random((m, k)) < 0.02, 0, x).astype(np.float32)


def columns_applied(x: Array, matrix: Matrix) -> Array:
    return x if matrix.column is None else x * matrix.column


def rounded(x: Array, act: Act) -> tuple[Array, Array]:
    """The integers q and the scale s of each token. As in the kernels, the quotient is a product
    with the inverse in fp32, so that ties fall on the same side."""
    if act == Act.f32:
        return x.astype(np.float64), np.ones((len(x), 1))
    if act == Act.a1:
        return np.where(x >= 0, 1.0, -1.0), np.abs(x.astype(np.float64)).mean(-1, keepdims=True)
    most: Array = np.abs(x).max(-1, keepdims=True)
    if act == Act.a6:  # half the range of the numbers and zero
        low, high = np.minimum(x, 0).min(-1, keepdims=True), np.maximum(x, 0).max(-1, keepdims=True)
        most = high * np.float32(0.5) - low * np.float32(0.5)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(TOP[act]) / most
    finite = np.isfinite(inverse)
    q = np.rint(x * np.where(finite, inverse, np.float32(0))).astype(np.float64)
    return q, np.where(finite, most.astype(np.float64) / TOP[act], 0.0)


def formula(x: Array, matrix: Matrix, act: Act) -> Array:
    q, s = rounded(columns_applied(x, matrix), act)
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
    """The formula with the sum of the terms' magnitudes; fp32 errors are fractions of this."""
    q, s = rounded(columns_applied(x, matrix), act)
    high, low = np.abs(matrix.high).astype(np.float64), np.abs(matrix.lows())
    largest = 127 if matrix.weight.dtype == np.int8 else 1
    y = s * np.abs(q).sum(-1, keepdims=True) * (largest * high + 2 * low)
    return y if matrix.bias is None else y + np.abs(matrix.bias)


def limits(x: Array, matrix: Matrix, act: Act) -> Array:
    """The largest difference from the formula that fp32 explains."""
    limit: Array = 2e-6 * magnitudes(x, matrix, act)
    return limit


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


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm_of(n: int) -> tuple[Tensor, Tensor, float]:
    """Gain, shift and epsilon of a LayerNorm."""
    return normal(n, seed=5), normal(n, seed=6), EPSILON
