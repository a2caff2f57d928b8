"""The shape of a BERT, in the words of Hugging Face's ``config.json``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bitmaps.bert.activations import check_activation
from bitmaps.bert.families import FAMILIES, Family, family_of
from bitmaps.bert.pooling import Pooling
from bitmaps.errors import InputError
from bitmaps.vocabulary import Activations, LinearName, Task, components_of

LARGEST = sys.float_info.max  # JSON has larger integers


@dataclass(frozen=True)
class BertConfig:
    """Sizes and constants of a BERT; the defaults are those of ``bert-base-uncased``.

    Field names are Hugging Face's, so a BERT's ``config.json`` reads straight into it. ``bitmaps``
    says what was binarized, and how, in a model that this project wrote; it is ``None`` in any
    other.

    Attributes:
        model_type: the architecture that its folder has, a row of ``FAMILIES``. All sizes here are
            those of the equal BERT.
        task: what the model is for, which decides what its head is.
        pooling: how a sentence encoder makes its vector.
        labels: the names of the classes of a classifier, in the order of its outputs. A classifier
            without classes has one output, a score.

    Raises:
        InputError: for a width that the heads do not divide, a size below one, an unknown
            activation function, or a value that is not a number where one is needed.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = True
    model_type: str = "bert"
    task: Task = Task.masked_lm
    pooling: Pooling = field(default_factory=Pooling)
    labels: tuple[str, ...] = ()
    bitmaps: dict[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "type_vocab_size",
        ):  # fmt: skip
            if type(size := getattr(self, name)) is not int or size < 1:
                raise InputError(f"{name} must be a whole number of at least 1, not {size!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if type(p := getattr(self, name)) not in (int, float) or not 0 <= p <= 1:
                raise InputError(f"{name} must lie in 0..1, not {p!r}")
        for name in ("layer_norm_eps", "initializer_range"):
            if type(x := getattr(self, name)) not in (int, float) or not 0 < x <= LARGEST:
                raise InputError(f"{name} must be a number above 0, not {x!r}")
        pad = self.pad_token_id
        if pad is not None and (type(pad) is not int or pad not in range(self.vocab_size)):
            raise InputError(
                f"pad_token_id must lie in 0..{self.vocab_size - 1} or be null, not {pad!r}"
            )
        if not isinstance(self.tie_word_embeddings, bool):
            raise InputError(
                f"tie_word_embeddings must be true or false, not {self.tie_word_embeddings!r}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise InputError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )
        check_activation(self.hidden_act)
        self.family.first_position(self.pad_token_id)
        if not isinstance(self.bitmaps, dict | None):
            raise InputError(f"bitmaps must be an object or null, not {self.bitmaps!r}")
        if self.bitmaps and self.needed_activations() is not Activations.float:
            self.one_bit_inputs()
            try:
                components_of(str(self.bitmaps.get("components")))
            except ValueError as error:
                raise InputError(f"bitmaps.components: {error}") from error

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def architecture(self) -> str:
        """The class in ``transformers`` of its folder's model."""
        return self.family.architecture(self.task)

    @property
    def head_act(self) -> str:
        """The function in the masked-LM head."""
        return self.family.head_act or self.hidden_act

    @property
    def outputs(self) -> int:
        """The outputs of a classifier: one a class, or one score."""
        return len(self.labels) or 1

    @property
    def longest_sentence(self) -> int:
        """The greatest number of pieces of a sentence encoder's text; longer ones are cut."""
        positions = self.max_position_embeddings
        return min(self.pooling.length or positions, positions)

    def needed_activations(self) -> Activations:
        """``int6`` or ``bit`` if the model was trained with them, by ``bitmaps``: it computes
        something else without. Otherwise ``float``."""
        trained = (self.bitmaps or {}).get("activations")
        for needed in (Activations.int6, Activations.bit):
            if trained == needed:
                return needed
        return Activations.float

    def one_bit_inputs(self) -> list[LinearName]:
        """The linear layers that were trained with one-bit inputs, by ``bitmaps``.

        Raises:
            InputError: for the name of any other layer.
        """
        given = (self.bitmaps or {}).get("one_bit_inputs") or ""
        names = str(given).split("+") if given else []
        if unknown := [name for name in names if name not in list(LinearName)]:
            raise InputError(
                f"one_bit_inputs {unknown[0]!r} is unknown; valid are {', '.join(LinearName)}"
            )
        return [LinearName(name) for name in names]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BertConfig:
        """Read the keys of a ``config.json``. Keys that do not shape the forward pass are ignored.

        Raises:
            InputError: for another architecture than an absolute-position encoder of ``FAMILIES``.
        """
        model_type = family_of(values)
        positions = values.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise InputError(
                f"position_embedding_type {positions!r} is not supported; valid is 'absolute'"
            )
        if values.get("is_decoder") or values.get("add_cross_attention"):
            raise InputError(
                "a BERT decoder (is_decoder, add_cross_attention) is not supported; "
                "valid is an encoder"
            )
        if values.get("quantization_config"):
            raise InputError(
                "quantized weights (quantization_config) are not supported; "
                "valid are floating-point weights"
            )
        known = {f.name for f in fields(cls)} - {"model_type", "task", "pooling", "labels"}
        given = {k: v for k, v in values.items() if v is not None or k == "pad_token_id"}
        in_bert = FAMILIES[model_type].keys_in_bert(given)
        kept = {name: value for name, value in in_bert.items() if name in known}
        task = task_of(values, model_type)
        labels = labels_of(values) if task is Task.classification else ()
        return cls(**kept, model_type=model_type, task=task, labels=labels)

    @classmethod
    def from_file(cls, path: Path) -> BertConfig:
        """Read a Hugging Face ``config.json``.

        Raises:
            InputError: when the file is not JSON, or not a BERT's.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # wrong JSON, UTF-8, or nested too deeply
            raise InputError(f"{path} is not a JSON file: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} holds no JSON object")
        try:
            return cls.from_dict(values)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The content of a ``config.json`` that ``transformers`` opens as a model of the task."""
        values = self.family.own_keys(asdict(self))
        for name in ("task", "pooling", "labels"):
            del values[name]
        if self.bitmaps is None:
            del values["bitmaps"]
        if self.task is Task.classification:
            names = self.labels or ("LABEL_0",)
            values |= {
                "id2label": {str(number): name for number, name in enumerate(names)},
                "label2id": {name: number for number, name in enumerate(names)},
                "problem_type": "single_label_classification" if self.labels else "regression",
            }
        return {"architectures": [self.architecture]} | values


def task_of(values: dict[str, Any], model_type: str) -> Task:
    """The task that a ``config.json`` names. A body alone counts as a masked-language model.

    Raises:
        InputError: for an unknown task.
    """
    own = values.get("bitmaps")
    if isinstance(own, dict) and (said := own.get("task")) is not None:
        if said not in list(Task):
            raise InputError(f"bitmaps.task is {said!r}; valid are {', '.join(Task)}")
        return Task(said)
    named = values.get("architectures")
    classifier = FAMILIES[model_type].architecture(Task.classification)
    classifies = isinstance(named, list) and classifier in named
    return Task.classification if classifies else Task.masked_lm


def labels_of(values: dict[str, Any]) -> tuple[str, ...]:
    """The names of the classes in a ``config.json``, in the order of their numbers.

    Raises:
        InputError: for several classes a sentence, or numbers that are not 0, 1, 2 and so on.
    """
    kind, names = values.get("problem_type"), values.get("id2label")
    if kind == "multi_label_classification":
        raise InputError(
            "problem_type 'multi_label_classification' is not supported; valid are "
            "'single_label_classification' and 'regression'"
        )
    if names is None:  # which `transformers` leaves out for two classes without names
        names = {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        by_number = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError) as error:
        raise InputError(f"id2label is no table of classes: {names!r:.80}") from error
    if kind == "regression" or len(by_number) == 1:
        return ()
    if sorted(by_number) != list(range(len(by_number))):
        raise InputError(f"id2label must number its classes from 0, not {sorted(by_number)[:5]}")
    return tuple(by_number[number] for number in range(len(by_number)))
