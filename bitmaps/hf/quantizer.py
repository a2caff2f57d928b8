"""Naive binarization of a model of floats while ``transformers`` opens it."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import DECODER, WORDS, build, hugging_face_name
from bitmaps.bert.families import POSITIONS, TYPES, renamed
from bitmaps.bert.head import Head
from bitmaps.bert.tensors import in_fp32, under_present_names
from bitmaps.errors import InputError
from bitmaps.packed.discover import fewest_bits
from bitmaps.packed.format import MODEL_TYPE, pack_model
from bitmaps.packed.layers import PackedEmbedding, PackedLinear
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.convert import binarize_naive, matrices, selected
from bitmaps.vocabulary import (
    GROUPS,
    Act,
    Component,
    Scale,
    Scope,
    Task,
    ValueSet,
    components_of,
)

logger = logging.get_logger(__name__)
ACTS = tuple(act for act in Act if act is not Act.a1)  # which is for models trained with it


@register_quantization_config(MODEL_TYPE)
@dataclass(repr=False)
class BinarizeConfig(QuantizationConfigMixin):
    """Binarizes a BERT of floats when ``transformers`` opens it, and runs it on the kernels::

        AutoModelForMaskedLM.from_pretrained(folder, quantization_config=BinarizeConfig("ffnn"))

    This is naive: nothing is trained and nothing calibrated, and the model predicts poorly. With
    all layers of all-MiniLM-L6-v2 in {-1,1} the cross entropy of masked words grows from 4.1 to
    7.4, and their accuracy falls from 0.37 to 0.12. ``rank_one`` is the scale that helps {-1,1}
    most, ``tensor`` the one that helps {0,1} most; without a scale nothing is left (docs/log.md).

    The result is that of ``bitmaps.quantize.convert.binarize_naive``, packed, with the same
    options. It cannot be stored by ``save_pretrained``: pack it with bitmaps instead.

    Attributes:
        components: a group (``layers``, ``all``, …) or components joined by ``+``
            (``attention+ffnn``).
        values: ``pm1`` for {-1,1}, or ``01`` for {0,1}.
        scale: what shares one scale: ``none``, ``tensor``, ``row``, or ``rank_one``, which has one
            per row and one per column.
        scope: ``matrices``, or ``all`` parameters of a component, biases and LayerNorms included.
        act: what activations are rounded to before they are multiplied with one-bit matrices, as in
            ``bitmaps.load``.

    Raises:
        InputError: for an unknown name.
    """

    components: str = "layers"
    values: str = "pm1"
    scale: str = Scale.rank_one
    scope: str = Scope.matrices
    act: str = Act.a8
    quant_method: Any = field(default=MODEL_TYPE, kw_only=True)  # which `transformers` reads

    def __post_init__(self) -> None:
        kinds: tuple[tuple[str, type[StrEnum] | tuple[str, ...]], ...] = (
            ("values", ValueSet), ("scale", Scale), ("scope", Scope), ("act", ACTS),
            ("quant_method", (MODEL_TYPE,)),
        )  # fmt: skip
        for name, valid in kinds:
            if (found := getattr(self, name)) not in list(valid):
                raise InputError(f"unknown {name} {found!r}; valid are {', '.join(valid)}")
        try:
            components_of(self.components)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"unknown components {self.components!r}; valid are {', '.join(GROUPS)}, and "
                f"{', '.join(Component)} joined by +"
            ) from error


@register_quantizer(MODEL_TYPE)
class BinarizeQuantizer(HfQuantizer):
    """What ``transformers`` calls while it opens a model with a ``BinarizeConfig``."""

    def __init__(self, quantization_config: BinarizeConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.config = quantization_config
        if self.pre_quantized:
            raise InputError(
                "a config.json with a quantization_config of bitmaps is not supported: a packed "
                f"folder has the model_type {MODEL_TYPE!r} instead"
            )

    def validate_environment(self, *arguments: Any, device_map: Any = None, **options: Any) -> None:
        """Raises:
        InputError: for a ``device_map``."""
        if device_map is not None:
            raise InputError(
                f"device_map={device_map!r} is not supported by a BinarizeConfig: open the model "
                "without it, and move it by model.to(device)"
            )

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **options: Any
    ) -> PreTrainedModel:
        binarize(model, self.config)
        return model

    def is_serializable(self) -> bool:
        logger.warning(
            "A binarized model is stored as a packed folder: load the floats with bitmaps.load, "
            "binarize them with binarize_naive, and write them with bitmaps.packed.format.save"
        )
        return False

    @property
    def is_trainable(self) -> bool:
        return False


@torch.no_grad()
def binarize(model: PreTrainedModel, config: BinarizeConfig) -> None:
    """Binarize a BERT of ``transformers`` naively, and put packed layers into it, in place.

    Raises:
        InputError: for an architecture that is no row of ``FAMILIES``, and for components that this
            class does not have.
    """
    equal, components = equal_bert(model), components_of(config.components)
    check_components(model, equal, components)
    scale, scope = Scale(config.scale), Scope(config.scope)
    binarize_naive(equal, components, ValueSet(config.values), scale, scope)
    every = scope is Scope.all
    chosen = dict(selected(equal, components)) if every else matrices(equal, components)
    parts = own_parts(equal, chosen)
    for name, part in parts.items():
        if isinstance(part, Tensor):
            model.get_parameter(in_model(model, equal, name)).copy_(part)
    for name, part in parts.items():  # now that the biases are there
        if isinstance(part, Tensor):
            continue
        path = in_model(model, equal, name).removesuffix(".weight")
        module = model.get_submodule(path)
        if isinstance(module, nn.Embedding):
            model.set_submodule(path, PackedEmbedding(part, module.weight.dtype))
        else:
            act, bias = Act(config.act), module.get_parameter("bias").float().clone()
            model.set_submodule(path, PackedLinear(part.arranged(act), bias, act))
    model.requires_grad_(False)  # packed layers pass no gradient on


def own_parts(equal: Bert, chosen: Container[str]) -> dict[str, PackedWeight | Tensor]:
    """The chosen parameters, packed where that takes fewer bytes, under the names of their
    architecture."""
    family = equal.config.family
    parts = {
        hugging_face_name(name): part for name, part in pack_model(equal).items() if name in chosen
    }
    if WORDS in parts and isinstance(equal.head, Head) and equal.config.tie_word_embeddings:
        parts[f"{DECODER}.weight"] = parts[WORDS]
    # an architecture may have other rows of positions, and no token types
    if POSITIONS in parts:
        tables = {
            POSITIONS: equal.embeddings.position.weight,
            TYPES: equal.embeddings.token_type.weight,
        }
        found = family.own_tensors(tables, equal.config.pad_token_id)
        parts = {name: part for name, part in parts.items() if name not in tables}
    else:
        found = {}
    return {
        renamed(name, family.modules, "bert", family.prefix): part for name, part in parts.items()
    } | {name: fewest_bits(table, table=False) or table for name, table in found.items()}


def equal_bert(model: PreTrainedModel) -> Bert:
    """The BERT with these weights, in fp32; of a class with another head, its body."""
    values = model.config.to_dict() | {"architectures": None, "quantization_config": None}
    config = BertConfig.from_dict(values)
    family, name = config.family, type(model).__name__
    task = {family.architecture(task): task for task in Task}.get(name, Task.sentence_embedding)
    outputs = len(model.config.id2label or {})
    if task is Task.classification and outputs > 1:
        config = replace(config, labels=tuple(map(str, range(outputs))))
    tensors = {name: in_fp32(tensor) for name, tensor in model.state_dict().items()}
    present = under_present_names(tensors, family)
    return build(replace(config, task=task), family.tensors_in_bert(present, config.pad_token_id))


def check_components(
    model: PreTrainedModel, equal: Bert, components: tuple[Component, ...]
) -> None:
    """Raises:
    InputError: for a head that bitmaps does not have."""
    if equal.config.task is not Task.sentence_embedding:
        return
    decoder = model.get_output_embeddings()
    tied = decoder is not None and decoder.weight is model.get_input_embeddings().weight
    for component, wrong in ((Component.head, True), (Component.embeddings, tied)):
        if component in components and wrong:
            others = [c for c in Component if c not in (Component.head, component)]
            raise InputError(
                f"{component} of a {type(model).__name__} cannot be binarized; "
                f"valid are {', '.join(others)}"
            )


def in_model(model: PreTrainedModel, equal: Bert, name: str) -> str:
    """The name that a tensor of a whole model has in this one, which may be a body alone."""
    prefix = equal.config.family.prefix
    return name if hasattr(model, prefix) else name.removeprefix(f"{prefix}.")
