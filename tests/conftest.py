from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitmaps.bert import Bert, BertConfig


@pytest.fixture
def tiny() -> Bert:
    """A two-layer BERT in evaluation mode of which no tensor is two-valued."""
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, initializer_range=0.3,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def ids() -> Tensor:
    """Three sequences of seven tokens for ``tiny``."""
    return torch.randint(60, (3, 7), generator=torch.Generator().manual_seed(1))
