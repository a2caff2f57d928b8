"""Importing this registers packed folders with ``transformers``, so that their tokenizers open."""

from __future__ import annotations

from transformers import AutoConfig
from transformers import BertConfig as TransformersConfig

from bitmaps.packed.format import MODEL_TYPE


class PackedConfig(TransformersConfig):
    """A packed folder's ``config.json`` as ``transformers`` reads it.

    ``transformers`` has no model for this configuration and says so, instead of starting with
    random weights.
    """

    model_type = MODEL_TYPE


AutoConfig.register(PackedConfig.model_type, PackedConfig, exist_ok=True)
