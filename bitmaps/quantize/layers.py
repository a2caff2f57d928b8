"""Linear and embedding layers whose weight is quantized going forward, and fp32 (*latent*) where it is trained."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.quantize.quantizer import Quantizer
from bitmaps.quantize.rounding import Rounding


class QuantizedLinear(nn.Linear):
    """``x q(W)^T + b``. ``weight`` is the latent fp32 parameter, ``effective_weight`` what the product is taken with."""

    quantizer: Quantizer | Rounding

    @classmethod
    def from_float(cls, linear: nn.Linear, quantizer: Quantizer | Rounding) -> Self:
        """The quantized layer around ``linear``'s own parameters: the same objects, so that what was tied stays tied."""
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight, layer.bias, layer.quantizer = linear.weight, linear.bias, quantizer
        return layer.train(linear.training)

    @property
    def effective_weight(self) -> Tensor:
        """q(W), of the shape of ``weight``."""
        return self.quantizer(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.effective_weight, self.bias)


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
        """q(W), of the shape of ``weight``."""
        return self.quantizer(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.effective_weight, self.padding_idx)
