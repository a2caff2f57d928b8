"""What a quantizer computes, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.quantize.quantizer import (
    Quantization,
    Quantizer,
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
# eighths, in powers of two of rows and columns: sums and means are exact, so weights lie on
# thresholds and on the
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
    """For each row the number that times ``other`` is closest to its positive weights; 0 where
    there are none."""
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
