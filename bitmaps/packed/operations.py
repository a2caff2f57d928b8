"""Products with packed matrices, as PyTorch operations: what they compute, in plain PyTorch, and the way to the kernels in C.

A matrix of one bit a weight has rows of two values, low and high. With the activations of a token, times the matrix's column
scales if it has any, rounded to whole numbers q with a scale s,

    y_r = s * ((high_r - low_r) * dot(bits_r, q) + low_r * sum(q)) + bias_r

which is s * high_r * (2 dot(bits_r, q) - sum(q)) + bias_r where low is -high. ``act`` says what q is:

    f32     x itself, s = 1
    a16     round(x / s), s = max|x| / 32639: two bytes, a relative error below 1e-4
    a8      round(x / s), s = max|x| / 127
    a1      1 where x >= 0, else -1; s = mean|x|        (for models that were trained so)

A matrix of int8 has y_r = s * high_r * dot(w_r, q) + bias_r, with ``a8`` alone. A token that holds a NaN or an infinity, or
with ``a1`` numbers so large that their mean is infinite, gets a row of NaN, except with ``f32``, which leaves it to the arithmetic.

The reference runs on any device, the kernels on the CPU; both take float32, and convert what is not.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import Packed, Part
from bitmaps.vocabulary import Act

OUT_OF_MEMORY = "the kernels could not get memory"
TOP = {Act.a16: 32639.0, Act.a8: 127.0}
HEAD = 32  # what the size of a head is a multiple of, for the kernels
BLOCK = 1024  # rows of a matrix that the reference unpacks at a time, so that never all of it is there in fp32


def unpack(packed: Tensor, k: int) -> Tensor:
    """uint8 (..., ceil(k / 8)), the lowest bit first -> uint8 (..., k) of 0 and 1."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & 1).flatten(-2)[..., :k]


def pack(bits: Tensor) -> Tensor:
    """bool or uint8 (n, k) -> uint8 (n, ceil(k / 8)), the lowest bit first: what ``unpack`` takes."""
    padded = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(
        -1, dtype=torch.uint8
    )


def round_inputs(x: Tensor, act: Act) -> tuple[list[Tensor], Tensor]:
    """q as planes in fp32, of which each counts 256 times the next, and s (..., 1)."""
    if act == Act.f32:
        return [x], torch.ones_like(x[..., :1])
    if act == Act.a1:
        scale = x.abs().mean(-1, keepdim=True)
        return [torch.where(x >= 0, 1.0, -1.0)], torch.where(scale.isfinite(), scale, torch.nan)
    most = x.abs().amax(-1, keepdim=True)
    # PyTorch takes a number divided by a tensor for a product with the rounded reciprocal: so two tensors
    inverse = torch.full_like(most, TOP[act]) / most
    q = torch.where(most.isfinite() & inverse.isfinite(), (x * inverse).round(), 0.0)
    scale = torch.where(
        most.isfinite(), torch.where(inverse.isfinite(), most / TOP[act], 0.0), torch.nan
    )
    if act == Act.a8:
        return [q], scale
    upper = ((q + 128) / 256).floor()
    return [upper, q - 256 * upper], scale


def reference_linear(x: Tensor, part: Part, act: Act) -> Tensor:
    """One matrix, without the kernels: (..., k) -> (..., n). In fp32 under ``torch.autocast`` too, as with them."""
    weight, high, low, bias, column = part
    k, is_bits = x.shape[-1], weight.dtype == torch.uint8
    planes, scale = round_inputs(x if column is None else x * column, act)
    whole = planes[0] if len(planes) == 1 else 256 * planes[0] + planes[1]
    dots = []
    with torch.autocast(x.device.type, enabled=False):
        for rows in weight.split(BLOCK):
            units = (unpack(rows, k) if is_bits else rows).to(x.dtype)
            dot = planes[0] @ units.mT
            dots.append(dot if len(planes) == 1 else 256 * dot + planes[1] @ units.mT)
    dot, total = torch.cat(dots, -1), whole.sum(-1, keepdim=True)
    products = (
        high * (2 * dot - total if is_bits else dot)
        if low is None
        else (high - low) * dot + low * total
    )
    y = scale * products
    return y if bias is None else y + bias


def address(tensor: Tensor) -> int:
    """Where a tensor's numbers are.

    Raises:
        ValueError: when it has none, because a transformation of PyTorch looks at what is computed."""
    found = tensor.data_ptr()
    if not found and tensor.numel():
        raise ValueError(
            "a tensor without numbers, of a fake mode or torch.func, which do not see what the kernels compute"
        )
    return found


def native_input(x: Tensor) -> Tensor:
    """x as the kernels take it: contiguous fp32."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def norm_input(tensor: Tensor, size: int, x: Tensor) -> Tensor:
    """Gain or shift of a LayerNorm as the kernels take it.

    Raises:
        ValueError: when it is not (size) of float32, or not where x is."""
    if tensor.shape != (size,) or tensor.dtype != torch.float32 or tensor.device != x.device:
        raise ValueError(
            f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device} where float32 of ({size},) on {x.device} belongs"
        )
    return tensor.contiguous()


def parts_of(packed: Packed) -> list[Part]:
    # a trace has the module's own tensors
    return packed.tensors if torch._C._get_tracing_state() is None else packed.parts


def kernels_for(operand: Packed | Tensor) -> native.Kernels | None:
    # torch.jit.trace cannot see what a kernel writes: it records the reference
    return native.kernels() if operand.is_cpu and torch._C._get_tracing_state() is None else None


def check(x: Tensor, packed: Packed, act: str) -> list[int]:
    """The sizes of x but for the last.

    Raises:
        ValueError: for inputs of another size or on another device, or an ``act`` that does not exist or not for int8 weights."""
    *outer, k = x.shape or (0,)
    if k != packed.k:
        raise ValueError(
            f"inputs of shape {tuple(x.shape)} where the matrix takes {packed.k} numbers"
        )
    if x.is_cpu != packed.is_cpu:
        raise ValueError(f"inputs on {x.device} where the matrix is elsewhere")
    if x.dtype is not torch.float32 and not x.is_floating_point():
        raise ValueError(f"inputs of {x.dtype}; valid are floating point numbers")
    if act not in packed.acts:
        raise no_such(packed, act)
    return outer


def no_such(packed: Packed, act: str) -> ValueError:
    return ValueError(
        f"act='{act}' is not there for these weights; valid are {', '.join(packed.acts)}"
    )


# For one token a product takes microseconds. So sizes are asked for once, and a result is looked at where it comes: each is worth
# a tenth of one.


def linears(x: Tensor, packed: Packed, act: Act) -> list[Tensor]:
    """The products of x (..., k) with matrices that all read it: (..., n_i), in x's dtype.

    Raises:
        MemoryError: when the kernels could not get memory, here and in what follows."""
    outer = check(x, packed, act)
    if (found := kernels_for(packed)) is None:
        return [reference_linear(x.float(), part, act).to(x.dtype) for part in parts_of(packed)]
    inputs = native_input(x)
    outputs = [inputs.new_empty(*outer, n) for n in packed.sizes]
    addresses = (ctypes.c_void_p * len(outputs))(*(address(y) for y in outputs))
    if found.library.bitmaps_linears(
        packed.plan(found, act), torch.get_num_threads(), address(inputs), prod(outer), addresses
    ):
        raise MemoryError(OUT_OF_MEMORY)
    return outputs if inputs is x else [y.to(x.dtype) for y in outputs]


def linear_norm(
    x: Tensor,
    packed: Packed,
    residual: Tensor,
    gain: Tensor,
    shift: Tensor,
    epsilon: float,
    act: Act,
) -> Tensor:
    """``LayerNorm(residual + x W^T + b)``."""
    outer = check(x, packed, act)
    if (
        len(packed.sizes) != 1
        or residual.shape != (*outer, packed.sizes[0])
        or residual.device != x.device
    ):
        raise ValueError(
            f"a residual of {tuple(residual.shape)} on {residual.device} to products of {tuple(x.shape)} on {x.device} "
            f"with matrices of {packed.sizes}"
        )
    gain, shift = norm_input(gain, packed.sizes[0], x), norm_input(shift, packed.sizes[0], x)
    if (found := kernels_for(packed)) is None:
        y = reference_linear(x.float(), parts_of(packed)[0], act)
        return F.layer_norm(residual.float() + y, gain.shape, gain, shift, epsilon).to(x.dtype)
    inputs, residual = native_input(x), native_input(residual)
    y = torch.empty_like(residual)
    if found.library.bitmaps_linear_norm(
        packed.plan(found, act), torch.get_num_threads(), address(inputs), prod(outer),
        address(y), address(residual), address(gain), address(shift), epsilon,
    ):  # fmt: skip
        raise MemoryError(OUT_OF_MEMORY)
    return y.to(x.dtype)


def ffnn(
    x: Tensor,
    expand: Packed,
    contract: Packed,
    gain: Tensor,
    shift: Tensor,
    epsilon: float,
    act: Act,
) -> Tensor:
    """``LayerNorm(x + contract(gelu(expand(x))))``, with the exact GELU."""
    outer = check(x, expand, act)
    if expand.sizes != [contract.k] or contract.sizes != [expand.k]:
        raise ValueError(
            f"a block of {expand.k} to {expand.sizes} and {contract.k} to {contract.sizes} numbers"
        )
    if contract.is_cpu != expand.is_cpu:
        raise ValueError("the two matrices of a block are on different devices")
    if act not in contract.acts:
        raise no_such(contract, act)
    gain, shift = norm_input(gain, expand.k, x), norm_input(shift, expand.k, x)
    if (found := kernels_for(expand)) is None:
        inner = F.gelu(reference_linear(x.float(), parts_of(expand)[0], act))
        y = x.float() + reference_linear(inner, parts_of(contract)[0], act)
        return F.layer_norm(y, gain.shape, gain, shift, epsilon).to(x.dtype)
    inputs = native_input(x)
    y = torch.empty_like(inputs)
    if found.library.bitmaps_ffnn(
        expand.plan(found, act), contract.plan(found, act), torch.get_num_threads(), address(inputs), prod(outer),
        address(y), address(gain), address(shift), epsilon,
    ):  # fmt: skip
        raise MemoryError(OUT_OF_MEMORY)
    return y.to(x.dtype)


def attends(x: Tensor, mask: Tensor | None, heads: int) -> bool:
    """Whether the kernels have ``attention`` for this processor, these inputs and heads of this size."""
    found = kernels_for(x)
    if found is None or not found.attends or x.ndim != 3 or x.shape[-1] % (heads * HEAD):
        return False
    if mask is None:
        return True
    fits = (
        mask.ndim == 4
        and mask.shape[0] in (1, x.shape[0])
        and mask.shape[1:3] == (1, 1)
        and mask.shape[3] in (1, x.shape[1])
    )
    return fits and mask.dtype == torch.bool and mask.is_cpu


def attention(
    x: Tensor, project: Packed, output: Packed, mask: Tensor | None, heads: int,
    gain: Tensor, shift: Tensor, epsilon: float, act: Act,
) -> Tensor:  # fmt: skip
    """``LayerNorm(x + output(softmax(q k^T / sqrt(d)) v))`` with the products q, k and v of x with ``project``, where ``attends``.

    Args:
        x: (batch, length, hidden), as is the result.
        mask: (batch, 1, 1, length), true where a token may be attended to. One that may attend to nothing gets zeros.

    Raises:
        ValueError: where ``attends`` says no; for matrices and gains that do not fit; and as ``check`` does.
    """
    outer, hidden = check(x, project, act), project.k
    if not attends(x, mask, heads):
        what = "no mask" if mask is None else f"a mask of {mask.dtype}, {tuple(mask.shape)}"
        raise ValueError(
            f"the kernels have no attention for inputs of {tuple(x.shape)}, {heads} heads and {what} here"
        )
    if (project.sizes, output.k, output.sizes) != (
        [hidden] * 3,
        hidden,
        [hidden],
    ) or not output.is_cpu:
        raise ValueError(
            f"attention over {hidden} numbers with matrices of {project.sizes}, {output.k} to {output.sizes}"
        )
    if act not in output.acts:
        raise no_such(output, act)
    gain, shift = norm_input(gain, hidden, x), norm_input(shift, hidden, x)
    found, inputs, (batch, length) = kernels_for(project), native_input(x), outer
    assert found is not None  # attends
    mask = None if mask is None else mask.expand(batch, 1, 1, length).contiguous()
    y = torch.empty_like(inputs)
    if found.library.bitmaps_attention(
        project.plan(found, act), output.plan(found, act), torch.get_num_threads(), address(inputs), batch * length, address(y),
        None if mask is None else address(mask), length, heads, address(gain), address(shift), epsilon,
    ):  # fmt: skip
        raise MemoryError(OUT_OF_MEMORY)
    return y.to(x.dtype)


# The same as operations that torch.compile and torch.export know, which take tensors alone. Outside of a trace the layers call
# what is above: a custom operation costs ten microseconds a call, as much as the product of one token with a matrix of BERT-base.


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
    """``linears``."""
    packed = Packed(list(zip(weights, highs, lows, biases, columns, strict=True)), x.shape[-1])
    return linears(x, packed, cast(Act, act))


@binary_linears.register_fake
def _(x, weights, highs, lows, biases, columns, act):  # type: ignore[no-untyped-def]
    return [x.new_empty((*x.shape[:-1], weight.shape[0])) for weight in weights]


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
    """``linear_norm``."""
    packed = Packed([(weight, high, low, bias, column)], x.shape[-1])
    return linear_norm(x, packed, residual, gain, shift, epsilon, cast(Act, act))


@binary_linear_norm.register_fake
def _(x, weight, high, low, bias, column, residual, gain, shift, epsilon, act):  # type: ignore[no-untyped-def]
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
    """``ffnn``."""
    first = Packed([(expand, expand_high, expand_low, expand_bias, expand_column)], x.shape[-1])
    second = Packed(
        [(contract, contract_high, contract_low, contract_bias, contract_column)], expand.shape[0]
    )
    return ffnn(x, first, second, gain, shift, epsilon, cast(Act, act))


@binary_ffnn.register_fake
def _(x, *rest):  # type: ignore[no-untyped-def]
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
    """The product with one matrix: x (..., k) -> (..., n). Weight is uint8 (n, ceil(k / 8)) or int8 (n, k), high, low and bias are
    fp32 (n), column (k).

    Raises:
        ValueError: for tensors that do not fit each other, or an ``act`` that does not exist.
    """
    return binary_linears(x, [weight], [high], [low], [bias], [column], act)[0]
