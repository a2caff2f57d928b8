from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.errors import InputError
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.quantizer import (
    SMALLEST,
    Quantization,
    Quantizer,
    StraightThrough,
    bits,
    scale_of,
    two_values,
    units,
)
from bitmaps.vocabulary import Center, Gradient, Scale, Scaling, ValueSet

LOW_AND_HIGH = {"01": (0.0, 1.0), "pm1": (-1.0, 1.0)}
TINIEST = 2**-149
LARGEST = float(np.finfo(np.float32).max)
BOTH: tuple[ValueSet, ...] = ("01", "pm1")
SCALES: tuple[Scale, ...] = ("none", "tensor", "row")  # one number for what shares them
SCALINGS: tuple[Scaling, ...] = ("computed", "learned", "lsq")
CENTERS: tuple[Center, ...] = ("none", "tensor", "row")
GRADIENTS: tuple[Gradient, ...] = ("identity", "scaled", "clipped", "clamp", "product")
SCALED_VALUES: list[tuple[ValueSet, Scale]] = [(v, s) for v in BOTH for s in (*SCALES, "rank_one")]

awkward = st.sampled_from([0.0, -0.0, TINIEST, -TINIEST, LARGEST, -LARGEST])
weights = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=awkward | st.floats(width=32, allow_nan=False, allow_infinity=False),
)
# eighths, in powers of two of rows and columns: sums and means are exact, so weights lie on thresholds and on the
# windows' edges, and it is beyond doubt on which side
eighths = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([2, 4, 8])).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.integers(-24, 24).map(lambda n: n / 8))
)
# of magnitudes that differ by a factor of 4 at most, so that the first singular value stands out
even_magnitudes = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=3, max_side=6),
    elements=st.tuples(st.floats(0.5, 2, width=32), st.sampled_from([-1.0, 1.0])).map(
        lambda pair: pair[0] * pair[1]
    ),
)
values_of, scales_of, seeds = (
    st.sampled_from(BOTH),
    st.sampled_from(SCALES),
    st.integers(0, 2**32 - 1),
)
thoroughly = settings(max_examples=150, deadline=None)
each_scaled_values = pytest.mark.parametrize(("values", "scale"), SCALED_VALUES)


def high(weight: NDArray[Any], values: ValueSet) -> NDArray[Any]:
    return weight > 0 if values == "01" else weight >= 0


def mean_scale(weight: NDArray[Any], values: ValueSet) -> float:
    """The scale of all numbers of ``weight`` together."""
    chosen = [abs(float(w)) for w in weight.ravel() if values == "pm1" or w > 0]
    return float(np.mean(chosen)) if chosen else 0.0


def reference_scale(weight: NDArray[Any], values: ValueSet, scale: Scale) -> NDArray[Any]:
    """Of all but ``rank_one``."""
    if scale == "none":
        return np.ones((1,) * weight.ndim)
    if scale == "tensor":
        return np.full((1,) * weight.ndim, mean_scale(weight, values))
    return np.apply_along_axis(lambda row: np.array([mean_scale(row, values)]), -1, weight)


def rank_one_part(weight: NDArray[Any], values: ValueSet = "pm1") -> NDArray[Any]:
    """The matrix M of rank one for which ``M * unit`` is closest to the weight: for {-1,1} by its singular vectors, for {0,1},
    where the numbers that are not positive do not count, by least squares in turn."""
    w = weight.astype(np.float64).reshape(-1, weight.shape[-1])
    if values == "pm1":
        u, s, v = np.linalg.svd(np.abs(w))
        return (s[0] * np.outer(u[:, 0], v[0])).reshape(weight.shape)
    column = np.ones(w.shape[1])
    for _ in range(100):
        row = best_factors(w, column)
        column = best_factors(w.T, row)
    return np.outer(row, column).reshape(weight.shape)


def best_factors(weight: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """For each row the number that times ``other`` is closest to its positive weights; 0 where there are none."""
    pairs = [(other[row > 0], row[row > 0]) for row in weight]
    return np.array(
        [np.linalg.lstsq(x[:, None], y, rcond=None)[0][0] if x.any() else 0.0 for x, y in pairs]
    )


def reference(
    weight: NDArray[Any], g: NDArray[Any], parts: Quantization, learned: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The effective weight ``q`` and the gradients of the latent weight and of what is learned, in fp64.

    ``weight`` and the incoming gradient ``g`` are (rows, n); ``learned`` holds the scales that are parameters, as they are now.
    """
    w, g = weight.astype(np.float64), g.astype(np.float64)
    learned = {name: scale.astype(np.float64) for name, scale in learned.items()}
    axis = {"tensor": None, "row": 1}.get(parts.center, ())

    row, column = learned.get("scale"), learned.get("column", np.ones(w.shape[1]))
    if row is not None:
        a = (np.maximum(row, 1e-5) if parts.scaling == "lsq" else row) * column
    else:
        one = parts.scale == "rank_one"
        a = rank_one_part(w, parts.values) if one else reference_scale(w, parts.values, parts.scale)
    centered = w - (0 if parts.center == "none" else w.mean(axis=axis, keepdims=True))
    low, top = LOW_AND_HIGH[parts.values]
    unit = np.where(high(centered, parts.values), top, low)

    match parts.gradient:
        case "identity":
            to_weight = g
        case "scaled":
            to_weight = a * g
        case "clipped":
            to_weight = np.where(np.abs(centered) <= a, g, 0)
        case "clamp":
            to_weight = np.where(np.abs(centered) <= 1, g, 0)
            if parts.center != "none":
                to_weight = to_weight - to_weight.mean(axis=axis, keepdims=True)
        case "product":
            to_weight = np.where(np.abs(centered) <= 1, centered * g, 0)
    expected = {"q": a * unit, "weight": to_weight}
    if row is not None:
        by_row = (g * unit * column).sum(axis=None if row.size == 1 else 1).reshape(row.shape)
        expected["scale"] = by_row / np.sqrt(w.size) if parts.scaling == "lsq" else by_row
    if "column" in learned:
        used = np.maximum(learned["scale"], 1e-5) if parts.scaling == "lsq" else learned["scale"]
        expected["column"] = (g * unit * used).sum(axis=0)
    return expected


def results(quantizer: Quantizer, weight: nn.Parameter, g: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """What ``reference`` gives, as it is."""
    weight.grad = None
    quantizer.zero_grad()
    q = quantizer(weight)
    assert q.dtype == torch.float32
    q.backward(torch.tensor(g, dtype=torch.float32))
    parameters = {"weight": weight, **dict(quantizer.named_parameters())}
    grads = {name: parameter.grad for name, parameter in parameters.items()}
    return {"q": q.detach().numpy()} | {
        name: grad.numpy().copy() for name, grad in grads.items() if grad is not None
    }


def learned_by(quantizer: Quantizer) -> dict[str, NDArray[Any]]:
    return {
        name: parameter.detach().numpy().copy() for name, parameter in quantizer.named_parameters()
    }


def move_scales(quantizer: Quantizer, random: np.random.Generator) -> None:
    """Give what is learned other values, in eighths."""
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.copy_(torch.from_numpy(random.integers(1, 17, tuple(parameter.shape)) / 8))


def assert_same(
    actual: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]], atol: float = 1e-5
) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].shape == expected[name].shape, name
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=atol, err_msg=name)


def close(actual: Tensor, expected: NDArray[Any]) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=TINIEST)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("center", CENTERS)
def test_clamp_is_the_gradient_of_clamping_the_centered_weight(center: Center) -> None:
    weight = nn.Parameter(normal(6, 20) + 0.3)
    g = normal(6, 20, seed=1)
    Quantizer(weight, Quantization("pm1", "row", "computed", center, "clamp"))(weight).backward(g)
    again = weight.detach().clone().requires_grad_()
    mean = {"none": 0.0 * again.mean(), "tensor": again.mean(), "row": again.mean(1, keepdim=True)}[
        center
    ]
    (again - mean).clamp(-1, 1).backward(g)
    assert weight.grad is not None
    assert again.grad is not None
    assert (weight.detach().abs() > 1).any()
    torch.testing.assert_close(weight.grad, again.grad, rtol=1e-5, atol=1e-6)


@each_scaled_values
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_quantizer_starts_as_two_values(
    values: ValueSet, scale: Scale, scaling: Scaling, gradient: Gradient
) -> None:
    weight = normal(6, 5)
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, "none", gradient))
    assert torch.equal(quantizer(weight), two_values(weight, values, scale))


@each_scaled_values
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("center", CENTERS)
def test_what_is_learned_and_what_is_stored(
    values: ValueSet, scale: Scale, scaling: Scaling, center: Center
) -> None:
    weight = normal(6, 5).requires_grad_()
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, center))
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "none": {},
        "tensor": {"scale": (1, 1)},
        "row": {"scale": (6, 1)},
    }
    shapes["rank_one"] = {"scale": (6, 1), "column": (5,)}
    expected = {} if scaling == "computed" else shapes[scale]
    assert {name: tuple(p.shape) for name, p in quantizer.named_parameters()} == expected
    stored = {"scale": (1, 1)} if scale == "none" else expected
    assert {name: tuple(t.shape) for name, t in quantizer.state_dict().items()} == stored
    assert (quantizer.scale is None) is ("scale" not in stored)
    assert (quantizer.column is None) is ("column" not in stored)
    assert all(p.is_leaf and p.requires_grad for p in quantizer.parameters())


@each_scaled_values
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("center", CENTERS)
def test_scales_are_of_the_weight_now_if_computed_and_else_where_training_left_them(
    values: ValueSet, scale: Scale, scaling: Scaling, center: Center
) -> None:
    weight, other = normal(6, 5) + 0.2, normal(6, 5, seed=1) - 0.3
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, center))
    for now in (weight, other):
        row, column = quantizer.scales(now)
        expected, of_columns = scale_of(now if scaling == "computed" else weight, values, scale)
        assert torch.equal(row, expected)
        assert (column is None) is (of_columns is None) is (scale != "rank_one")
        assert column is None or (of_columns is not None and torch.equal(column, of_columns))
        magnitude = row if column is None else row * column
        assert torch.equal(quantizer(now), magnitude * units(quantizer.centered(now), values))


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scale_none_stays_1(scaling: Scaling) -> None:
    quantizer = Quantizer(torch.full((2, 3), 5.0), Quantization("pm1", "none", scaling))
    assert quantizer.scale is not None
    assert quantizer.scale.tolist() == [[1.0]]
    assert quantizer(torch.full((2, 3), 5.0)).tolist() == [[1.0] * 3] * 2
    assert "scale" in quantizer.state_dict()


@pytest.mark.parametrize("values", BOTH)
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("center", ["tensor", "row"])
def test_centered_threshold_is_the_mean_and_the_scale_that_of_the_weight_itself(
    values: ValueSet, gradient: Gradient, center: Center
) -> None:
    random = np.random.default_rng(3)
    w = (random.normal(size=(4, 11)) + np.array([[5.0], [-2.0], [0.0], [1.0]])).astype(np.float32)
    weight = nn.Parameter(torch.from_numpy(w))
    quantizer = Quantizer(weight, Quantization(values, "row", "learned", center, gradient))
    threshold = w.astype(np.float64).mean(axis=1 if center == "row" else None, keepdims=True)
    above = w > threshold
    assert np.array_equal(quantizer.bits(weight).numpy(), above)
    low, top = LOW_AND_HIGH[values]
    expected = reference_scale(w, values, "row") * np.where(above, top, low)
    np.testing.assert_allclose(quantizer(weight).detach().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(
        quantizer.centered(weight).detach().numpy(), w - threshold, rtol=1e-5, atol=1e-6
    )


@given(eighths, st.sampled_from(SCALED_VALUES), st.sampled_from(CENTERS))
@thoroughly
def test_bits_say_which_value_each_weight_has(
    weight: NDArray[Any], values_and_scale: tuple[ValueSet, Scale], center: Center
) -> None:
    values, scale = values_and_scale
    quantizer = Quantizer(torch.from_numpy(weight), Quantization(values, scale, "learned", center))
    move_scales(quantizer, np.random.default_rng(0))  # away from 0, where both values are one
    assert torch.equal(
        quantizer(torch.from_numpy(weight)) > 0, quantizer.bits(torch.from_numpy(weight))
    )


@pytest.mark.parametrize("start", [0.0, -1.0, 1e-6])
@pytest.mark.parametrize(("values", "scale"), [pair for pair in SCALED_VALUES if pair[1] != "none"])
def test_scale_under_lsq_is_never_less_than_1e_minus_5_and_still_trained(
    values: ValueSet, scale: Scale, start: float
) -> None:
    weight = nn.Parameter(normal(6, 5))
    quantizer = Quantizer(weight, Quantization(values, scale, "lsq", "none", "scaled"))
    assert quantizer.scale is not None
    with torch.no_grad():
        quantizer.scale.fill_(start)
        for column in () if quantizer.column is None else (quantizer.column,):
            column.fill_(1)
    q = quantizer(weight)
    torch.testing.assert_close(q, 1e-5 * units(weight.detach(), values), rtol=1e-6, atol=0)
    q.backward(q.detach())
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 1e-5 * q.detach(), rtol=1e-5, atol=0)
    assert quantizer.scale.grad is not None
    assert (quantizer.scale.grad > 0).all()


@pytest.mark.parametrize("scaling", ["computed", "learned"])
def test_the_other_scales_have_no_least_value(scaling: Scaling) -> None:
    weight = 1e-7 * normal(6, 5)
    quantizer = Quantizer(weight, Quantization("pm1", "row", scaling))
    torch.testing.assert_close(
        quantizer(weight).abs().mean(1), weight.abs().mean(1), rtol=1e-5, atol=0
    )


def test_a_frozen_scale_gets_no_gradient() -> None:
    weight = nn.Parameter(normal(6, 5))
    quantizer = Quantizer(
        weight, Quantization("pm1", "row", "learned", "none", "scaled")
    ).requires_grad_(False)
    assert quantizer.scale is not None
    quantizer(weight).sum().backward()
    assert quantizer.scale.grad is None
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, quantizer.scale.expand(6, 5))


@each_scaled_values
@pytest.mark.parametrize("center", CENTERS)
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_effective_weight_is_fp32_under_autocast(
    values: ValueSet, scale: Scale, center: Center, scaling: Scaling, gradient: Gradient
) -> None:
    weight = nn.Parameter(normal(6, 40))
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, center, gradient))
    g = normal(6, 40, seed=1).numpy()
    expected = results(quantizer, weight, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = results(quantizer, weight, g)
    assert actual.keys() == expected.keys()
    for name in expected:
        assert actual[name].dtype == np.float32
        assert np.array_equal(actual[name], expected[name]), name


def test_a_quantizer_says_what_it_is() -> None:
    parts = Quantization("01", "tensor", "lsq", "row", "clipped")
    text = repr(Quantizer(normal(2, 3), parts))
    assert all(f"{name}={value!r}" in text for name, value in vars(parts).items())


# Packing


def assert_packs(quantizer: Quantizer, weight: Tensor) -> PackedWeight:
    """What is packed is what the forward pass computes with, to the bit."""
    packed = quantizer.pack(weight)
    assert packed.storage == "bit"
    assert packed.shape == weight.shape
    assert torch.equal(packed.dense(), quantizer(weight).detach())
    return packed


@settings(max_examples=200, deadline=None)
@given(
    seed=seeds,
    rows=st.integers(1, 9),
    columns=st.integers(1, 19),
    values=st.sampled_from(BOTH),
    scale=st.sampled_from([*SCALES, "rank_one"]),
    scaling=st.sampled_from(["computed", "learned", "lsq"]),
    center=st.sampled_from(["none", "tensor", "row"]),
    moved=st.sampled_from([0.0, 0.3, -1.0, -3.0]),
)
def test_a_quantizer_packs_its_own_bits_and_scales(
    seed: int, rows: int, columns: int, values: ValueSet, scale: Scale, scaling: Scaling,
    center: Center, moved: float,
) -> None:  # fmt: skip
    """Learned scales may be anything by then: 0, negative, below the bound of lsq."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    quantizer = Quantizer(weight, Quantization(values, scale, scaling, center))
    weight += 0.5 * torch.randn(rows, columns, generator=generator)
    weight[0], weight[:, 0] = -weight[0].abs(), 0
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter += moved * torch.rand(parameter.shape, generator=generator)
            parameter.view(-1)[-1] = 0
    packed = assert_packs(quantizer, weight)
    assert (packed.low is None) is (values == "pm1")
    assert (packed.column is not None) is (scale == "rank_one")
    assert packed.high is not None
    if scaling == "lsq" and scale != "none":
        assert (packed.high >= SMALLEST).all()


def test_packing_leaves_the_layer_as_it_is() -> None:
    weight = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    quantizer = Quantizer(weight, Quantization("01", "rank_one"))
    packed = assert_packs(quantizer, weight)
    before = packed.dense()
    with torch.no_grad():
        quantizer.scale *= 2
        quantizer.column *= 2
        weight.neg_()
    assert torch.equal(packed.dense(), before)
    assert not any(buffer.requires_grad for buffer in packed.buffers())


@pytest.mark.parametrize(
    ("part", "wrong", "valid"),
    [
        ("values", "pm2", "01, pm1"),
        ("scale", "column", "none, tensor, row, rank_one"),
        ("scaling", None, "computed, learned, lsq"),
        ("center", "mean", "none, tensor, row"),
        ("gradient", "", "identity, scaled, clipped, clamp, product"),
    ],
)
def test_a_part_of_another_name_is_refused(part: str, wrong: Any, valid: str) -> None:
    message = re.escape(f"unknown {part} {wrong!r}; valid are {valid}")
    with pytest.raises(InputError, match=f"^{message}$"):
        Quantization(**{part: wrong})


def test_plain_strings_become_members() -> None:
    plain = Quantization("01", "tensor", "lsq", "row", "clamp")  # type: ignore[arg-type]
    members = Quantization(ValueSet("01"), Scale.tensor, Scaling.lsq, Center.row, Gradient.clamp)
    assert plain == members
    assert type(plain.scale) is Scale
