from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.packed import folder
from bitmaps.packed.weights import Kind

Pack = Callable[..., Path]

WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then it was very big small red blue".split()  # noqa: SIM905


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


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """Fewer word pieces than ``tiny`` has."""
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]), encoding="utf-8")
    return BertTokenizer(str(vocabulary))


@pytest.fixture
def pack(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Pack:
    """Writes a model as a packed folder, a new one each time."""

    def write(model: Bert, embeddings: Kind | None = None, head: Kind | None = None) -> Path:
        target = tmp_path / f"packed{len(list(tmp_path.glob('packed*')))}"
        folder.save(model, target, tokenizer, embeddings, head)
        return target

    return write
