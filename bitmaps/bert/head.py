"""From a layer's output to a score for every word piece."""

from __future__ import annotations

from torch import Tensor, nn

from bitmaps.bert.activations import activation
from bitmaps.bert.config import BertConfig


class Head(nn.Module):
    """``decoder(LayerNorm(act(transform(x))))``: the masked-language-model head.

    Shapes: (..., hidden) -> (..., vocabulary). The decoder's weight is usually the word embeddings'
    own parameter (``Bert`` ties them). Its bias is the head's.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.hidden_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.transform(x))))
