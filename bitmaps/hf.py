"""Models of this package behind the interface of ``transformers``.

Importing this module registers packed folders with ``transformers``, so that their tokenizers open.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedModel
from transformers import BertConfig as TransformersConfig
from transformers.modeling_outputs import MaskedLMOutput

from bitmaps.bert import Bert
from bitmaps.packed.format import MODEL_TYPE


class PackedConfig(TransformersConfig):
    """A packed folder's ``config.json`` as ``transformers`` reads it.

    Tokenizers open in such a folder. ``transformers`` has no model for this configuration and says
    so, instead of starting with random weights.
    """

    model_type = MODEL_TYPE


AutoConfig.register(PackedConfig.model_type, PackedConfig, exist_ok=True)


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
