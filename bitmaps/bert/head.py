"""From the last layer's output to a score for every word piece, or for every class."""

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
        self.activation = activation(config.head_act)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.norm(self.activation(self.transform(x))))


class Classifier(nn.Module):
    """``classifier(act(pooler(x)))`` for the state x of [CLS]: a score for every class.

    Devlin et al. 2019, section 4.1, where act is tanh; the function of ``transformers``' classes
    such as ``BertForSequenceClassification``. Shapes: (batch, length, hidden) -> (batch, classes).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = activation(config.family.pooler_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.activation(self.pooler(hidden[:, 0]))))
