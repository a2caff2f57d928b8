"""Products with packed matrices: the reference in plain PyTorch, and the calls of the C kernels.

A matrix of one bit per weight has rows of two values, low and high. The activations of a token are
multiplied by the matrix's column scales, if it has any, and rounded to whole numbers q with a scale
s (``bitmaps.packed.activations``). Then output r is

    y_r = s * ((high_r - low_r) * dot(bits_r, q) + low_r * sum(q)) + bias_r

which is s * high_r * (2 dot(bits_r, q) - sum(q)) + bias_r where low is -high. The dot product and
the sum are exact, and are rounded to fp32 once. What follows is computed in fp32, in the order of
the formula. So all kernels and the reference give the same bits, except for ``f32``.

A matrix of int8 has y_r = s * high_r * dot(w_r, q) + bias_r, with ``a8`` only. A token with a NaN
or an infinity gets a row of NaN. ``f32`` follows ordinary arithmetic instead.

The reference runs on any device, the kernels on the CPU. Both compute in float32 and convert other
types.
"""

from __future__ import annotations

import ctypes
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from bitmaps.bert.activations import SignedGELU
from bitmaps.packed import kernels as native
from bitmaps.packed.activations import LARGEST, round_activations
from bitmaps.packed.kernels import Packed, Part
from bitmaps.packed.tiles import in_rows
from bitmaps.vocabulary import Act

OUT_OF_MEMORY = "the kernels could not get memory"
HEAD = 32  # the kernels need heads whose size is a multiple of this
BLOCK = 1024  # rows that the reference unpacks at a time, to save memory


def unpack(packed: Tensor, k: int) -> Tensor:
    """uint8 (..., ceil(k / 8)), the lowest bit first -> bool (..., k)."""
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    return (packed[..., None] & bits).bool().flatten(-2)[..., :k]


def pack(bits: Tensor) -> Tensor:
    """bool or uint8 (n, k) -> uint8 (n, ceil(k / 8)), the lowest bit first."""
    padded = F.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(
        -1, dtype=torch.uint8
    )


def reference_linear(x: Tensor, part: Part, act: Act) -> Tensor:
    """One matrix, without the kernels: (..., k) -> (..., n), in fp32 even under ``autocast``."""
    weight, high, low, bias, column = part
    weight = in_rows(weight)
    k, is_bits = x.shape[-1], weight.dtype == torch.uint8
    q, scale = round_activations(x if column is None else x * column, act)
    if act != Act.f32:  # in a type that holds every sum exactly
        largest = LARGEST[act] * (1 if is_bits else 128) * k
        q = q.to(torch.float32 if largest <= 2**24 else torch.float64)
    dots = []
    with torch.autocast(x.device.type, enabled=False):
        for rows in weight.split(BLOCK):
            units = (unpack(rows, k) if is_bits else rows).to(q.dtype)
            dots.append((q @ units.mT).float())
    dot, total = torch.cat(dots, -1), q.sum(-1, keepdim=True).float()
    products = (
        high * (2 * dot - total if is_bits else dot)
        if low is None
        else (high - low) * dot + low * total
    )
    y = products * scale
    return y if bias is None else y + bias


def address(tensor: Tensor) -> int:
    """The address of a tensor's numbers.

    Raises:
        ValueError: when it has none, because it belongs to a transformation of PyTorch.
    """
    found = tensor.data_ptr()
    if not found and tensor.numel():
        raise ValueError(
            "the kernels cannot compute with a tensor without numbers (a fake mode or torch.func)"
        )
    return found


def native_input(x: Tensor) -> Tensor:
    """x as the kernels take it: contiguous fp32."""
    return x if x.dtype is torch.float32 and x.is_contiguous() else x.to(torch.float32).contiguous()


def norm_input(tensor: Tensor, size: int, x: Tensor) -> Tensor:
    """Gain or shift of a LayerNorm as the kernels take it.

    Raises:
        ValueError: when it is not float32 of shape (size,), or on another device than x.
    """
    if tensor.shape != (size,) or tensor.dtype != torch.float32 or tensor.device != x.device:
        raise ValueError(
            f"a gain or shift is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; "
            f"valid is float32 of shape ({size},) on {x.device}"
        )
    return tensor.contiguous()


def parts_of(packed: Packed) -> list[Part]:
    # a trace records the module's own tensors
    return packed.tensors if torch._C._get_tracing_state() is None else packed.parts


def kernels_for(operand: Packed | Tensor) -> native.Kernels | None:
    # torch.jit.trace cannot see what a kernel writes: it records the reference
    return native.kernels() if operand.is_cpu and torch._C._get_tracing_state() is None else None


def check(x: Tensor, packed: Packed, act: str) -> list[int]:
    """All sizes of x except the last.

    Raises:
        ValueError: for inputs of another size or device, or an ``act`` that these weights do not
            have.
    """
    *outer, k = x.shape or (0,)
    if k != packed.k:
        raise ValueError(
            f"inputs have shape {tuple(x.shape)}, but the matrix takes {packed.k} numbers"
        )
    if x.is_cpu != packed.is_cpu:
        raise ValueError(f"inputs are on {x.device}, and the matrix is on another device")
    if x.dtype is not torch.float32 and not x.is_floating_point():
        raise ValueError(f"inputs are {x.dtype}; valid are floating point numbers")
    if act not in packed.acts:
        raise no_such(packed, act)
    return outer


def no_such(packed: Packed, act: str) -> ValueError:
    return ValueError(
        f"act='{act}' is not available for these weights; valid are {', '.join(packed.acts)}"
    )


# A product of one token takes microseconds. Asking for a size or checking a result takes a tenth of
# one, so the functions below do each only once.


def linears(x: Tensor, packed: Packed, act: Act) -> list[Tensor]:
    """The products of x (..., k) with matrices that all read it: (..., n_i), in x's dtype.

    Raises:
        MemoryError: when the kernels get no memory, here and in the functions below.
    """
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
            f"a residual of {tuple(residual.shape)} on {residual.device} does not fit the product "
            f"of {tuple(x.shape)} on {x.device} with matrices of {packed.sizes}"
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
    """``LayerNorm(x + contract(gelu(expand(x))))``, with ``SignedGELU``."""
    outer = check(x, expand, act)
    if expand.sizes != [contract.k] or contract.sizes != [expand.k]:
        raise ValueError(
            f"the matrices of a block do not fit: {expand.k} to {expand.sizes} and "
            f"{contract.k} to {contract.sizes} numbers"
        )
    if contract.is_cpu != expand.is_cpu:
        raise ValueError("the two matrices of a block are on different devices")
    if act not in contract.acts:
        raise no_such(contract, act)
    gain, shift = norm_input(gain, expand.k, x), norm_input(shift, expand.k, x)
    if (found := kernels_for(expand)) is None:
        inner = SignedGELU()(reference_linear(x.float(), parts_of(expand)[0], act))
        y = x.float() + reference_linear(inner, parts_of(contract)[0], act)
        return F.layer_norm(y, gain.shape, gain, shift, epsilon).to(x.dtype)
    inputs = native_input(x)
    y = torch.empty_like(inputs)
    if found.library.bitmaps_ffnn(
        expand.plan(found, act), contract.plan(found, act), torch.get_num_threads(),
        address(inputs), prod(outer),
        address(y), address(gain), address(shift), epsilon,
    ):  # fmt: skip
        raise MemoryError(OUT_OF_MEMORY)
    return y.to(x.dtype)


def attends(x: Tensor, mask: Tensor | None, heads: int) -> bool:
    """Whether the kernels have ``attention`` for this processor, these inputs and these heads."""
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


def mask_input(mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """A mask that fits (``attends``) as the kernels take it."""
    return None if mask is None else mask.expand(batch, 1, 1, length).contiguous()


def attention(
    x: Tensor, project: Packed, output: Packed, mask: Tensor | None, heads: int,
    gain: Tensor, shift: Tensor, epsilon: float, act: Act,
) -> Tensor:  # fmt: skip
    """``LayerNorm(x + output(softmax(q k^T / sqrt(d)) v))``; ``project`` makes q, k and v of x.

    Args:
        x: (batch, length, hidden), as is the result.
        mask: (batch, 1, 1, length), true where a token may be attended to. A token that may attend
            to nothing gets zeros.

    Raises:
        ValueError: where ``attends`` is false; for matrices and gains that do not fit; and as
            ``check`` does.
    """
    outer, hidden = check(x, project, act), project.k
    if not attends(x, mask, heads):
        what = "no mask" if mask is None else f"a mask of {mask.dtype}, {tuple(mask.shape)}"
        raise ValueError(
            f"the kernels have no attention here for inputs of {tuple(x.shape)}, {heads} heads and "
            f"{what}"
        )
    if (project.sizes, output.k, output.sizes) != (
        [hidden] * 3,
        hidden,
        [hidden],
    ) or not output.is_cpu:
        raise ValueError(
            f"attention over {hidden} numbers does not fit matrices of {project.sizes} and "
            f"{output.k} to {output.sizes}"
        )
    if act not in output.acts:
        raise no_such(output, act)
    gain, shift = norm_input(gain, hidden, x), norm_input(shift, hidden, x)
    found, inputs, (batch, length) = kernels_for(project), native_input(x), outer
    assert found is not None  # attends
    mask = mask_input(mask, batch, length)
    y = torch.empty_like(inputs)
    if found.library.bitmaps_attention(
        project.plan(found, act), output.plan(found, act), torch.get_num_threads(),
        address(inputs), batch * length, address(y), None if mask is None else address(mask),
        length, heads, address(gain), address(shift), epsilon,
    ):  # fmt: skip
        raise MemoryError(OUT_OF_MEMORY)
    return y.to(x.dtype)
