"""Open any model: one in full precision, one of effective weights, or a packed one; and take it to ``transformers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertConfig as TransformersConfig
from transformers import PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.checkpoint import Head, locate
from bitmaps.command.schema import GROUPS
from bitmaps.errors import InputError
from bitmaps.packed import format as packed
from bitmaps.packed.kernels import ACTS, Act
from bitmaps.quantize.convert import round_activations
from bitmaps.quantize.rounding import signed_inputs


def load(
    source: str | Path,
    *,
    adapter: str | Path | None = None,
    head: Head = "checkpoint",
    act: Act | None = None,
) -> Bert:
    """Open a masked-language BERT, in evaluation mode.

    Args:
        source: a packed folder (``<run>/packed``), a Hugging Face folder or Hub id, a run folder, or
            ``package:<package>/<folder>``. What is not packed comes in fp32.
        adapter: a safetensors file to add to it (``apply_adapter``); ``bitmaps.ADAPTERS`` is where the shipped ones lie.
        head: ``"new"`` starts a masked-LM head afresh when the checkpoint has none.
        act: of a packed model, what activations are rounded to before they meet one-bit matrices: ``"a8"``, int8 with a scale a
            token, the default and fast; ``"a16"``; ``"f32"``, exact; or ``"a1"``, for a model that was trained so.

    Raises:
        InputError: when it cannot be found or read, or is no masked-language BERT.
    """
    folder = locate(str(source))
    if not packed.is_packed(folder):
        if act is not None:
            raise InputError(
                f"act={act} is of packed models, which {folder} is not: python -m bitmaps.packed <run folder>"
            )
        return as_trained(checkpoint.load(source, adapter=adapter, head=head))
    if adapter is not None or head != "checkpoint":
        raise InputError(f"{folder} is packed: neither an adapter nor a new head can be put on it")
    if act is not None and act not in ACTS:
        raise InputError(f"act={act!r} is unknown; valid are {', '.join(ACTS)}")
    return packed.load(folder, act or "a8")


def as_trained(model: Bert) -> Bert:
    """Have a model of effective weights that was trained with ``activations=bit`` round its activations so, in place: without it
    is another one. (That int8 activations are left out changes little, and is no harm.)"""
    trained = model.config.bitmaps or {}
    if trained.get("activations") == "bit":
        name = trained["components"]
        round_activations(model, GROUPS.get(name, name.split("+")), signed_inputs(model.config))
    return model


class TransformersBert(PreTrainedModel):
    """A ``Bert`` of ours behind the interface of ``transformers``: the same tensors, ``.logits``."""

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
    """A thin ``PreTrainedModel`` around any model that ``load`` gives, for example for

    pipeline("fill-mask", model=bitmaps.to_transformers(model), tokenizer=folder)
    """
    config = TransformersConfig(
        **{k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "bitmaps")}
    )
    return TransformersBert(config, model).eval()
