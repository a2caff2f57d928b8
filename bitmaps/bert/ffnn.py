"""The feed-forward block of a layer."""

from __future__ import annotations

from torch import Tensor, nn

from bitmaps.bert.activations import activation
from bitmaps.bert.config import BertConfig


class FeedForward(nn.Module):
    """``LayerNorm(x + contract(act(expand(x))))``, the same for every position.

    Shapes: (batch, length, hidden).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.contract = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.contract(self.activation(self.expand(x)))))
