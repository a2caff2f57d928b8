"""Axes with round ticks."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitmaps.report.axes import axis_of, linear_ticks, log_ticks

positive = st.floats(1e-6, 1e6)


def is_round(number: float, digits: int) -> bool:
    """Whether a number has at most so many digits that are not zeros at either end."""
    if number == 0:
        return True
    scaled = abs(number) / 10.0 ** math.floor(math.log10(abs(number)))
    return math.isclose(round(scaled, digits - 1), scaled, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2.5, 90, [5, 10, 20, 50]), (3.3, 42, [5, 10, 20]), (3.3, 4.5, [3.4, 3.6, 3.8, 4, 4.2, 4.4]),
        (0.0001, 1, [0.0001, 0.001, 0.01, 0.1, 1]), (4, 14, [5, 7, 10]),
    ],
)  # fmt: skip
def test_ticks_of_a_logarithmic_axis_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert log_ticks(low, high) == ticks


@given(positive, st.floats(1.05, 1e6))
def test_any_logarithmic_axis_has_some_round_ticks(low: float, ratio: float) -> None:
    high = low * ratio
    found = log_ticks(low, high)
    assert 3 <= len(found) <= 25
    assert found == sorted(found)
    assert low <= found[0] <= found[-1] <= high
    digits = 1 if ratio > 20 else 4
    assert all(is_round(tick, digits) for tick in found)


@given(st.floats(-1e6, 1e6), positive)
def test_any_linear_axis_has_some_round_ticks(low: float, length: float) -> None:
    assume(length > 1e-6 * abs(low))
    high = low + length
    found = linear_ticks(low, high)
    assert 4 <= len(found) <= 11
    margin = 1e-9 * max(abs(low), abs(high))
    assert low - margin <= found[0] <= found[-1] <= high + margin
    steps = {round((b - a) / length, 6) for a, b in pairwise(found)}
    assert max(steps) - min(steps) < 1e-3


@given(st.lists(positive, min_size=1, max_size=5), st.booleans())
def test_an_axis_has_room_beside_every_value(values: list[float], log: bool) -> None:
    axis = axis_of(values, log)
    assert axis.log == log
    assert axis.low < min(values) <= max(values) < axis.high
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
    assert all(math.isclose(float(f"{t:{axis.format}}"), t, rel_tol=1e-3) for t in axis.ticks)


def test_what_is_not_positive_has_no_logarithm() -> None:
    assert not axis_of([-3.0, 80.0], log=True).log
    assert not axis_of([0.0, 0.0], log=True).log
    assert axis_of([3.0], log=True).log


def test_ticks_at_equal_distances_have_as_many_decimals() -> None:
    axis = axis_of([3.3, 4.2], log=True)
    assert [f"{tick:{axis.format}}" for tick in axis.ticks][-3:] == ["4.0", "4.2", "4.4"]
    sizes = axis_of([3.2, 86.8], log=True)
    assert [f"{tick:{sizes.format}}" for tick in sizes.ticks] == ["5", "10", "20", "50", "100"]
