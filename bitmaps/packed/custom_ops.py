"""The products of ``operations`` as custom operations, which torch.compile and torch.export know.

Custom operations take tensors only. Outside of a trace the layers call ``operations`` directly: a
custom operation costs ten microseconds per call, as much as the product of one token with a matrix
of BERT-base.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.packed import operations
from bitmaps.packed.kernels import Packed
from bitmaps.vocabulary import Act


def check_act_of_onnx(act: str) -> None:
    """Check whether a product can be exported to ONNX.

    Raises:
        InputError: when its activations are rounded, for which ONNX has no operator.
    """
    if act != Act.f32:
        always = ", which layers trained with one-bit inputs do not have" if act == Act.a1 else ""
        raise InputError(
            f'ONNX has no product that rounds activations to {act}; valid is act="f32"{always}'
        )


def not_in_onnx(act: str) -> None:
    """Raises:
    InputError: when an export to ONNX meets a custom operation, as it does for rounded products."""
    if torch.onnx.is_in_onnx_export():
        check_act_of_onnx(act)


@torch.library.custom_op("bitmaps::binary_linears", mutates_args=())
def binary_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    highs: Sequence[Tensor],
    lows: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    columns: Sequence[Tensor | None],
    act: str,
) -> list[Tensor]:
    """``operations.linears``."""
    packed = Packed(list(zip(weights, highs, lows, biases, columns, strict=True)), x.shape[-1])
    return operations.linears(x, packed, cast(Act, act))


@binary_linears.register_fake
def _(x, weights, highs, lows, biases, columns, act):  # type: ignore[no-untyped-def]
    not_in_onnx(act)
    return [x.new_empty((*x.shape[:-1], high.shape[0])) for high in highs]


@torch.library.custom_op("bitmaps::binary_linear_norm", mutates_args=())
def binary_linear_norm(
    x: Tensor,
    weight: Tensor,
    high: Tensor,
    low: Tensor | None,
    bias: Tensor | None,
    column: Tensor | None,
    residual: Tensor,
    gain: Tensor,
    shift: Tensor,
    epsilon: float,
    act: str,
) -> Tensor:
    """``operations.linear_norm``."""
    packed = Packed([(weight, high, low, bias, column)], x.shape[-1])
    return operations.linear_norm(x, packed, residual, gain, shift, epsilon, cast(Act, act))


@binary_linear_norm.register_fake
def _(x, weight, high, low, bias, column, residual, gain, shift, epsilon, act):  # type: ignore[no-untyped-def]
    not_in_onnx(act)
    return x.new_empty(residual.shape)


@torch.library.custom_op("bitmaps::binary_ffnn", mutates_args=())
def binary_ffnn(
    x: Tensor,
    expand: Tensor,
    expand_high: Tensor,
    expand_low: Tensor | None,
    expand_bias: Tensor | None,
    expand_column: Tensor | None,
    contract: Tensor,
    contract_high: Tensor,
    contract_low: Tensor | None,
    contract_bias: Tensor | None,
    contract_column: Tensor | None,
    gain: Tensor,
    shift: Tensor,
    epsilon: float,
    act: str,
) -> Tensor:
    """``operations.ffnn``."""
    first = Packed([(expand, expand_high, expand_low, expand_bias, expand_column)], x.shape[-1])
    second = Packed(
        [(contract, contract_high, contract_low, contract_bias, contract_column)], expand.shape[0]
    )
    return operations.ffnn(x, first, second, gain, shift, epsilon, cast(Act, act))


@binary_ffnn.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
    not_in_onnx(rest[-1])
    return x.new_empty(x.shape)


def binary_linear(
    x: Tensor,
    weight: Tensor,
    high: Tensor,
    low: Tensor | None = None,
    bias: Tensor | None = None,
    column: Tensor | None = None,
    act: Act = Act.a8,
) -> Tensor:
    """The product with one matrix: x (..., k) -> (..., n).

    Args:
        weight: uint8 (n, ceil(k / 8)) or int8 (n, k).
        high, low, bias: fp32 (n).
        column: fp32 (k).

    Raises:
        ValueError: for tensors that do not fit each other, or an unknown ``act``.
    """
    return binary_linears(x, [weight], [high], [low], [bias], [column], act)[0]
