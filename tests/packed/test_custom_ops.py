"""The kernels as operations of PyTorch: their declarations, compiled and exported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from packed.matrices import norm_of, normal, random_matrix
from torch import Tensor, nn

from bitmaps.packed.custom_ops import binary_ffnn, binary_linear, binary_linear_norm, binary_linears
from bitmaps.packed.operations import ffnn, linear_norm, linears


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """One call of each custom operation, with and without the parts that may be missing."""
    x, residual = normal(3, 4, 64), normal(3, 4, 33)
    first, second = (
        random_matrix(33, 64, column=True).part(),
        random_matrix(16, 64, low=False, bias=False).part(),
    )
    norm, other = norm_of(33), norm_of(64)
    back, plain = random_matrix(64, 33).part(), random_matrix(33, 64, low=False, bias=False).part()
    lists = tuple(map(list, zip(first, second, strict=True)))
    return [
        (binary_linears, (x, *lists, "a8")),
        (
            binary_linears,
            (x.bfloat16(), *([part] for part in random_matrix(5, 64, byte=True).part()), "a8"),
        ),
        (binary_linear_norm, (x, *first, residual, *norm, "a16")),
        (binary_linear_norm, (x.half(), *plain, residual.half(), *norm, "a1")),
        (binary_ffnn, (x, *first, *back, *other, "a8")),
        (binary_ffnn, (x, *plain, *back, *other, "f32")),
    ]


@pytest.mark.parametrize("i", range(6))
def test_custom_operations_are_what_they_declare(i: int) -> None:
    operation, arguments = calls()[i]
    torch.library.opcheck(operation, arguments)


@pytest.mark.parametrize("i", [0, 2, 4])
def test_custom_operations_on_inputs_of_any_layout_are_what_they_declare(i: int) -> None:
    operation, (x, *rest) = calls()[i]
    turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert not turned.is_contiguous()
    torch.library.opcheck(operation, (turned, *rest), test_utils=("test_schema", "test_faketensor"))


def test_custom_operations_are_the_functions(backend: str) -> None:
    x, residual, (gain, shift, epsilon) = normal(3, 64), normal(3, 33), norm_of(33)
    matrix, back = random_matrix(33, 64, column=True), random_matrix(64, 33, low=False)
    packed = matrix.packed()
    assert torch.equal(binary_linear(x, *matrix.part()), linears(x, packed, "a8")[0])
    assert torch.equal(binary_linear(x, *matrix.part(), "a16"), linears(x, packed, "a16")[0])
    for y, expected in zip(
        binary_linears(x, *([t, t] for t in matrix.part()), "a1"),
        2 * linears(x, packed, "a1"),
        strict=True,
    ):
        assert torch.equal(y, expected)
    assert torch.equal(
        binary_linear_norm(x, *matrix.part(), residual, gain, shift, epsilon, "a8"),
        linear_norm(x, packed, residual, gain, shift, epsilon, "a8"),
    )
    assert torch.equal(
        binary_ffnn(x, *matrix.part(), *back.part(), *norm_of(64), "a8"),
        ffnn(x, packed, back.packed(), *norm_of(64), "a8"),
    )


class Layer(nn.Module):
    """A product between two other operations."""

    weight: Tensor
    high: Tensor
    low: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, tensor in zip(
            ("weight", "high", "low", "bias"), random_matrix(33, 64).part()[:4], strict=True
        ):
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return binary_linear(x + 1, self.weight, self.high, self.low, self.bias, act="a8").relu()


def test_compiled_without_a_break_it_is_the_same() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for m in (1, 3, 7):
        torch.testing.assert_close(compiled(normal(m, 64)), layer(normal(m, 64)))


@pytest.mark.slow  # compiles C++
def test_compiled_by_inductor_it_is_the_same() -> None:
    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True)
    for m in (1, 3, 7):
        torch.testing.assert_close(compiled(normal(m, 64)), layer(normal(m, 64)))


def test_exported_it_is_the_same() -> None:
    layer = Layer()
    exported = torch.export.export(
        layer, (normal(3, 64),), dynamic_shapes=({0: torch.export.Dim("tokens")},)
    )
    assert "bitmaps.binary_linears" in exported.graph_module.code
    module = exported.module()
    for m in (2, 3, 9):
        torch.testing.assert_close(module(normal(m, 64)), layer(normal(m, 64)))
