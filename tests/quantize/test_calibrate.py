"""Bits, scales and biases chosen without training: against plain numpy, and what holds of the
outputs afterwards."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from quantize.calibration_by_hand import (
    choose,
    each_scale,
    each_values,
    errors_of,
    linear_of,
    second_moment,
    weight_of,
    weighted_error,
)

from bitmaps.quantize.calibrate import BLOCK, DAMPING
from bitmaps.quantize.quantizer import Quantizer, two_values
from bitmaps.vocabulary import Scale, ValueSet

Array = NDArray[np.float64]


@each_values
@each_scale
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_strongly_correlated_inputs_have_much_less_error_than_rounding_leaves(
    values: ValueSet, scale: Scale, seed: int
) -> None:
    nearest, chosen = errors_of(seed, values, scale, second_moment(seed, 24, causes=3, noise=0.3))
    assert chosen < 0.9 * nearest


@each_values
@each_scale
@pytest.mark.parametrize("causes", [48, 24, 6])
def test_correlated_inputs_have_no_more_error_than_rounding_leaves(
    values: ValueSet, scale: Scale, causes: int
) -> None:
    for seed in range(5):
        nearest, chosen = errors_of(seed, values, scale, second_moment(seed, 48, causes, noise=0.5))
        assert chosen <= nearest


def gptq(
    weight: Array, h: Array, values: ValueSet, row: Array, column: Array | None
) -> tuple[Array, Array, Array]:
    """Optimal brain quantization in a fixed order, one column after the other, the inverse of what is left of H computed anew
    for each: what was rounded, what it became, and the scales of the rows."""
    order = np.argsort(-np.diag(h), kind="stable")
    h = h + DAMPING * np.mean(np.diag(h)) * np.eye(len(h))
    low = 0.0 if values == "01" else -1.0
    for _ in range(2):
        magnitude = np.broadcast_to(row if column is None else row * column, weight.shape)
        left, rounded, to_round = weight.copy(), np.zeros_like(weight), np.zeros_like(weight)
        for step, j in enumerate(order):
            to_round[:, j] = left[:, j]
            ends = magnitude[:, j] * low, magnitude[:, j]
            upper = np.abs(left[:, j] - ends[1]) < np.abs(left[:, j] - ends[0])
            rounded[:, j] = np.where(upper, ends[1], ends[0])
            rest = order[step:]
            inverse = np.linalg.inv(h[np.ix_(rest, rest)])
            left[:, rest] -= np.outer((left[:, j] - rounded[:, j]) / inverse[0, 0], inverse[0])
        factor = np.einsum("ri,ij,rj->r", rounded, h, weight) / np.einsum(
            "ri,ij,rj->r", rounded, h, rounded
        )
        row = (
            (row * factor[:, None]).astype(np.float32).astype(np.float64)
        )  # a scale is kept in fp32
    return to_round - magnitude / 2 if values == "01" else to_round, rounded * factor[:, None], row


@each_values
@each_scale
@pytest.mark.parametrize("columns", [BLOCK, BLOCK + 16, 2 * BLOCK + 8])
def test_bits_are_those_of_a_loop_without_blocks(
    values: ValueSet, scale: Scale, columns: int
) -> None:
    weight, h = weight_of(0, 5, columns), second_moment(1, columns, causes=10, noise=0.3)
    linear = linear_of(weight, values, scale)
    assert isinstance(linear.quantizer, Quantizer)
    row, column = (
        None if x is None else x.detach().double().numpy() for x in linear.quantizer.scales(weight)
    )
    assert row is not None
    latent, effective, row = gptq(weight.double().numpy(), h.numpy(), values, row, column)
    choose(linear, h)
    np.testing.assert_allclose(linear.weight.detach(), latent, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(linear.effective_weight.detach(), effective, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(linear.quantizer.scales(weight)[0].detach(), row, rtol=1e-6)
    assert (linear.quantizer.column is None) is (column is None)
    nearest = two_values(weight, values, scale)
    assert (
        (linear.effective_weight > 0) != (nearest > 0)
    ).any()  # or else there is nothing to compare


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.floats(1e-3, 1e3))
@each_scale
def test_uncorrelated_inputs_leave_signs_and_scales_of_rounding(
    scale: Scale, seed: int, power: float
) -> None:
    weight = weight_of(seed, 4, 12)
    linear = linear_of(weight, "pm1", scale)
    choose(linear, power * torch.eye(12, dtype=torch.float64))
    torch.testing.assert_close(linear.effective_weight.detach(), two_values(weight, "pm1", scale))
    torch.testing.assert_close(linear.weight.detach(), weight)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), power=st.floats(1e-3, 1e3))
def test_uncorrelated_inputs_leave_the_nearer_of_zero_and_the_scale(
    seed: int, power: float
) -> None:
    weight = weight_of(seed, 4, 12)
    linear = linear_of(weight, "01", "row")
    choose(linear, power * torch.eye(12, dtype=torch.float64))
    effective = linear.effective_weight.detach().numpy()
    for found, row in zip(effective, weight.double().numpy(), strict=True):
        scale = row[row > 0].mean() if (row > 0).any() else 0.0
        for _ in range(2):  # the nearer value, then the scale of least squares, twice
            high = row > scale / 2
            scale = row[high].mean() if high.any() else 0.0
        np.testing.assert_allclose(found, np.where(high, scale, 0), rtol=1e-5)
    assert weighted_error(
        weight, linear.effective_weight, torch.eye(12, dtype=torch.float64)
    ) <= weighted_error(weight, two_values(weight, "01", "row"), torch.eye(12, dtype=torch.float64))


@each_values
@each_scale
def test_the_latent_weight_has_the_bits_that_were_chosen(values: ValueSet, scale: Scale) -> None:
    weight = weight_of(0, 6, 40)
    linear = linear_of(weight, values, scale)
    parameter = linear.weight
    choose(linear, second_moment(0, 40, causes=8, noise=0.3))
    assert linear.weight is parameter
    assert isinstance(linear.quantizer, Quantizer)
    effective = linear.effective_weight.detach()
    assert torch.equal(linear.quantizer.bits(linear.weight), effective > 0)
    assert ((linear.weight > 0) != (weight > 0)).any()
    low = effective[effective <= 0]
    assert (low == 0).all() if values == "01" else (low < 0).all()
    if scale == "row":
        for row in effective:
            values_of_row = row.unique().tolist()
            assert len(values_of_row) == 2
            assert values_of_row[0] == (0 if values == "01" else -values_of_row[1])
    else:
        row_scale, column = linear.quantizer.scales(linear.weight)
        assert column is not None
        torch.testing.assert_close(
            effective.abs()[effective != 0], (row_scale * column).detach()[effective != 0]
        )


@each_values
@each_scale
def test_dead_and_copied_inputs_are_no_trouble(values: ValueSet, scale: Scale) -> None:
    h = second_moment(0, 12, causes=3, noise=0.0)
    h[:, 4] = h[4] = 0
    h[5], h[:, 5] = h[6], h[:, 6]
    h[5, 5] = h[6, 6]
    linear = linear_of(weight_of(0, 4, 12), values, scale)
    choose(linear, h)
    assert linear.effective_weight.isfinite().all()
    assert linear.weight.isfinite().all()


def test_only_weight_and_row_scales_of_a_matrix_change() -> None:
    linear = linear_of(weight_of(0, 4, 12), "pm1", "rank_one")
    before = copy.deepcopy(linear.state_dict())
    choose(linear, second_moment(0, 12, causes=3, noise=0.3))
    changed = {
        name
        for name, tensor in linear.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"weight", "quantizer.scale"}
