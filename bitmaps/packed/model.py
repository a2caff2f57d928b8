"""A BERT whose weights are in bits: how it is put together, moved and turned back into floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.head import Head
from bitmaps.bert.model import on_meta
from bitmaps.errors import InputError
from bitmaps.packed.encoder import PackedEncoder
from bitmaps.packed.layers import PackedAttention, PackedEmbedding, PackedFeedForward, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.vocabulary import Act


class PackedBert(Bert):
    """A ``Bert`` with the blocks that can run packed, as ``assemble`` fills it.

    It computes in fp32, and moves between devices. Without the kernels, which are for the CPU, the
    reference computes the same (``bitmaps.packed.operations``).
    """

    def __init__(self, config: BertConfig) -> None:
        with on_meta():
            super().__init__(config)
            self.encoder = PackedEncoder(self.encoder.layers)
            for layer in self.encoder.layers:
                layer.attention = PackedAttention(config)
                layer.ffnn = PackedFeedForward(config)

    def parts(self) -> dict[str, PackedWeight | Tensor]:
        """Its parameters, as ``assemble`` takes them; a tied one comes once."""
        found: dict[str, PackedWeight | Tensor] = {}
        for name, _ in PackedBert(self.config).named_parameters():
            path, _, last = name.rpartition(".")
            part = getattr(self.get_submodule(path), last)
            found[name] = part if isinstance(part, PackedWeight) else part.detach()
        return found

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Raises:
        InputError: for another type than fp32, before anything is converted."""
        if (found := fn(torch.empty(0)).dtype) is not torch.float32:
            raise InputError(
                f"a packed model computes in float32, not in {str(found).removeprefix('torch.')}: "
                "its weights stay in bits whatever the type is"
            )
        return super()._apply(fn, recurse)


def assemble(
    config: BertConfig, parts: Mapping[str, PackedWeight | Tensor], act: Act
) -> PackedBert:
    """A model of these parameters (``pack_model``), in evaluation mode."""
    model, one_bit = PackedBert(config), config.one_bit_inputs()
    for name, part in parts.items():
        place(model, name, part, Act.a1 if name.split(".")[-2] in one_bit else act)
    return model.requires_grad_(False).eval()


def place(model: Bert, name: str, part: PackedWeight | Tensor, act: Act) -> None:
    """Put one parameter where it belongs; a packed one becomes a packed layer."""
    path, _, last = name.rpartition(".")
    module: Any = model.get_submodule(path)
    if isinstance(part, Tensor):
        parameter = nn.Parameter(part, requires_grad=False)
        if isinstance(module, PackedLinear):  # its matrix is already there
            module.bias = parameter.detach()
        else:
            setattr(module, last, parameter)
        if name == "embeddings.word.weight":
            model.tie()
        return
    above, _, own = path.rpartition(".")
    if isinstance(module, nn.Embedding):
        setattr(model.get_submodule(above), own, PackedEmbedding(part))
        if own == "word" and model.config.tie_word_embeddings and isinstance(model.head, Head):
            model.head.decoder = PackedLinear(part, model.head.decoder.bias, act)  # type: ignore[assignment]
    else:
        linear = PackedLinear(part.arranged(act), module.bias, act)
        setattr(model.get_submodule(above), own, linear)


@torch.no_grad()
def to_float(model: PackedBert) -> Bert:
    """An ordinary ``Bert`` in fp32 with the weights that a packed one stands for.

    Its inputs are not rounded; ``bitmaps.quantize.convert.restore_activations`` restores that.
    """
    plain, parts = Bert(model.config), model.parts()
    for name, parameter in plain.named_parameters():
        part = parts[name]
        parameter.copy_(part.dense() if isinstance(part, PackedWeight) else part)
    return plain.eval()
