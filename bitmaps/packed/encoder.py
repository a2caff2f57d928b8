"""All layers of a packed BERT in one call of the kernels.

Layer by layer, Python would take a fifth of the time of a small model on one short sentence.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from bitmaps.bert.encoder import Encoder
from bitmaps.packed import operations
from bitmaps.packed.kernels import Kernels, Layer, Norm
from bitmaps.packed.layers import (
    PackedAttention,
    PackedFeedForward,
    PackedLinear,
    are_alike,
    traced,
)

Place = tuple[dict[str, Any], str]
"""Where PyTorch keeps a module, a tensor or a setting: a dictionary of a module, and a key."""


class Stack:
    """Layers whose matrices have one-bit weights, in the library's form.

    Attributes:
        heads: the attention heads of every layer.
        dictionaries, keys, contents: what the form was made of. It holds as long as each dictionary
            has the content under its key.
        hooks: the hooks of the modules that are not called one by one, and those of all modules.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.heads: int = cast(PackedAttention, layers[0].attention).heads
        self.layers = [(layer.attention, layer.ffnn) for layer in cast(Any, layers)]
        self.matrices = [
            (attention.packed(), attention.output.packed(), ffnn.expand.packed(),
             ffnn.contract.packed())
            for attention, ffnn in self.layers
        ]  # fmt: skip
        places = [place for layer in layers for place in places_of(layer)]
        places += [(cast(Any, layers)._modules, key) for key in layers._modules]
        self.dictionaries, self.keys = zip(*places, strict=True)
        self.contents = [dictionary.get(key) for dictionary, key in places]
        self.hooks = [
            hooks
            for layer in cast(Any, layers)
            for module in (layer, layer.attention, layer.ffnn)
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ] + [_global_forward_hooks, _global_forward_pre_hooks]
        self.forms: dict[int, Any] = {}

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a copy of the model makes its own, with its own addresses

    def holds(self) -> bool:
        """Whether nothing was replaced since."""
        found = map(dict.get, self.dictionaries, self.keys)
        return all(map(is_, found, self.contents))

    def fits(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether the kernels take these inputs, and nobody waits for a layer to be called."""
        return not any(self.hooks) and operations.attends(x, mask, self.heads)

    def run(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The output of each layer, (batch, length, hidden), for inputs that fit (``fits``).

        Raises:
            ValueError: for inputs that the matrices do not take.
            MemoryError: when the kernels get no memory.
        """
        batch, length = operations.check(x, self.matrices[0][0], self.layers[0][0].query.act)
        found, inputs = operations.kernels_for(x), operations.native_input(x)
        assert found is not None  # fits
        outputs = [torch.empty_like(inputs) for _ in self.layers]
        addresses = (ctypes.c_void_p * len(outputs))(*(operations.address(y) for y in outputs))
        mask = operations.mask_input(mask, batch, length)
        if found.library.bitmaps_encoder(
            self.form(found), len(outputs), torch.get_num_threads(), operations.address(inputs),
            batch * length, addresses, None if mask is None else operations.address(mask), length,
            self.heads,
        ):  # fmt: skip
            raise MemoryError(operations.OUT_OF_MEMORY)
        return outputs

    def form(self, found: Kernels) -> Any:
        """An array of ``struct layer``, which is valid as long as this object."""
        if (form := self.forms.get(found.number)) is None:
            form = (Layer * len(self.layers))()
            for into, (attention, ffnn), matrices in zip(
                form, self.layers, self.matrices, strict=True
            ):
                acts = attention.query.act, attention.output.act, ffnn.expand.act, ffnn.contract.act
                into.project, into.output, into.expand, into.contract = (
                    packed.plan(found, act) for packed, act in zip(matrices, acts, strict=True)
                )
                into.attention, into.ffnn = norm_of(attention.norm), norm_of(ffnn.norm)
            form = self.forms.setdefault(found.number, form)
        return form


def norm_of(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps)


def places_of(layer: Any) -> Iterator[Place]:
    """All that a layer's form depends on."""
    yield from ((layer._modules, "attention"), (layer._modules, "ffnn"))
    yield (vars(layer.attention), "heads")
    for block in (layer.attention, layer.ffnn):
        for name, module in block._modules.items():
            yield (block._modules, name)
            if isinstance(module, PackedLinear):
                yield from ((module._modules, "weight"), (module._buffers, "bias"))
                yield (vars(module), "act")
                yield from ((module.weight._buffers, key) for key in module.weight._buffers)
            elif isinstance(module, nn.LayerNorm):
                yield from ((module._parameters, "weight"), (module._parameters, "bias"))
                yield (vars(module), "eps")


def stacked(layers: nn.ModuleList) -> Stack | None:
    """The layers in one form; ``None`` if they have to be called one by one."""
    every = [(layer.attention, layer.ffnn) for layer in cast(Any, layers)]
    for attention, ffnn in every:
        if type(attention) is not PackedAttention or type(ffnn) is not PackedFeedForward:
            return None
        projections = attention.query, attention.key, attention.value
        if not ffnn.fused or not all(
            are_alike(*matrices)
            for matrices in (projections, (attention.output,), (ffnn.expand,), (ffnn.contract,))
        ):
            return None
        if not fit(attention, ffnn) or attention.heads != every[0][0].heads:
            return None
    stack = Stack(layers)
    return stack if all(packed.is_cpu for four in stack.matrices for packed in four) else None


def fit(attention: Any, ffnn: Any) -> bool:
    """Whether the sizes of a layer fit; if not, its own call says what is wrong."""
    hidden = attention.query.in_features
    square = [attention.query, attention.key, attention.value, attention.output]
    norms = [tensor for block in (attention, ffnn) for tensor in block.norm.parameters()]
    return (
        all((m.in_features, m.out_features) == (hidden, hidden) for m in square)
        and (ffnn.expand.in_features, ffnn.contract.out_features) == (hidden, hidden)
        and ffnn.expand.out_features == ffnn.contract.in_features
        and all(t.shape == (hidden,) and t.dtype is torch.float32 and t.is_cpu and t.is_contiguous()
                for t in norms)
        and len(norms) == 4
    )  # fmt: skip


class PackedEncoder(Encoder):
    """``Encoder`` in one call, where the kernels have all of its parts."""

    _stack: Stack | None = None

    def __init__(self, layers: nn.ModuleList) -> None:
        nn.Module.__init__(self)
        self.layers = layers

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # ``share_memory`` moves a tensor's numbers, and the tensor stays the same
        self._stack = None
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        plain = not (traced(x) or self.training) and x.dtype is torch.float32
        stack = self.stack() if plain and torch._C._get_tracing_state() is None else None
        if stack is None or not stack.fits(x, mask):
            return super().forward(x, mask)
        return [x, *stack.run(x, mask)]

    def stack(self) -> Stack | None:
        if self._stack is None or not self._stack.holds():
            self._stack = stacked(self.layers)
        return self._stack
