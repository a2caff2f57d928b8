"""Models of this package behind the interface of ``transformers``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig as TransformersConfig
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

import bitmaps.packed.registration  # noqa: F401 (so that the tokenizer of a packed folder opens)
from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import save
from bitmaps.vocabulary import Task


class TransformersBert(PreTrainedModel):
    """A ``Bert`` behind the interface of ``transformers.BertForMaskedLM``."""

    config_class = TransformersConfig
    main_input_name = "input_ids"

    def __init__(self, config: TransformersConfig, bert: Bert) -> None:
        super().__init__(config)
        self.bert = bert

    @can_return_tuple  # type: ignore[untyped-decorator]  # takes `return_dict`
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> MaskedLMOutput:
        """What ``BertForMaskedLM`` returns for the same arguments; it has more of them.

        Args:
            attention_mask, token_type_ids, position_ids: see ``Bert.encode``.
            labels: (batch, length), -100 where there is no loss. The loss is the mean.
            output_hidden_states: return the hidden states too; by default as ``config`` says.

        Raises:
            TypeError: for any other argument, such as ``inputs_embeds``, and for attentions.
        """
        if self.config.output_attentions:
            raise TypeError("attentions are not available: set config.output_attentions=False")
        states = self.bert.encode(input_ids, attention_mask, token_type_ids, position_ids)
        logits = self.bert.head(states[-1])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = tuple(states) if output_hidden_states else None
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=hidden_states)

    def save_pretrained(  # type: ignore[override]  # takes no option rather than ignore it
        self, save_directory: str | os.PathLike[str]
    ) -> None:
        """Write a folder that ``AutoModelForMaskedLM`` and ``bitmaps.load`` open.

        See ``checkpoint.save``.

        Raises:
            TypeError: for a packed model, whose folder can be copied instead.
            FileExistsError: when the folder already holds a model.
        """
        save(self.bert, Path(save_directory))


def to_transformers(model: Bert) -> TransformersBert:
    """Wrap any model that ``bitmaps.load`` opens in a thin ``PreTrainedModel``.

    For example::

        pipeline("fill-mask", model=bitmaps.to_transformers(model), tokenizer=folder)

    Raises:
        TypeError: for a model of another task.
    """
    if model.config.task is not Task.masked_lm:
        raise TypeError(
            f"to_transformers wraps masked-language models, and this is for {model.config.task}"
        )
    values = replace(model.config, model_type="bert").to_dict()  # the equal BERT's
    kept = {name: values[name] for name in values if name not in ("model_type", "bitmaps")}
    return TransformersBert(TransformersConfig(**kept), model).eval()
