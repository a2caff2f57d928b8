"""From token ids to vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitmaps.bert.config import BertConfig


class Embeddings(nn.Module):
    """``LayerNorm(word[id] + position[i] + token_type[type])``, Devlin et al. 2019, figure 2.

    Shapes: ``input_ids``, ``token_type_ids`` and ``position_ids``, which are 0, 1, 2 and so on
    unless given: (batch, length) -> (batch, length, hidden).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor | None = None
    ) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word(input_ids) + self.token_type(token_type_ids) + self.position(position_ids)
        return self.dropout(self.norm(x))
