from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from quantize.quantizer_by_hand import (
    BOTH,
    CENTERS,
    GRADIENTS,
    LOW_AND_HIGH,
    SCALED_VALUES,
    SCALINGS,
    TINIEST,
    assert_same,
    best_factors,
    close,
    eighths,
    even_magnitudes,
    high,
    learned_by,
    move_scales,
    normal,
    rank_one_part,
    reference,
    reference_scale,
    results,
    scales_of,
    seeds,
    thoroughly,
    values_of,
    weights,
)
from torch import nn

from bitmaps.quantize.quantizer import (
    Quantization,
    Quantizer,
    StraightThrough,
    bits,
    scale_of,
    two_values,
    units,
)
from bitmaps.vocabulary import Center, Gradient, Scale, Scaling, ValueSet


@given(weights, values_of, scales_of)
@thoroughly
def test_scale_is_the_numpy_reference(weight: NDArray[Any], values: ValueSet, scale: Scale) -> None:
    actual, column = scale_of(torch.from_numpy(weight), values, scale)
    expected = reference_scale(weight, values, scale)
    assert column is None
    assert actual.shape == expected.shape
    close(actual, expected)


@given(weights, values_of, scales_of)
@thoroughly
def test_each_weight_becomes_its_rows_low_or_high_value(
    weight: NDArray[Any], values: ValueSet, scale: Scale
) -> None:
    actual = two_values(torch.from_numpy(weight), values, scale)
    low, top = LOW_AND_HIGH[values]
    expected = reference_scale(weight, values, scale) * np.where(high(weight, values), top, low)
    assert actual.dtype == torch.float32
    close(actual, expected)
    rows = actual.reshape(1, -1) if scale != "row" else actual.reshape(-1, weight.shape[-1])
    assert all(row.unique().numel() <= 2 for row in rows)


@pytest.mark.parametrize(("values", "expected"), [("01", [0, 0, 1, 0]), ("pm1", [1, 1, 1, -1])])
def test_zero_is_0_or_plus_1_and_the_smallest_numbers_keep_their_sign(
    values: ValueSet, expected: list[int]
) -> None:
    weight = torch.tensor([0.0, -0.0, TINIEST, -TINIEST])
    assert two_values(weight, values, "none").tolist() == expected
    assert units(weight, values).tolist() == expected
    assert bits(weight, values).tolist() == [e == 1 for e in expected]


@given(weights, values_of, scales_of, st.floats(2**-20, 2**20, width=32))
@thoroughly
def test_binary_weight_is_a_fixed_point_to_the_bit(
    weight: NDArray[Any], values: ValueSet, scale: Scale, factor: float
) -> None:
    low, top = LOW_AND_HIGH[values]
    binary = np.where(high(weight, values), np.float32(top), np.float32(low))
    if scale != "none":
        binary *= np.float32(factor)
    if scale == "row":
        binary *= (
            np.random.default_rng(0).uniform(0.1, 9, (*weight.shape[:-1], 1)).astype(np.float32)
        )
    again = two_values(torch.from_numpy(binary), values, scale)
    assert torch.equal(again.view(torch.int32), torch.from_numpy(binary).view(torch.int32))


@given(arrays(np.float32, (4, 7), elements=st.floats(-100, 100, width=32)), values_of)
@thoroughly
def test_row_scale_is_the_least_squares_solution(weight: NDArray[Any], values: ValueSet) -> None:
    low, top = LOW_AND_HIGH[values]
    scales, _ = scale_of(torch.from_numpy(weight), values, "row")
    for row, scale in zip(weight.astype(np.float64), scales, strict=True):
        unit = np.where(high(row, values), top, low)
        best = np.linalg.lstsq(unit[:, None], row, rcond=None)[0]
        np.testing.assert_allclose(scale.numpy(), best, rtol=1e-5, atol=1e-12)


@given(even_magnitudes, st.integers(-60, 60))
@thoroughly
def test_rank_one_scales_are_the_first_singular_vectors(
    weight: NDArray[Any], exponent: int
) -> None:
    weight = weight * np.float32(2.0**exponent)
    row, column = scale_of(torch.from_numpy(weight), "pm1", "rank_one")
    assert column is not None
    assert row.shape == (*weight.shape[:-1], 1)
    assert column.shape == weight.shape[-1:]
    assert row.dtype == column.dtype == torch.float32
    expected = rank_one_part(weight)
    np.testing.assert_allclose((row * column).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(column.mean(), 1, rtol=1e-5)
    signs = np.where(weight >= 0, 1, -1)
    np.testing.assert_allclose(
        two_values(torch.from_numpy(weight), "pm1", "rank_one").numpy(), signs * expected, rtol=1e-5
    )


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("shape", [(2, 40), (40, 2), (24, 36), (64, 96)])
def test_rank_one_of_normal_weights(values: ValueSet, shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    row, column = scale_of(weight, values, "rank_one")
    assert column is not None
    assert column.mean().item() == pytest.approx(1)
    actual, expected = (row * column).numpy(), rank_one_part(weight.numpy(), values)
    if values == "pm1" or min(shape) > 2:
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    unit, w = units(weight, values).numpy(), weight.numpy().astype(np.float64)
    errors = [float(np.square(magnitude * unit - w).sum()) for magnitude in (actual, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


@given(
    arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=6),
        elements=st.floats(-2, 2, width=32),
    )
)
@thoroughly
def test_rank_one_is_closer_to_the_weight_than_a_scale_a_row(weight: NDArray[Any]) -> None:
    for values in BOTH:
        errors = {}
        for scale in ("row", "rank_one"):
            found = two_values(torch.from_numpy(weight), values, scale)
            errors[scale] = float(np.square(found.numpy().astype(np.float64) - weight).sum())
        assert errors["rank_one"] <= errors["row"] * (1 + 1e-5) + 1e-9


@given(even_magnitudes, st.integers(-60, 60))
@thoroughly
def test_rank_one_scales_of_01_are_the_least_squares_solution_given_each_other(
    weight: NDArray[Any], exponent: int
) -> None:
    weight = weight.reshape(-1, weight.shape[-1]) * np.float32(2.0**exponent)
    row, column = scale_of(torch.from_numpy(weight), "01", "rank_one")
    assert column is not None
    assert (row.shape, column.shape) == ((len(weight), 1), (weight.shape[1],))
    w = weight.astype(np.float64)
    np.testing.assert_allclose(row[:, 0].numpy(), best_factors(w, column.numpy()), rtol=1e-5)
    positive = w.T > 0
    assert np.array_equal(column.numpy() > 0, positive.any(1))
    assert np.array_equal(row[:, 0].numpy() > 0, positive.any(0))
    assert not positive.any() or column.mean().item() == pytest.approx(1)


@given(even_magnitudes, even_magnitudes)
@thoroughly
def test_rank_one_finds_the_factors_of_which_positive_weights_are_the_products(
    magnitudes: NDArray[Any], signs: NDArray[Any]
) -> None:
    u, v = (
        np.abs(magnitudes.reshape(-1, magnitudes.shape[-1])[:, 0]),
        np.abs(signs.reshape(-1, signs.shape[-1])[0]),
    )
    negative = np.random.default_rng(0).random((len(u), len(v))) < 0.5
    negative[0] = negative[:, 0] = (
        False  # every row and column has a positive weight, and all are linked
    )
    weight = np.where(negative, -3, np.outer(u, v)).astype(np.float32)
    found = two_values(torch.from_numpy(weight), "01", "rank_one").numpy()
    np.testing.assert_allclose(found, np.maximum(weight, 0), rtol=1e-4)


@given(even_magnitudes, values_of)
@thoroughly
def test_rank_one_of_rows_with_two_values_is_a_fixed_point(
    weight: NDArray[Any], values: ValueSet
) -> None:
    low, top = np.array(LOW_AND_HIGH[values], dtype=np.float32)
    binary = np.where(weight >= 0, top, low) * np.abs(weight[..., :1])
    _, column = scale_of(torch.from_numpy(binary), values, "rank_one")
    assert column is not None
    again = two_values(torch.from_numpy(binary), values, "rank_one").numpy()
    if values == "pm1" or (weight >= 0).any(tuple(range(weight.ndim - 1))).all():  # to the bit
        assert torch.equal(column, torch.ones(weight.shape[-1]))
        assert np.array_equal(again, binary)
    else:  # a column without a positive weight has scale 0
        np.testing.assert_allclose(again, binary, rtol=1e-6)


def test_rank_one_of_zeros_is_zero_and_that_of_a_vector_its_row_scale() -> None:
    assert not two_values(torch.zeros(3, 4), "pm1", "rank_one").any()
    vector = torch.tensor([1.0, -2.0, 6.0])
    row, column = scale_of(vector, "pm1", "rank_one")
    assert (row.tolist(), column) == ([3.0], None)
    assert two_values(vector, "pm1", "rank_one").tolist() == [3.0, -3.0, 3.0]


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("shape", "columns"), [((5, 1), False), ((1, 1), False), ((5, 1), True)])
def test_straight_through_is_the_numpy_reference(
    values: ValueSet, gradient: Gradient, scaling: Scaling, shape: tuple[int, int], columns: bool
) -> None:
    random = np.random.default_rng(7)
    w, g = (
        random.normal(size=(5, 9)).astype(np.float32),
        random.normal(size=(5, 9)).astype(np.float32),
    )
    a, v = (
        random.uniform(0.3, 1.2, shape).astype(np.float32),
        random.uniform(0.5, 1.5, 9).astype(np.float32),
    )
    if not columns:
        v[:] = 1
    limit = a * v
    w[:, 0], w[:, 1], w[:, 2] = (
        0.0,
        limit[:, 1],
        -limit[:, 2],
    )  # on the threshold and on the windows' edges
    w[:, 3], w[:, 4], w[:, 5] = 1.0, -1.0, np.nextafter(np.float32(1), np.float32(2))
    weight, scale, column = (torch.tensor(x, requires_grad=True) for x in (w, a, v))
    # what is learned is for the caller to say: the scaling tells `lsq` from the others
    q = StraightThrough.apply(
        weight,
        scale,
        column if columns else None,
        Quantization(values, "row", scaling, "none", gradient),
    )
    q.backward(torch.from_numpy(g))

    low, top = LOW_AND_HIGH[values]
    unit = np.where(high(w, values), top, low)
    close(q.detach(), limit * unit)
    inside = np.abs(w) <= 1
    to_weight = {
        "identity": g,
        "scaled": limit * g,
        "clipped": np.where(np.abs(w) <= limit, g, 0),
        "clamp": np.where(inside, g, 0),
        "product": np.where(inside, w * g, 0),
    }[gradient]
    assert weight.grad is not None
    assert scale.grad is not None
    np.testing.assert_allclose(weight.grad.numpy(), to_weight, rtol=1e-6)
    along = g.astype(np.float64) * unit
    to_scale = (along * v).sum(axis=1 if shape == (5, 1) else None).reshape(shape)
    if scaling == "lsq":
        to_scale /= np.sqrt(45)
    np.testing.assert_allclose(scale.grad.numpy(), to_scale, rtol=1e-4, atol=1e-5)
    if columns:
        assert column.grad is not None
        np.testing.assert_allclose(
            column.grad.numpy(), (along * a).sum(axis=0), rtol=1e-4, atol=1e-5
        )
    else:
        assert column.grad is None


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("scaling", SCALINGS)
@given(eighths, st.sampled_from(SCALED_VALUES), st.sampled_from(CENTERS), seeds)
@settings(max_examples=100, deadline=None)
def test_all_parts_combine_to_the_numpy_reference(
    gradient: Gradient,
    scaling: Scaling,
    weight: NDArray[Any],
    values_and_scale: tuple[ValueSet, Scale],
    center: Center,
    seed: int,
) -> None:
    values, scale = values_and_scale
    if scale == "rank_one" and scaling == "computed":
        weight = np.random.default_rng(seed).normal(size=(16, 24)).astype(np.float32)
    parts, random = (
        Quantization(values, scale, scaling, center, gradient),
        np.random.default_rng(seed),
    )
    latent = nn.Parameter(torch.from_numpy(weight))
    quantizer = Quantizer(latent, parts)
    move_scales(quantizer, random)
    g = random.normal(size=weight.shape)
    assert_same(results(quantizer, latent, g), reference(weight, g, parts, learned_by(quantizer)))
