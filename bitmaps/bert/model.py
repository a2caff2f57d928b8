"""BERT and its head, one file a component."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bitmaps.bert.attention import Attention
from bitmaps.bert.config import BertConfig
from bitmaps.bert.embeddings import Embeddings
from bitmaps.bert.encoder import Encoder
from bitmaps.bert.head import Classifier, Head
from bitmaps.bert.pooling import SentenceVector
from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Bert(nn.Module):
    """Embeddings, encoder and the head of its task: ``head(encoder(embeddings(ids)))``.

    With a masked-LM head it is the function of ``transformers.BertForMaskedLM``, with a classifier
    that of ``BertForSequenceClassification``, and with a sentence vector that of
    ``SentenceTransformer``. The same holds for the other rows of ``FAMILIES``, if padding comes
    last.

    A model that was opened from a folder has its tokenizer, too.

    Parameters start as BERT's do: matrices from N(0, ``initializer_range``), biases at 0, LayerNorm
    gains at 1 and shifts at 0.
    """

    open_tokenizer: Callable[[], PreTrainedTokenizerBase] | None = None

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.head: Head | SentenceVector | Classifier
        if config.task is Task.masked_lm:
            self.head = Head(config)
        elif config.task is Task.sentence_embedding:
            self.head = SentenceVector(config.pooling)
        else:
            self.head = Classifier(config)
        self.tie()
        self.reset_parameters()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the folder that the model was opened from. It is read when it is needed.

        Raises:
            InputError: when the model was not opened from a folder, or the folder has none.
        """
        if self.open_tokenizer is None:
            raise InputError("the model was not opened from a folder: pass a tokenizer")
        return self.open_tokenizer()

    def tie(self) -> None:
        """Make the word embeddings the decoder's matrix, where they are one."""
        if self.config.tie_word_embeddings and isinstance(self.head, Head):
            self.head.decoder.weight = self.embeddings.word.weight

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def randomize(self, generator: torch.Generator | None = None) -> Bert:
        """Draw *every* parameter, biases and LayerNorm too, from N(mean, ``initializer_range``).

        The mean is 1 for LayerNorm gains and 0 elsewhere. So no tensor is two-valued by accident,
        as a tensor of zeros or ones would be.
        """
        for name, parameter in self.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            nn.init.normal_(parameter, mean, self.config.initializer_range, generator)
        return self

    def set_dropout(self, p: float) -> Bert:
        """Set the dropout probability everywhere, attention included; it acts in training mode."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p
            if isinstance(module, Attention):
                module.attention_dropout = p
        return self

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> list[Tensor]:
        """The hidden states: the embeddings' output, then each layer's.

        They are layers + 1 tensors of (batch, length, hidden).

        Args:
            attention_mask: (batch, length), 1 (or true) for tokens and 0 for padding; or (batch,
                length, length), 1 where the token of a row may attend to that of a column.
            token_type_ids: (batch, length), 0 unless given. A model with one type ignores them.
            position_ids: (batch, length), 0, 1, 2 and so on unless given.

        Raises:
            InputError: for a sequence longer than ``max_position_embeddings``, or a mask of another
                number of dimensions.
        """
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise InputError(
                f"a sequence of {input_ids.shape[1]} tokens is longer than the model's "
                f"{self.config.max_position_embeddings} positions"
            )
        if token_type_ids is None or self.config.type_vocab_size == 1:
            token_type_ids = torch.zeros_like(input_ids)
        mask = None
        if attention_mask is not None:
            if attention_mask.ndim not in (2, 3):
                raise InputError(
                    "attention_mask must be (batch, length) or (batch, length, length), "
                    f"not {tuple(attention_mask.shape)}"
                )
            mask = attention_mask.bool()[:, None]
            mask = mask[:, None] if attention_mask.ndim == 2 else mask
        return self.encoder(self.embeddings(input_ids, token_type_ids, position_ids), mask)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the head makes: logits (batch, length, vocabulary) for masked words, vectors (batch,
        hidden), or the scores of classes (batch, classes).

        With ``positions``, a boolean (batch, length) of which n are true, a masked-LM head gives
        only the logits there: (n, vocabulary). The product with the vocabulary is the largest
        single cost of a BERT.
        """
        hidden = self.encode(input_ids, attention_mask, token_type_ids)[-1]
        if isinstance(self.head, Head):
            return self.head(hidden if positions is None else hidden[positions])
        if isinstance(self.head, SentenceVector):
            return self.head(hidden, attention_mask)
        return self.head(hidden)


class SkipInit(TorchFunctionMode):
    """Skips ``torch.nn.init``."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules that are made inside have shapes, but no numbers and no memory.

    Their initialization is skipped: on the meta device it would import PyTorch's compiler, which
    takes 80 MiB and a second.
    """
    with torch.device("meta"), SkipInit():
        yield
