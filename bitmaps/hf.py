"""Models of this package behind the interface of ``transformers``."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertConfig as TransformersConfig
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

import bitmaps.packed.registration  # noqa: F401 (so that the tokenizer of a packed folder opens)
from bitmaps.bert import Bert


class TransformersBert(PreTrainedModel):
    """A ``Bert`` behind the interface of ``transformers``: the same tensors in, ``.logits`` out."""

    config_class = TransformersConfig
    main_input_name = "input_ids"

    def __init__(self, config: TransformersConfig, bert: Bert) -> None:
        super().__init__(config)
        self.bert = bert

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **unused: Any,
    ) -> MaskedLMOutput:
        return MaskedLMOutput(logits=self.bert(input_ids, attention_mask, token_type_ids))


def to_transformers(model: Bert) -> TransformersBert:
    """Wrap any model that ``bitmaps.load`` opens in a thin ``PreTrainedModel``.

    For example::

        pipeline("fill-mask", model=bitmaps.to_transformers(model), tokenizer=folder)
    """
    values = model.config.to_dict()
    kept = {name: values[name] for name in values if name not in ("model_type", "bitmaps")}
    return TransformersBert(TransformersConfig(**kept), model).eval()
