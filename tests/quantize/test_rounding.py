"""The word table and activations in fewer than 32 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.packed.activations import round_activations
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, units
from bitmaps.quantize.rounding import (
    InputQuantizer,
    Rounding,
    RoundThrough,
    input_quantizers,
    rounded,
    rounded_inputs,
)
from bitmaps.vocabulary import Act, Scale, Storage, ValueSet

INTEGERS: tuple[Storage, ...] = ("int8", "int4")
LEVELS = {"int8": 127, "int4": 7}
TINIEST = 2**-149
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

vectors = arrays(
    np.float32,
    array_shapes(min_dims=1, max_dims=3, max_side=6),
    elements=st.sampled_from([0.0, -0.0, TINIEST, -TINIEST])
    | st.floats(-(2.0**60), 2.0**60, width=32),
)
thoroughly = settings(max_examples=150, deadline=None)
each_integer = pytest.mark.parametrize("stored", INTEGERS)
each_stored = pytest.mark.parametrize("stored", ["fp16", "int8", "int4"])


def step_of(x: NDArray[Any], stored: Storage) -> NDArray[Any]:
    """The distance of two levels, for each vector, in fp32: not less than its smallest normal
    number."""
    return np.maximum(
        np.abs(x).max(-1, keepdims=True) / np.float32(LEVELS[stored]), np.float32(SMALLEST_NORMAL)
    )


@each_integer
@given(vectors)
@thoroughly
def test_integers_are_the_numpy_reference(stored: Storage, x: NDArray[Any]) -> None:
    actual, step = rounded(torch.from_numpy(x), stored), step_of(x, stored)
    assert actual.dtype == torch.float32
    assert np.array_equal(actual.numpy(), np.round(x / step) * step)


@each_integer
@given(vectors)
@thoroughly
def test_integers_are_levels_of_their_vector_and_the_nearest(
    stored: Storage, x: NDArray[Any]
) -> None:
    actual, step = (
        rounded(torch.from_numpy(x), stored).numpy().astype(np.float64),
        step_of(x, stored),
    )
    level = actual / step
    np.testing.assert_allclose(level, np.round(level), atol=1e-4, rtol=0)
    assert (np.abs(np.round(level)) <= LEVELS[stored]).all()
    assert (np.abs(actual - x) <= step / 2 * (1 + 1e-4)).all()
    assert not actual[x == 0].any()
    largest = np.abs(x).max(-1) >= LEVELS[stored] * SMALLEST_NORMAL
    np.testing.assert_allclose(
        np.abs(actual).max(-1)[largest], np.abs(x).max(-1)[largest], rtol=1e-6
    )


@each_integer
@given(arrays(np.float32, (4, 6), elements=st.floats(-8, 8, width=32)), st.integers(-30, 30))
@thoroughly
def test_integers_do_not_depend_on_sign_power_of_two_or_other_vectors(
    stored: Storage, x: NDArray[Any], exponent: int
) -> None:
    x[np.abs(x) < 2**-20] = 0
    expected = rounded(torch.from_numpy(x), stored)
    assert torch.equal(rounded(torch.from_numpy(-x), stored), -expected)
    assert torch.equal(
        rounded(torch.from_numpy(x) * 2.0**exponent, stored), expected * 2.0**exponent
    )
    assert torch.equal(torch.stack([rounded(row, stored) for row in torch.from_numpy(x)]), expected)


@each_stored
@given(arrays(np.float32, (3, 9), elements=st.floats(-100, 100, width=32)))
@thoroughly
def test_rounding_twice_changes_nothing_more(stored: Storage, x: NDArray[Any]) -> None:
    once = rounded(torch.from_numpy(x), stored)
    torch.testing.assert_close(rounded(once, stored), once, rtol=1e-6, atol=SMALLEST_NORMAL)


@each_integer
def test_all_levels_and_ties_to_even(stored: Storage) -> None:
    largest = LEVELS[stored]
    x = torch.arange(-largest, largest + 1, dtype=torch.float32)
    assert torch.equal(rounded(x, stored), x)
    assert rounded(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.49, largest]), stored).tolist() == [
        0, 2, 2, 0, -2, 0, largest,
    ]  # fmt: skip


def test_each_vector_has_a_scale_of_its_own() -> None:
    x = torch.tensor([[127.0, 0.4, 1.0], [1.27, 0.4, 0.001]])
    torch.testing.assert_close(
        rounded(x, "int8"), torch.tensor([[127.0, 0.0, 1.0], [1.27, 0.4, 0.0]])
    )


@each_stored
def test_zeros_stay_zeros(stored: Storage) -> None:
    assert torch.equal(rounded(torch.zeros(2, 3), stored), torch.zeros(2, 3))
    assert rounded(torch.zeros(0, 3), stored).shape == (0, 3)


@given(vectors)
@thoroughly
def test_fp16_is_numpys(x: NDArray[Any]) -> None:
    x = np.clip(x, -60000, 60000)
    actual = rounded(torch.from_numpy(x), "fp16")
    assert actual.dtype == torch.float32
    assert np.array_equal(actual.numpy(), x.astype(np.float16).astype(np.float32))


@each_stored
def test_rounding_is_rounded_and_passes_the_gradient_as_it_is(stored: Storage) -> None:
    random = torch.Generator().manual_seed(0)
    weight = nn.Parameter(3 * torch.randn(5, 9, generator=random))
    g = torch.randn(5, 9, generator=random)
    rounding = Rounding(stored)
    actual = rounding(weight)
    assert torch.equal(actual, rounded(weight.detach(), stored))
    assert not torch.equal(actual, weight)
    assert torch.equal(RoundThrough.apply(weight, stored), actual)
    actual.backward(g)
    assert weight.grad is not None
    assert torch.equal(weight.grad, g)


@each_stored
def test_rounding_has_no_parameters_and_says_what_it_is(stored: Storage) -> None:
    rounding = Rounding(stored)
    assert not list(rounding.parameters())
    assert not rounding.state_dict()
    assert repr(rounding) == f"Rounding({stored})"


@each_stored
def test_rounding_is_fp32_under_autocast(stored: Storage) -> None:
    weight = nn.Parameter(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)))
    expected = rounded(weight.detach(), stored)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = Rounding(stored)(weight)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


# Inputs

each_act = pytest.mark.parametrize("act", [Act.a8, Act.a6, Act.a1])


def tokens(*shape: int) -> Tensor:
    """Some numbers, of another magnitude in each vector of three."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1e-3, 1.0, 1e3])[:, None]


@each_act
@pytest.mark.parametrize("scale", ["row", "rank_one"])
@pytest.mark.parametrize("values", ["pm1", "01"])
def test_inputs_are_rounded_as_packed_models_do(act: Act, scale: Scale, values: ValueSet) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(9, 4)
    quantizer = Quantizer(linear.weight, Quantization(values, scale))
    if quantizer.column is not None:
        with torch.no_grad():  # a learned scale may cross zero, or reach it
            quantizer.column.copy_(torch.tensor([0.5, 2, 1, -1, 0, 1.5, 1, -0.1, 3]))
    layer = QuantizedLinear.from_float(linear, quantizer, InputQuantizer(act))
    x = tokens(2, 3, 9).requires_grad_()
    columns = torch.ones(9) if quantizer.column is None else quantizer.column.detach()
    unit = units(linear.weight.detach(), ValueSet(values))
    q, s = round_activations(x.detach() * columns, act)
    if act is Act.a1:  # what q says where v is 0 does not enter the product
        q = q * (columns != 0)
    row = layer.quantizer.scale.detach().T  # type: ignore[union-attr]
    expected = (q.double() @ unit.double().T) * s * row + linear.bias.detach()
    y = layer(x)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-6 * s.max().item())

    g = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
    y.backward(g)
    torch.testing.assert_close(x.grad, g @ layer.effective_weight.detach())
    along = torch.einsum("...r,...c->rc", g, layer.effective_input(x).detach()) * unit
    close = {"rtol": 1e-4, "atol": 1e-3}  # sums of numbers in the thousands
    of_rows = (along * columns).sum(1, keepdim=True)
    torch.testing.assert_close(quantizer.scale.grad, of_rows, **close)  # type: ignore[union-attr]
    if quantizer.column is not None:
        torch.testing.assert_close(quantizer.column.grad, (along * row.T).sum(0), **close)


@pytest.mark.parametrize(("act", "steps"), [(Act.a8, 254), (Act.a6, 62)])
def test_rounded_inputs_lie_half_a_step_away_at_most(act: Act, steps: int) -> None:
    x = torch.cat([tokens(2, 3, 9), tokens(2, 3, 9).abs()])
    entered = InputQuantizer(act)(x)
    span = 2 * x.abs().amax(-1)
    if act is Act.a6:  # its window lies where the numbers are
        span = x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)
    assert ((entered - x).abs().amax(-1) <= span / steps * 0.5001).all()
    assert (entered != x).any(-1).all()


@each_act
def test_inputs_are_rounded_in_fp32_whatever_their_dtype(act: Act) -> None:
    x, column = tokens(3, 9), torch.linspace(0.5, 2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(InputQuantizer(act)(x, column), rounded_inputs(x, act, column))
        half = InputQuantizer(act)(x.bfloat16(), column)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, rounded_inputs(x.bfloat16().float(), act, column).bfloat16())


def test_inputs_without_a_token_are_left_alone() -> None:
    assert InputQuantizer(Act.a8)(torch.zeros(0, 9)).shape == (0, 9)


def test_a_weight_without_quantizer_gets_the_column_scales_that_it_would_be_packed_with() -> None:
    row, column = torch.tensor([[0.5], [2.0], [1.0]]), torch.tensor([1.0, 3, 0.5, 1.5])
    sign = torch.tensor([[1.0, -1, 1, 1], [-1, -1, 1, -1], [1, 1, -1, 1]])
    linear = nn.Linear(4, 3)
    for weight, found in ((row * sign, None), (row * column * sign, column)):
        linear.weight = nn.Parameter(weight)
        layer = QuantizedLinear.from_float(linear, None, InputQuantizer(Act.a6))
        torch.testing.assert_close(layer.column, None if found is None else found / found.mean())
    assert QuantizedLinear.from_float(linear).column is None  # which nothing reads


@each_act
def test_an_input_quantizer_adds_nothing_to_a_checkpoint_or_to_memory(act: Act) -> None:
    quantizer = InputQuantizer(act)
    assert not [*quantizer.state_dict(), *quantizer.parameters(), *quantizer.buffers()]
    assert repr(quantizer) == f"InputQuantizer({act})"


# Signs


def signs_of(x: Tensor) -> Tensor:
    return rounded_inputs(x, Act.a1)


@given(vectors)
@thoroughly
def test_signs_are_the_numpy_reference(x: NDArray[Any]) -> None:
    actual = signs_of(torch.from_numpy(x))
    scale = np.abs(x).astype(np.float64).mean(-1, keepdims=True)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(
        actual.numpy(), np.where(x >= 0, scale, -scale), rtol=1e-5, atol=1e-40
    )


@given(vectors, st.floats(-2, 2, width=32))
@thoroughly
def test_no_other_two_opposite_values_are_closer(x: NDArray[Any], other: float) -> None:
    x = np.clip(x, -1e6, 1e6)
    best = signs_of(torch.from_numpy(x)).numpy().astype(np.float64)
    alternative = np.where(x >= 0, other, -other) * np.abs(x).max(-1, keepdims=True)
    error, theirs = (((x - y) ** 2).sum(-1) for y in (best, alternative))
    assert (error <= theirs * (1 + 1e-5) + 1e-20).all()


def test_signs_of_signs_are_the_same() -> None:
    once = signs_of(torch.randn(5, 9, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(signs_of(once), once)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_signs_enters_and_the_gradient_passes_through(share: float) -> None:
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantizer = InputQuantizer(Act.a1)
    quantizer.share = torch.tensor(share)
    entered = quantizer(x)
    expected = (1 - share) * x + share * signs_of(x)
    torch.testing.assert_close(entered, expected)
    if share == 1:
        assert torch.equal(entered, signs_of(x))
    entered.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_the_input_quantizers_are_found() -> None:
    quantizers = [InputQuantizer(act) for act in (Act.a8, Act.a1, Act.a1)]
    model = nn.Sequential(
        *(QuantizedLinear.from_float(nn.Linear(3, 3), None, inputs) for inputs in quantizers)
    )
    assert input_quantizers(model) == quantizers
