"""The stack of transformer layers."""

from __future__ import annotations

from torch import Tensor, nn

from bitmaps.bert.attention import Attention
from bitmaps.bert.config import BertConfig
from bitmaps.bert.ffnn import FeedForward


class Layer(nn.Module):
    """Self-attention, then the feed-forward network.

    Each ends in its own residual sum and LayerNorm.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ffnn = FeedForward(config)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.ffnn(self.attention(x, mask))


class Encoder(nn.Module):
    """All layers in turn.

    Returns every state, the input first: layers + 1 tensors of (batch, length, hidden).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return states
