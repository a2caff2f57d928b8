"""Tensors, shapes and settings that the operations refuse, with the message that names them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from packed.matrices import norm_of, random_matrix, using
from torch import Tensor

from bitmaps.packed.custom_ops import binary_linear
from bitmaps.packed.kernels import LARGEST_K, Packed, Part
from bitmaps.packed.operations import ffnn, linear_norm, linears
from bitmaps.vocabulary import Act


def test_too_many_inputs_are_refused() -> None:
    k = LARGEST_K + 1
    weight, high = torch.zeros(1, (k + 7) // 8, dtype=torch.uint8), torch.ones(1)
    with pytest.raises(ValueError, match=f"{k} inputs: valid are 1 to {LARGEST_K}"):
        Packed([(weight, high, None, None, None)], k)
    with pytest.raises(ValueError, match="0 inputs: valid are 1 to"):
        Packed([(weight[:, :0], high, None, None, None)], 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": torch.zeros(5, 3, dtype=torch.int64)}, "torch.int64.*valid are uint8.*int8"),
        ({"weight": torch.zeros(5, 3, dtype=torch.bool)}, "torch.bool.*valid are uint8.*int8"),
        ({"weight": torch.zeros(5, 2, dtype=torch.uint8)}, r"\(5, 2\).*17"),
        ({"weight": torch.zeros(5, 4, dtype=torch.uint8)}, r"\(5, 4\).*17"),
        ({"weight": torch.zeros(5, 16, dtype=torch.int8), "low": None}, r"\(5, 16\).*17"),
        ({"weight": torch.zeros(15, dtype=torch.uint8)}, r"\(15,\).*17"),
        ({"weight": torch.zeros(5, 17, dtype=torch.int8)}, "int8.*no low"),
        ({"high": torch.zeros(4)}, r"\(4,\).* valid is float32 of shape \(5,\)"),
        ({"high": torch.zeros(5, 1)}, r"\(5, 1\).* valid is float32 of shape \(5,\)"),
        (
            {"high": torch.zeros(5, dtype=torch.float64)},
            r"float64.*valid is float32 of shape \(5,\)",
        ),
        ({"low": torch.zeros(6)}, r"\(6,\).* valid is float32 of shape \(5,\)"),
        (
            {"low": torch.zeros(5, dtype=torch.bfloat16)},
            r"bfloat16.*valid is float32 of shape \(5,\)",
        ),
        ({"bias": torch.zeros(17)}, r"\(17,\).* valid is float32 of shape \(5,\)"),
        (
            {"bias": torch.zeros(5, dtype=torch.float16)},
            r"float16.*valid is float32 of shape \(5,\)",
        ),
        ({"column": torch.zeros(5)}, r"\(5,\).* valid is float32 of shape \(17,\)"),
        (
            {"column": torch.zeros(17, dtype=torch.int64)},
            r"int64.*valid is float32 of shape \(17,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    names = ("weight", "high", "low", "bias", "column")
    parts = dict(zip(names, random_matrix(5, 17, column=True).part(), strict=True)) | changed
    with pytest.raises(ValueError, match=message):
        Packed([tuple(parts.values())], 17)
    with pytest.raises(ValueError, match=message):
        binary_linear(torch.zeros(2, 17), **parts)


def refused(backend: str, message: str, compute: Callable[[], object]) -> None:
    with using(backend), pytest.raises(ValueError, match=message):
        compute()


def test_inputs_of_another_size_are_refused(backend: str) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 18)
    message = r"inputs have shape \(2, 18\), but the matrix takes 17 numbers"
    refused(backend, message, lambda: linears(x, matrix, Act.a8))
    refused(
        backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), Act.a8)
    )
    refused(
        backend,
        message,
        lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), Act.a8),
    )


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]
)
def test_inputs_that_are_not_floating_point_are_refused(backend: str, dtype: torch.dtype) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 17, dtype=dtype)
    message = f"{dtype}; valid are floating point"
    refused(backend, message, lambda: linears(x, matrix, Act.a8))
    refused(
        backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), Act.a8)
    )
    refused(
        backend,
        message,
        lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), Act.a8),
    )


def test_a_single_number_is_refused(backend: str) -> None:
    refused(
        backend,
        r"inputs have shape \(\), but the matrix takes 17",
        lambda: linears(torch.tensor(1.0), random_matrix(5, 17).packed(), Act.a8),
    )


def test_what_is_on_another_device_is_refused(backend: str) -> None:
    def moved(part: Part) -> Part:
        return tuple(None if t is None else t.to("meta") for t in part)  # type: ignore[return-value]

    x, here = torch.zeros(2, 17), random_matrix(5, 17)
    away, gain = Packed([moved(here.part())], 17), norm_of(5)
    refused(
        backend,
        "inputs are on cpu, and the matrix is on another device",
        lambda: linears(x, away, Act.a8),
    )
    refused(backend, "inputs are on meta", lambda: linears(x.to("meta"), here.packed(), Act.a8))
    refused(
        backend, "several devices: cpu, meta", lambda: Packed([here.part(), moved(here.part())], 17)
    )
    message = "a residual of .* on meta"
    refused(
        backend,
        message,
        lambda: linear_norm(x, here.packed(), torch.zeros(2, 5, device="meta"), *gain, Act.a8),
    )
    there = (gain[0].to("meta"), *gain[1:])
    refused(
        backend,
        "on meta; valid is float32",
        lambda: linear_norm(x, here.packed(), torch.zeros(2, 5), *there, Act.a8),
    )
    back = Packed([moved(random_matrix(17, 5).part())], 5)
    refused(
        backend, "on different devices", lambda: ffnn(x, here.packed(), back, *norm_of(17), Act.a8)
    )


def test_activations_that_do_not_exist_are_refused(backend: str) -> None:
    matrix, x = random_matrix(5, 17).packed(), torch.zeros(2, 17)
    act: Any = "a4"
    message = "act='a4'.*valid are f32, a16, a11, a8, a6, a1"
    refused(backend, message, lambda: linears(x, matrix, act))
    refused(backend, message, lambda: linear_norm(x, matrix, torch.zeros(2, 5), *norm_of(5), act))
    refused(
        backend, message, lambda: ffnn(x, matrix, random_matrix(17, 5).packed(), *norm_of(17), act)
    )
    refused(backend, message, lambda: binary_linear(x, *random_matrix(5, 17).part(), act))


@pytest.mark.parametrize("act", [Act.f32, Act.a16, Act.a1])
def test_int8_weights_take_a8_alone(backend: str, act: Act) -> None:
    bits, byte = random_matrix(5, 17), random_matrix(5, 17, byte=True)
    x, message = torch.zeros(2, 17), f"act='{act}' is not available.*valid are a8$"
    refused(backend, message, lambda: linears(x, byte.packed(), act))
    refused(backend, message, lambda: linears(x, Packed([bits.part(), byte.part()], 17), act))
    refused(
        backend, message, lambda: linear_norm(x, byte.packed(), torch.zeros(2, 5), *norm_of(5), act)
    )
    refused(
        backend,
        message,
        lambda: ffnn(x, byte.packed(), random_matrix(17, 5).packed(), *norm_of(17), act),
    )


def test_int8_weights_take_a8_alone_in_the_second_matrix_of_ffnn_too(backend: str) -> None:
    expand, contract = random_matrix(5, 17).packed(), random_matrix(17, 5, byte=True).packed()
    refused(
        backend, "a8$", lambda: ffnn(torch.zeros(2, 17), expand, contract, *norm_of(17), Act.a16)
    )


def test_blocks_that_do_not_fit_are_refused(backend: str) -> None:
    x, first = torch.zeros(2, 17), random_matrix(5, 17)
    for contract in (random_matrix(17, 6), random_matrix(16, 5)):
        refused(
            backend,
            r"17 to \[5",
            lambda c=contract: ffnn(x, first.packed(), c.packed(), *norm_of(17), Act.a8),
        )
    two = Packed([first.part(), first.part()], 17)
    refused(
        backend,
        r"17 to \[5",
        lambda: ffnn(x, two, random_matrix(17, 5).packed(), *norm_of(17), Act.a8),
    )


def wrong_norms(n: int) -> list[tuple[Tensor, Tensor]]:
    """Gain and shift; none that the kernels would read beyond, should they be taken."""
    right = torch.zeros(n)
    return [
        (right.double(), right),
        (right, right.double()),
        (torch.zeros(n, 2), right),
        (right, torch.zeros(n + 1)),
    ]


def test_residuals_that_do_not_fit_are_refused(backend: str) -> None:
    matrix, x, norm = random_matrix(5, 17).packed(), torch.zeros(2, 17), norm_of(5)
    for residual in (torch.zeros(3, 5), torch.zeros(2, 6), torch.zeros(2, 2, 5)):
        refused(
            backend, "valid|where|of", lambda r=residual: linear_norm(x, matrix, r, *norm, Act.a8)
        )


def test_gains_and_shifts_that_do_not_fit_are_refused(backend: str) -> None:
    matrix, back, x = (
        random_matrix(5, 17).packed(),
        random_matrix(17, 5).packed(),
        torch.zeros(2, 17),
    )
    for gain, shift in wrong_norms(5):
        refused(
            backend,
            "valid|where|of",
            lambda g=gain, s=shift: linear_norm(x, matrix, torch.zeros(2, 5), g, s, 1e-5, Act.a8),
        )
    for gain, shift in wrong_norms(17):
        refused(
            backend,
            "valid|where|of",
            lambda g=gain, s=shift: ffnn(x, matrix, back, g, s, 1e-5, Act.a8),
        )


def test_several_matrices_are_refused_where_there_is_one_output(backend: str) -> None:
    two = Packed([random_matrix(5, 17).part()] * 2, 17)
    refused(
        backend,
        "valid|where|of",
        lambda: linear_norm(torch.zeros(2, 17), two, torch.zeros(2, 5), *norm_of(5), Act.a8),
    )
