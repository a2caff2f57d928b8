from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from bitmaps.binary.quantize import (
    Gradient,
    Quantizer,
    Scale,
    StraightThrough,
    Values,
    bits,
    scale_of,
    two_values,
)

LOW_AND_HIGH = {"01": (0.0, 1.0), "pm1": (-1.0, 1.0)}
TINIEST = 2**-149
LARGEST = float(np.finfo(np.float32).max)
BOTH: tuple[Values, ...] = ("01", "pm1")
SCALES: tuple[Scale, ...] = ("none", "tensor", "row")
GRADIENTS: tuple[Gradient, ...] = ("identity", "scaled", "clipped")

awkward = st.sampled_from([0.0, -0.0, TINIEST, -TINIEST, LARGEST, -LARGEST])
weights = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=awkward | st.floats(width=32, allow_nan=False, allow_infinity=False),
)
values_of, scales_of = st.sampled_from(BOTH), st.sampled_from(SCALES)
thoroughly = settings(max_examples=150, deadline=None)


def high(weight: NDArray[Any], values: Values) -> NDArray[Any]:
    return weight > 0 if values == "01" else weight >= 0


def mean_scale(weight: NDArray[Any], values: Values) -> float:
    """The scale of all numbers of ``weight`` together."""
    chosen = [abs(float(w)) for w in weight.ravel() if values == "pm1" or w > 0]
    return float(np.mean(chosen)) if chosen else 0.0


def reference_scale(weight: NDArray[Any], values: Values, scale: Scale) -> NDArray[Any]:
    if scale == "none":
        return np.ones((1,) * weight.ndim)
    if scale == "tensor":
        return np.full((1,) * weight.ndim, mean_scale(weight, values))
    return np.apply_along_axis(lambda row: np.array([mean_scale(row, values)]), -1, weight)


def close(actual: torch.Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=TINIEST)


@given(weights, values_of, scales_of)
@thoroughly
def test_scale_is_the_numpy_reference(weight: NDArray[Any], values: Values, scale: Scale) -> None:
    actual = scale_of(torch.from_numpy(weight), values, scale)
    expected = reference_scale(weight, values, scale)
    assert actual.shape == expected.shape
    close(actual, expected)


@given(weights, values_of, scales_of)
@thoroughly
def test_each_weight_becomes_its_rows_low_or_high_value(weight: NDArray[Any], values: Values, scale: Scale) -> None:
    actual = two_values(torch.from_numpy(weight), values, scale)
    low, top = LOW_AND_HIGH[values]
    expected = reference_scale(weight, values, scale) * np.where(high(weight, values), top, low)
    assert actual.dtype == torch.float32
    close(actual, expected)
    rows = actual.reshape(1, -1) if scale != "row" else actual.reshape(-1, weight.shape[-1])
    assert all(row.unique().numel() <= 2 for row in rows)


@pytest.mark.parametrize(("values", "expected"), [("01", [0, 0, 1, 0]), ("pm1", [1, 1, 1, -1])])
def test_zero_is_0_or_plus_1_and_the_smallest_numbers_keep_their_sign(values: Values, expected: list[int]) -> None:
    weight = torch.tensor([0.0, -0.0, TINIEST, -TINIEST])
    assert two_values(weight, values, "none").tolist() == expected
    assert bits(weight, values).tolist() == [e == 1 for e in expected]


@given(weights, values_of, scales_of, st.floats(2**-20, 2**20, width=32))
@thoroughly
def test_binary_weight_is_a_fixed_point_to_the_bit(
    weight: NDArray[Any], values: Values, scale: Scale, factor: float
) -> None:
    low, top = LOW_AND_HIGH[values]
    binary = np.where(high(weight, values), np.float32(top), np.float32(low))
    if scale != "none":
        binary *= np.float32(factor)
    if scale == "row":
        binary *= np.random.default_rng(0).uniform(0.1, 9, (*weight.shape[:-1], 1)).astype(np.float32)
    again = two_values(torch.from_numpy(binary), values, scale)
    assert torch.equal(again.view(torch.int32), torch.from_numpy(binary).view(torch.int32))


@given(arrays(np.float32, (4, 7), elements=st.floats(-100, 100, width=32)), values_of)
@thoroughly
def test_row_scale_is_the_least_squares_solution(weight: NDArray[Any], values: Values) -> None:
    low, top = LOW_AND_HIGH[values]
    scales = scale_of(torch.from_numpy(weight), values, "row")
    for row, scale in zip(weight.astype(np.float64), scales, strict=True):
        unit = np.where(high(row, values), top, low)
        best = np.linalg.lstsq(unit[:, None], row, rcond=None)[0]
        np.testing.assert_allclose(scale.numpy(), best, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("shape", [(5, 1), (1, 1)])
def test_straight_through_is_the_numpy_reference(values: Values, gradient: Gradient, shape: tuple[int, int]) -> None:
    random = np.random.default_rng(7)
    w, g = random.normal(size=(5, 9)).astype(np.float32), random.normal(size=(5, 9)).astype(np.float32)
    a = random.uniform(0.3, 1.2, shape).astype(np.float32)
    w[:, 0], w[:, 1], w[:, 2] = 0.0, a[:, 0], -a[:, 0]  # on the threshold and on the window's edges
    weight, scale = torch.tensor(w, requires_grad=True), torch.tensor(a, requires_grad=True)
    q = StraightThrough.apply(weight, scale, values, gradient)
    q.backward(torch.from_numpy(g))

    low, top = LOW_AND_HIGH[values]
    unit = np.where(high(w, values), top, low)
    close(q.detach(), a * unit)
    close(weight.grad, {"identity": g, "scaled": a * g, "clipped": np.where(np.abs(w) <= a, g, 0)}[gradient])
    to_scale = (g.astype(np.float64) * unit).sum(axis=1 if shape == (5, 1) else None).reshape(shape)
    np.testing.assert_allclose(scale.grad.numpy(), to_scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("scale", SCALES)
def test_quantizer_starts_as_two_values(values: Values, scale: Scale) -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    quantizer = Quantizer(weight, values, scale, "identity", center=False)
    assert torch.equal(quantizer(weight), two_values(weight, values, scale))
    assert quantizer.scale.shape == ((6, 1) if scale == "row" else (1, 1))
    assert [name for name, _ in quantizer.named_parameters()] == ([] if scale == "none" else ["scale"])


def test_scale_none_stays_1() -> None:
    quantizer = Quantizer(torch.full((2, 3), 5.0), "pm1", "none", "identity", center=False)
    assert quantizer.scale.tolist() == [[1.0]]
    assert "scale" in quantizer.state_dict()


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_centered_threshold_is_the_row_mean(values: Values, gradient: Gradient) -> None:
    random = np.random.default_rng(3)
    w = (random.normal(size=(4, 11)) + np.array([[5.0], [-5.0], [0.0], [1.0]])).astype(np.float32)
    g = random.normal(size=w.shape).astype(np.float32)
    weight = torch.tensor(w, requires_grad=True)
    quantizer = Quantizer(weight, values, "row", gradient, center=True)
    q = quantizer(weight)
    q.backward(torch.from_numpy(g))

    centered = w - w.mean(1, keepdims=True)
    a = reference_scale(centered, values, "row")
    low, top = LOW_AND_HIGH[values]
    np.testing.assert_allclose(q.detach().numpy(), a * np.where(high(centered, values), top, low), rtol=1e-5)
    expected = {"identity": g, "scaled": a * g, "clipped": np.where(np.abs(centered) <= a, g, 0)}[gradient]
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("center", [False, True])
def test_effective_weight_is_fp32_under_autocast(values: Values, center: bool) -> None:
    weight = torch.nn.Parameter(torch.randn(6, 40, generator=torch.Generator().manual_seed(0)))
    quantizer = Quantizer(weight, values, "row", "scaled", center)
    expected = quantizer(weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = quantizer(weight)
    assert q.dtype == torch.float32
    assert torch.equal(q, expected)
    q.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
