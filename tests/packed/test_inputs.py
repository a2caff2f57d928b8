"""Inputs of every layout, type and number of tokens, and numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from packed.matrices import REFERENCE, ROUNDED, each_act, norm_of, normal, random_matrix
from torch import Tensor

from bitmaps.packed.kernels import ACTS
from bitmaps.packed.operations import ffnn, linear_norm, linears
from bitmaps.vocabulary import Act


def equal(backend: str, actual: Tensor, expected: Tensor) -> None:
    """To the bit; PyTorch's own products may add in another order."""
    tolerance = 1e-5 if backend == REFERENCE else 0
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def operations_of(n: int, k: int, act: Act) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Each operation as a function of x (..., k) and a residual (..., n)."""
    matrix, back = random_matrix(n, k).packed(), random_matrix(k, n).packed()
    return [
        lambda x, residual: linears(x, matrix, act)[0],
        lambda x, residual: linear_norm(x, matrix, residual, *norm_of(n), act),
        lambda x, residual: ffnn(x, matrix, back, *norm_of(k), act),
    ]


@each_act
def test_any_layout_and_dimensions_of_inputs(backend: str, act: Act) -> None:
    k, n = 65, 33
    x, residual = normal(4, 3, k), normal(4, 3, n, seed=2)
    turned = residual.mT.contiguous().mT
    strided = normal(4, 3, 2 * k)
    strided[..., ::2] = x
    layouts = (
        x.mT.contiguous().mT,
        x.transpose(0, 1).contiguous().transpose(0, 1),
        strided[..., ::2],
    )
    assert not any(t.is_contiguous() for t in (*layouts, turned))
    for compute, size in zip(operations_of(n, k, act), (n, n, k), strict=True):
        expected = compute(x, residual)
        assert expected.shape == (4, 3, size)
        for same in layouts:
            equal(backend, compute(same, turned), expected)
        equal(backend, compute(x[0, 0], residual[0, 0]), expected[0, 0])
        repeated = compute(x[:, :1].expand(4, 3, k), residual[:, :1].expand(4, 3, n))
        equal(backend, repeated, expected[:, :1].expand(4, 3, size))


@each_act
def test_outputs_are_of_the_inputs_type(backend: str, act: Act) -> None:
    computations = operations_of(33, 64, act)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        x, residual = normal(5, 64).to(dtype), normal(5, 33).to(dtype)
        for compute in computations:
            actual = compute(x, residual)
            assert actual.dtype == dtype
            assert torch.equal(actual, compute(x.float(), residual.float()).to(dtype))


@each_act
def test_no_tokens_give_no_outputs(backend: str, act: Act) -> None:
    computations = operations_of(33, 64, act)
    shapes: tuple[tuple[int, ...], ...] = ((0,), (2, 0), (0, 2))
    for shape, (compute, size) in product(shapes, zip(computations, (33, 33, 64), strict=True)):
        y = compute(torch.zeros(*shape, 64), torch.zeros(*shape, 33))
        assert y.shape == (*shape, size)


@pytest.mark.parametrize("act", ROUNDED)
def test_a_token_that_is_not_finite_is_nan_and_the_others_are_not_touched(
    backend: str, act: Act
) -> None:
    computations = operations_of(65, 257, act)
    for i, m in enumerate((1, 5, 9, 193)):
        x, residual = normal(m, 257), normal(m, 65)
        expected = [compute(x, residual) for compute in computations]
        for j, bad in enumerate((float("nan"), float("inf"), -float("inf"))):
            place = (0, 100, 256)[(i + j) % 3]
            token = place % m
            others = torch.arange(m) != token
            changed = x.clone()
            changed[token, place] = bad
            for compute, before in zip(computations, expected, strict=True):
                actual = compute(changed, residual)
                assert actual[token].isnan().all()
                assert torch.equal(actual[others], before[others])


@pytest.mark.parametrize(("act", "byte"), [(Act.a8, True), (Act.f32, False)])
def test_nan_in_a_token_is_nan_with_int8_weights_and_without_rounding_too(
    backend: str, act: Act, byte: bool
) -> None:
    packed, x = random_matrix(65, 257, byte=byte).packed(), normal(9, 257)
    for m in (1, 5, 9):
        changed, token = x[:m].clone(), m // 2
        changed[token, 100] = float("nan")
        actual = linears(changed, packed, act)[0]
        others = torch.arange(m) != token
        assert actual[token].isnan().all()
        assert torch.equal(actual[others], linears(x[:m], packed, act)[0][others])


def test_inputs_are_left_as_they_are(backend: str) -> None:
    x, residual = normal(9, 64), normal(9, 33)
    before = x.clone(), residual.clone()
    matrix = random_matrix(33, 64, column=True).packed()
    back = random_matrix(64, 33, column=True).packed()
    for act in ACTS:
        linears(x, matrix, act)
        linear_norm(x, matrix, residual, *norm_of(33), act)
        ffnn(x, matrix, back, *norm_of(64), act)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])


def test_gains_and_shifts_of_any_layout(backend: str) -> None:
    matrix, back, x = random_matrix(5, 17).packed(), random_matrix(17, 5).packed(), normal(2, 17)
    for n, compute in (
        (5, lambda *norm: linear_norm(x, matrix, x[:, :5], *norm, Act.a8)),
        (17, lambda *norm: ffnn(x, matrix, back, *norm, Act.a8)),
    ):
        gain, shift = normal(n, 2).unbind(1)
        assert not gain.is_contiguous()
        assert torch.equal(
            compute(gain, shift, 1e-5), compute(gain.contiguous(), shift.contiguous(), 1e-5)
        )
