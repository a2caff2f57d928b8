"""Linear and embedding layers that own their quantizers; their weight stays fp32 for training."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.packed.discover import one_bit
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.quantizer import Quantizer
from bitmaps.quantize.rounding import InputQuantizer, Rounding


class QuantizedLinear(nn.Linear):
    """``r(x) q(W)^T + b``. ``weight`` is the latent fp32 parameter.

    Attributes:
        quantizer: q; ``None`` uses the weight as it is.
        input_quantizer: r; ``None`` uses the inputs as they are.
        column: the column scales with which a weight without quantizer would be packed, if any.
            No checkpoint contains them: they are found in the weight.
    """

    quantizer: Quantizer | Rounding | None
    input_quantizer: InputQuantizer | None
    column: Tensor | None

    @classmethod
    def from_float(
        cls,
        linear: nn.Linear,
        quantizer: Quantizer | Rounding | None = None,
        input_quantizer: InputQuantizer | None = None,
    ) -> Self:
        """The quantized layer around ``linear``'s own parameters.

        They are the same objects, so tied parameters stay tied.
        """
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.register_module("quantizer", quantizer)
        layer.register_module("input_quantizer", input_quantizer)
        searched = quantizer is None and input_quantizer is not None
        packed = one_bit(linear.weight.detach()) if searched else None
        column = None if packed is None else packed.column
        layer.register_buffer("column", column, persistent=False)
        return layer.train(linear.training)

    @property
    def effective_weight(self) -> Tensor:
        """q(W), in the shape of ``weight``."""
        return self.weight if self.quantizer is None else self.quantizer(self.weight)

    def pack(self) -> PackedWeight | None:
        """q(W) packed, exactly; ``None`` without a weight quantizer."""
        return None if self.quantizer is None else self.quantizer.pack(self.weight)

    def effective_input(self, x: Tensor) -> Tensor:
        """r(x)."""
        if self.input_quantizer is None:
            return x
        column = self.column
        if isinstance(self.quantizer, Quantizer):
            _, column = self.quantizer.scales(self.weight)
        return self.input_quantizer(x, column)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.effective_input(x), self.effective_weight, self.bias)


class QuantizedEmbedding(nn.Embedding):
    """Rows of q(W). ``weight`` is the latent fp32 parameter."""

    quantizer: Quantizer | Rounding

    @classmethod
    def from_float(cls, embedding: nn.Embedding, quantizer: Quantizer | Rounding) -> Self:
        """The quantized layer around ``embedding``'s own parameter: the same object."""
        layer = cls(
            embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta"
        )
        layer.weight, layer.quantizer = embedding.weight, quantizer
        return layer.train(embedding.training)

    @property
    def effective_weight(self) -> Tensor:
        """q(W), in the shape of ``weight``."""
        return self.quantizer(self.weight)

    def pack(self) -> PackedWeight:
        """q(W) packed, exactly."""
        return self.quantizer.pack(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.effective_weight, self.padding_idx)


def quantized_layers(module: nn.Module) -> dict[str, QuantizedLinear | QuantizedEmbedding]:
    """The layers of one bit by their names. Layers that share a weight come once."""
    layers: dict[int, tuple[str, QuantizedLinear | QuantizedEmbedding]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedEmbedding) and isinstance(
            layer.quantizer, Quantizer
        ):
            layers.setdefault(id(layer.weight), (name.removeprefix("model."), layer))
    return dict(layers.values())
