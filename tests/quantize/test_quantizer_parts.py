"""The parts of a quantizer, one by one, and what it packs."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from quantize.quantizer_by_hand import (
    BOTH,
    CENTERS,
    GRADIENTS,
    LOW_AND_HIGH,
    SCALED_VALUES,
    SCALES,
    SCALINGS,
    each_scaled_values,
    eighths,
    move_scales,
    normal,
    reference_scale,
    results,
    seeds,
    thoroughly,
)
from torch import Tensor, nn

from bitmaps.errors import InputError
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.quantizer import (
    SMALLEST,
    Quantization,
    Quantizer,
    scale_of,
    two_values,
    units,
)
from bitmaps.vocabulary import Center, Gradient, Scale, Scaling, ValueSet


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
    assert text == "Quantizer(values=01, scale=tensor, scaling=lsq, center=row, gradient=clipped)"


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
