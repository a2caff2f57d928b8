"""Matrices to calibrate, and the error that is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitmaps.quantize.calibrate import choose_bits
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, two_values
from bitmaps.vocabulary import Scale, ValueSet

Array = NDArray[np.float64]

ENCODER = ("attention", "ffnn")
each_values = pytest.mark.parametrize("values", ["pm1", "01"])
each_scale = pytest.mark.parametrize("scale", ["row", "rank_one"])


# One matrix


def weight_of(seed: int, rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def linear_of(weight: Tensor, values: ValueSet, scale: Scale) -> QuantizedLinear:
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
    return QuantizedLinear.from_float(linear, Quantizer(linear.weight, Quantization(values, scale)))


@torch.no_grad()
def choose(linear: QuantizedLinear, h: Tensor) -> None:
    choose_bits(linear, h)


def second_moment(seed: int, columns: int, causes: int, noise: float) -> Tensor:
    """E[x x^T] of inputs that come of a few common causes, of sizes that differ, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(4 * columns, causes) @ draw(causes, columns) + noise * draw(4 * columns, columns)
    return x.mT @ x / len(x)


def weighted_error(weight: Tensor, quantized: Tensor, h: Tensor) -> float:
    difference = (weight - quantized).detach().double()
    return ((difference @ h) * difference).sum().item()


def errors_of(seed: int, values: ValueSet, scale: Scale, h: Tensor) -> tuple[float, float]:
    """Of rounding to the nearest, and of the bits that are chosen."""
    weight = weight_of(seed, 8, len(h))
    linear = linear_of(weight, values, scale)
    choose(linear, h)
    return weighted_error(weight, two_values(weight, values, scale), h), weighted_error(
        weight, linear.effective_weight, h
    )
