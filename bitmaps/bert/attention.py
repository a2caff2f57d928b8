"""The self-attention block of a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitmaps.bert.config import BertConfig


class Attention(nn.Module):
    """``LayerNorm(x + output(softmax(q k^T / sqrt(d)) v))`` with h heads of d = hidden / h numbers.

    Vaswani et al. 2017, section 3.2. Shapes: ``x`` (batch, length, hidden); ``mask`` (batch, 1, 1,
    length), true where a position may be attended to, or ``None`` for all positions.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention_dropout = config.attention_probs_dropout_prob
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, length, d)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), self.key(x), self.value(x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """``softmax(q k^T / sqrt(d)) v`` of each head, side by side.

        All inputs and the result are (batch, length, hidden).
        """
        heads = self.split_heads(query), self.split_heads(key), self.split_heads(value)
        dropout = self.attention_dropout if self.training else 0.0
        if query.is_cpu and query.requires_grad and query.dtype is torch.bfloat16:
            # the backward pass on a CPU takes ten times as long in bf16 as in fp32 (torch 2.13)
            q, k, v = (head.float() for head in heads)
            with torch.autocast("cpu", enabled=False):
                context = F.scaled_dot_product_attention(q, k, v, mask, dropout).to(query.dtype)
        else:
            context = F.scaled_dot_product_attention(*heads, mask, dropout)
        return context.transpose(1, 2).flatten(-2)

    def conclude(self, x: Tensor, context: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.output(context)))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.conclude(x, self.attend(*self.project(x), mask))
