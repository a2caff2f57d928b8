"""The architectures whose layers are a BERT's, under names of their own.

Each is a row of a table. A folder is translated into a BERT's names when it is read, and back when
it is written. In between it is a BERT, whose configuration remembers the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

POSITIONS = "bert.embeddings.position_embeddings.weight"
TYPES = "bert.embeddings.token_type_embeddings.weight"


@dataclass(frozen=True)
class Family:
    """How an architecture differs from a BERT.

    Attributes:
        classes: what its classes in ``transformers`` begin with.
        prefix: what the names of its body begin with in a whole model.
        body: what they begin with in a body alone.
        modules: a BERT's module -> its own, where they differ in more than the prefix. {} stands
            for the number of a layer.
        keys: a BERT's key of ``config.json`` -> its own.
        defaults: the values of keys that are not there, if they are not a BERT's.
        without: keys that its ``config.json`` does not have.
        head_act: the function in its masked-LM head; ``None`` is the configured ``hidden_act``.
        pooler_act: the function between the two matrices of its classifier.
        positions_after_padding: whether positions count from ``pad_token_id + 1``. The rows before
            are for padding, which no other token sees.
        token_types: whether it has them. Without, it is a BERT with one type, whose vector is 0.
    """

    classes: str
    prefix: str
    body: tuple[str, ...] = ("embeddings.", "encoder.", "pooler.")
    modules: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    head_act: str | None = None
    pooler_act: str = "tanh"
    positions_after_padding: bool = False
    token_types: bool = True

    def architecture(self, task: Task) -> str:
        """Its class in ``transformers`` for a task."""
        return self.classes + SUFFIXES[task]

    def first_position(self, pad: int | None) -> int:
        """The row of the position table that the first token of a sentence gets.

        Raises:
            InputError: when it depends on ``pad_token_id``, and that is no token.
        """
        if not self.positions_after_padding:
            return 0
        if type(pad) is not int or pad < 0:
            raise InputError(f"pad_token_id must be a token, behind which positions are: {pad!r}")
        return pad + 1

    @property
    def names_bias_twice(self) -> bool:
        """Whether the bias of its decoder has a second name, outside of the decoder."""
        return self.prefix == "bert" or "cls.predictions" in self.modules

    def tensors_in_bert(self, tensors: dict[str, Tensor], pad: int | None) -> dict[str, Tensor]:
        """The tensors of its checkpoint as those of a BERT.

        Raises:
            InputError: when two tensors that differ have the same name then.
        """
        to_bert = {own: bert for bert, own in self.modules.items()}
        # a pooler that its classifier does not use
        unused = f"{self.prefix}.pooler." if "bert.pooler.dense" in self.modules else None
        found = by_name(
            (renamed(name, to_bert, self.prefix, "bert"), tensor)
            for name, tensor in tensors.items()
            if unused is None or not name.startswith(unused)
        )
        if POSITIONS in found:
            found[POSITIONS] = found[POSITIONS][self.first_position(pad) :]
            if not self.token_types and found[POSITIONS].ndim == 2:
                found[TYPES] = torch.zeros(1, found[POSITIONS].shape[1])
        return found

    def own_tensors(self, tensors: dict[str, Tensor], pad: int | None) -> dict[str, Tensor]:
        """The tensors of a BERT as those of its checkpoint: the inverse of ``tensors_in_bert``.

        The vector of the only token type, which training may have changed, is added to positions.
        """
        found = dict(tensors)
        positions = found[POSITIONS]
        if not self.token_types:
            positions = positions + found.pop(TYPES)
        before = positions.new_zeros(self.first_position(pad), positions.shape[1])
        found[POSITIONS] = torch.cat([before, positions]) if len(before) else positions
        return {
            renamed(name, self.modules, "bert", self.prefix): tensor
            for name, tensor in found.items()
        }

    def keys_in_bert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of its ``config.json`` as those of a BERT.

        Raises:
            InputError: for sizes that no BERT has.
        """
        to_bert = {own: bert for bert, own in self.keys.items()}
        named = {to_bert.get(name, name): value for name, value in values.items()}
        found = self.defaults | {n: v for n, v in named.items() if n not in self.without}
        if not self.token_types:
            found["type_vocab_size"] = 1
        width, words = found.get("hidden_size"), found.get("embedding_size")
        if "embedding_size" in self.defaults and words != width:
            raise InputError(
                f"embedding_size {words!r} is not hidden_size {width!r}: a projection of the word "
                "embeddings is not supported"
            )
        positions = found.get("max_position_embeddings")
        if type(positions) is int:
            found["max_position_embeddings"] = positions - self.first_position(
                found.get("pad_token_id")
            )
        return found

    def own_keys(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a BERT's ``config.json`` as its own: the inverse of ``keys_in_bert``."""
        found = dict(values)
        found["max_position_embeddings"] += self.first_position(found["pad_token_id"])
        if "embedding_size" in self.defaults:
            found["embedding_size"] = found["hidden_size"]
        kept = (name for name in found if name not in self.without)
        return {self.keys.get(name, name): found[name] for name in kept}


def parts_of(name: str) -> tuple[str, str, str]:
    """A tensor's name as its module with {} for the number of a layer, the number, and the rest.

    >>> parts_of("bert.encoder.layer.7.output.dense.bias")
    ('bert.encoder.layer.{}.output.dense', '7', 'bias')
    """
    module, _, tensor = name.rpartition(".")
    number = re.search(r"\.(\d+)\.", module)
    return re.sub(r"\.\d+\.", ".{}.", module), number[1] if number else "", tensor


def joined(module: str, number: str, tensor: str) -> str:
    """The inverse of ``parts_of``."""
    return f"{module.format(number)}.{tensor}"


def by_name(pairs: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their names.

    Raises:
        InputError: when two that differ have the same name.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in pairs:
        if name in found and not torch.equal(found[name], tensor):
            raise InputError(f"the checkpoint has two different tensors for {name}")
        found[name] = tensor
    return found


def renamed(name: str, modules: Mapping[str, str], prefix: str, new: str) -> str:
    """A tensor's name with another module, or else with another prefix."""
    module, number, tensor = parts_of(name)
    if module in modules:
        return joined(modules[module], number, tensor)
    return f"{new}.{name.removeprefix(f'{prefix}.')}" if name.startswith(f"{prefix}.") else name


SUFFIXES = {
    Task.masked_lm: "ForMaskedLM",
    Task.sentence_embedding: "Model",
    Task.classification: "ForSequenceClassification",
}
ROBERTA = {
    "bert.pooler.dense": "classifier.dense",
    "classifier": "classifier.out_proj",
    "cls.predictions.transform.dense": "lm_head.dense",
    "cls.predictions.transform.LayerNorm": "lm_head.layer_norm",
    "cls.predictions.decoder": "lm_head.decoder",
    "cls.predictions": "lm_head",  # its bias
}
ROBERTA_DEFAULTS = {"vocab_size": 50265, "max_position_embeddings": 512, "pad_token_id": 1}
LAYER = "bert.encoder.layer.{}."
DISTILBERT_LAYER = "distilbert.transformer.layer.{}."
FAMILIES = {
    "bert": Family("Bert", "bert"),
    # Liu et al. 2019, "RoBERTa: A Robustly Optimized BERT Pretraining Approach"
    "roberta": Family(
        "Roberta", "roberta", modules=ROBERTA, defaults=ROBERTA_DEFAULTS, head_act="gelu",
        positions_after_padding=True,
    ),
    # Conneau et al. 2020, "Unsupervised Cross-lingual Representation Learning at Scale"
    "xlm-roberta": Family(
        "XLMRoberta", "roberta", modules=ROBERTA,
        defaults=ROBERTA_DEFAULTS | {"vocab_size": 30522}, head_act="gelu",
        positions_after_padding=True,
    ),
    # Sanh et al. 2019, "DistilBERT, a distilled version of BERT"
    "distilbert": Family(
        "DistilBert", "distilbert", body=("embeddings.", "transformer."),
        modules={
            f"{LAYER}attention.self.query": f"{DISTILBERT_LAYER}attention.q_lin",
            f"{LAYER}attention.self.key": f"{DISTILBERT_LAYER}attention.k_lin",
            f"{LAYER}attention.self.value": f"{DISTILBERT_LAYER}attention.v_lin",
            f"{LAYER}attention.output.dense": f"{DISTILBERT_LAYER}attention.out_lin",
            f"{LAYER}attention.output.LayerNorm": f"{DISTILBERT_LAYER}sa_layer_norm",
            f"{LAYER}intermediate.dense": f"{DISTILBERT_LAYER}ffn.lin1",
            f"{LAYER}output.dense": f"{DISTILBERT_LAYER}ffn.lin2",
            f"{LAYER}output.LayerNorm": f"{DISTILBERT_LAYER}output_layer_norm",
            "bert.pooler.dense": "pre_classifier",
            "cls.predictions.transform.dense": "vocab_transform",
            "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
            "cls.predictions.decoder": "vocab_projector",
        },
        keys={
            "hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim", "hidden_act": "activation",
            "hidden_dropout_prob": "dropout", "attention_probs_dropout_prob": "attention_dropout",
        },
        defaults={"num_hidden_layers": 6}, without=("layer_norm_eps", "type_vocab_size"),
        pooler_act="relu", token_types=False,
    ),
    # Clark et al. 2020, "ELECTRA: Pre-training Text Encoders as Discriminators"
    "electra": Family(
        "Electra", "electra",
        modules={
            "bert.pooler.dense": "classifier.dense",
            "classifier": "classifier.out_proj",
            "cls.predictions.transform.dense": "generator_predictions.dense",
            "cls.predictions.transform.LayerNorm": "generator_predictions.LayerNorm",
            "cls.predictions.decoder": "generator_lm_head",
        },
        defaults={
            "embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        head_act="gelu", pooler_act="gelu",
    ),
}  # fmt: skip
"""``model_type`` -> the architecture."""


def family_of(values: Mapping[str, Any]) -> str:
    """The architecture that a ``config.json`` names, ``bert`` if it names none.

    Raises:
        InputError: for one that is no row of ``FAMILIES``.
    """
    named = values.get("model_type", "bert")
    if named == "bitmaps":  # a packed model
        own = values.get("bitmaps")
        named = own.get("family", "bert") if isinstance(own, dict) else "bert"
    if not isinstance(named, str) or named not in FAMILIES:
        raise InputError(
            f"model_type {named!r} is another architecture; valid are {', '.join(FAMILIES)}"
        )
    return named
