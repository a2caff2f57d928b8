"""The layers of a packed BERT. Their weights stay in bits; they predict and cannot be trained."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling, is_dynamo_compiling

from bitmaps.bert.activations import SignedGELU
from bitmaps.bert.attention import Attention
from bitmaps.bert.config import BertConfig
from bitmaps.bert.ffnn import FeedForward
from bitmaps.packed import custom_ops, operations
from bitmaps.packed.kernels import Packed, Part
from bitmaps.packed.weights import PackedWeight, of_its_type
from bitmaps.vocabulary import Act, Storage

ROWS = 4096  # rows of a table that are unpacked at a time, if no kernel reads it


def traced(x: Tensor) -> bool:
    """Whether torch.compile, torch.export or a fake mode traces, which needs custom operations."""
    return is_compiling() or type(x) is not Tensor


def unrounded_in_onnx(x: Tensor, act: Act | None) -> bool:
    """Whether an export to ONNX traces a product that PyTorch's own operations can compute.

    Any other product becomes a custom operation, which says that ONNX does not have it.
    """
    return act in (None, Act.f32) and traced(x) and torch.onnx.is_in_onnx_export()


class HasMatrices(nn.Module):
    """A module that multiplies by packed matrices, all of which read the same inputs.

    ``_packed`` holds them for the kernels. It is made when it is first needed, and again when a
    tensor was replaced.

    A product of one token takes microseconds, and ``nn.Module.__getattr__`` half a one. So every
    call reads from where torch keeps things: ``_modules`` and ``_buffers``.
    """

    _packed: Packed | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # ``share_memory`` moves a tensor's numbers, and the tensor stays the same
        self._packed = None
        return super()._apply(fn, recurse)


def are_same(part: Part, other: Part) -> bool:
    weight, high, low, bias, column = part
    return (
        weight is other[0]
        and high is other[1]
        and low is other[2]
        and bias is other[3]
        and column is other[4]
    )


class PackedLinear(HasMatrices):
    """``x W^T + b`` with a packed W. Shapes: (..., in) -> (..., out).

    Attributes:
        act: what one-bit matrices round the activations to (``operations``).
        product_act: what this matrix rounds them to. An int8 matrix rounds to int8, except for
            ``f32`` and ``a16``. It is ``None`` if no kernel reads the weights, which then are
            unpacked and multiplied in floats.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedWeight, bias: Tensor | None, act: Act) -> None:
        super().__init__()
        self.weight, self.act = weight, act
        self.register_buffer("bias", bias)
        self.out_features, self.in_features = weight.shape
        self.is_one_bit = weight.storage == Storage.bit
        in_bytes = weight.storage == Storage.int8 and act not in (Act.f32, Act.a16)
        self.product_act = act if self.is_one_bit else Act.a8 if in_bytes else None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(of_its_type(fn), recurse)  # the bias is fp32, as the kernels take it

    def part(self) -> Part:
        """As the operations take it."""
        modules: Any = self._modules
        weight = modules["weight"]._buffers
        return (
            weight["data"],
            weight["high"],
            weight["low"],
            self._buffers["bias"],
            weight["column"],
        )

    def packed(self) -> Packed:
        packed, part = self._packed, self.part()
        if packed is None or packed.is_traced or not are_same(packed.parts[0], part):
            packed = self._packed = Packed([part], self.in_features)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        act = self.product_act
        if act is not None:
            if (
                not is_dynamo_compiling()
                and (packed := self._packed) is not None
                and act in packed.calls
            ):
                modules: Any = self._modules
                y = packed.calls[act](x, modules["weight"]._buffers, self._buffers)
                if y is not None:
                    return y
            if not traced(x):
                return operations.linears(x, self.packed(), act)[0]
            if not unrounded_in_onnx(x, act):
                return custom_ops.binary_linear(x, *self.part(), act)
        step = self.out_features if unrounded_in_onnx(x, act) else ROWS
        rows = (self.weight.dense(slice(i, i + step)) for i in range(0, self.out_features, step))
        y = torch.cat([F.linear(x.float(), part) for part in rows], -1)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"act={self.act}"


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix. Shapes: (...) -> (..., hidden).

    Attributes:
        dtype: of the result. ``half()`` and its like change it, and nothing else here.
    """

    def __init__(self, weight: PackedWeight, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight, self.dtype = weight, dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight.dense(ids).to(self.dtype)


def are_alike(*modules: Any) -> bool:
    """Whether all have one-bit weights and the same ``act``, so that one operation can do all."""
    return all(
        isinstance(m, PackedLinear) and m.is_one_bit and m.act == modules[0].act for m in modules
    )


class PackedAttention(Attention, HasMatrices):
    """``Attention`` in one operation, some sentences at a time.

    Where the kernels have no attention it is three: queries, keys and values, whose inputs are
    rounded once; PyTorch's attention; and the rest.
    """

    def packed(self) -> Packed:
        """Queries, keys and values."""
        modules: Any = self._modules
        parts = [modules[name].part() for name in ("query", "key", "value")]
        packed = self._packed
        if packed is None or packed.is_traced or not all(map(are_same, packed.parts, parts)):
            packed = self._packed = Packed(parts, modules["query"].in_features)
        return packed

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        modules: Any = self._modules
        matrices = [modules["query"], modules["key"], modules["value"]]
        output, norm = modules["output"], modules["norm"]
        fused = not (traced(x) or self.training) and are_alike(*matrices, output)
        if not fused or not operations.attends(x, mask, self.heads):
            return super().forward(x, mask)
        return operations.attention(
            x,
            self.packed(),
            output.packed(),
            mask,
            self.heads,
            norm.weight,
            norm.bias,
            norm.eps,
            output.act,
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        modules: Any = self._modules
        matrices: list[PackedLinear] = [modules["query"], modules["key"], modules["value"]]
        if not are_alike(*matrices) or unrounded_in_onnx(x, matrices[0].act):
            return super().project(x)
        act = matrices[0].act
        if traced(x):
            parts = [matrix.part() for matrix in matrices]
            query, key, value = custom_ops.binary_linears(
                x, *map(list, zip(*parts, strict=True)), act
            )
        else:
            query, key, value = operations.linears(x, self.packed(), act)
        return query, key, value

    def conclude(self, x: Tensor, context: Tensor) -> Tensor:
        output: Any = self.output
        if not are_alike(output) or unrounded_in_onnx(x, output.act):
            return super().conclude(x, context)
        norm = (self.norm.weight, self.norm.bias, self.norm.eps, output.act)
        if traced(x):
            return custom_ops.binary_linear_norm(context, *output.part(), x, *norm)
        return operations.linear_norm(context, output.packed(), x, *norm)


class PackedFeedForward(FeedForward):
    """``FeedForward`` in one operation, a block of tokens at a time."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.fused = config.hidden_act == "gelu"  # the exact one
        if self.fused:
            self.activation = SignedGELU()

    def forward(self, x: Tensor) -> Tensor:
        expand: Any = self.expand
        contract: Any = self.contract
        if self.fused and unrounded_in_onnx(x, getattr(contract, "product_act", None)):
            return self.norm(x + contract(F.gelu(expand(x))))  # nothing takes the sign of GELU
        if not (self.fused and are_alike(expand, contract)):
            return super().forward(x)
        norm = (self.norm.weight, self.norm.bias, self.norm.eps, expand.act)
        if traced(x):
            return custom_ops.binary_ffnn(x, *expand.part(), *contract.part(), *norm)
        return operations.ffnn(x, expand.packed(), contract.packed(), *norm)
