"""The ``config.json`` of a packed folder as ``transformers`` reads it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from transformers import AutoConfig
from transformers import BertConfig as TransformersConfig

from bitmaps.bert import BertConfig
from bitmaps.bert.families import FAMILIES, SUFFIXES, Family, family_of
from bitmaps.errors import InputError
from bitmaps.packed.format import CLASSES, MODEL_TYPE

SETTABLE = frozenset(
    ("act", "architectures", "dtype", "output_hidden_states", "return_dict",
     "transformers_version", "use_cache")
)  # fmt: skip
"""What a configuration may say otherwise than the model. ``dtype`` is checked elsewhere."""
NAMES = frozenset(("id2label", "label2id"))
"""The same, of a classifier whose classes have names."""


class BitmapsConfig(TransformersConfig):
    """The configuration of a packed model, under a BERT's names and with the sizes of the equal
    BERT, whatever its architecture is.

    Attributes:
        act: what activations are rounded to, as in ``bitmaps.load``; ``None`` is its default.
        bitmaps: what was binarized, and how; the task; and the architecture, if it is not BERT.
    """

    model_type = MODEL_TYPE

    act: str | None = None
    bitmaps: dict[str, Any] | None = None

    @property
    def family(self) -> Family:
        return FAMILIES[(self.bitmaps or {}).get("family", "bert")]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """Read a ``config.json``, whose keys are those of the model's architecture.

        Raises:
            InputError: for an architecture that is no row of ``FAMILIES``.
        """
        family = FAMILIES[family_of(config_dict)]
        return super().from_dict(family.keys_in_bert(config_dict), **options)

    def to_dict(self) -> dict[str, Any]:
        """What ``from_dict`` reads."""
        return self.family.own_keys(super().to_dict())

    @classmethod
    def of(cls, config: BertConfig) -> Self:
        """The configuration of a model of this package, packed or not."""
        values = replace(config, model_type="bert").to_dict()
        del values["model_type"]
        return cls(
            **values
            | {
                "architectures": [CLASSES + SUFFIXES[config.task]],
                "bitmaps": section(config, config.bitmaps),
            }
        )


def section(config: BertConfig, said: dict[str, Any] | None) -> dict[str, Any]:
    """The section ``bitmaps``, with the task and the architecture that files of earlier versions
    leave out."""
    family = {} if config.model_type == "bert" else {"family": config.model_type}
    return (said or {}) | {"task": str(config.task)} | family


def agreed(config: BitmapsConfig, own: BertConfig) -> BertConfig:
    """A model's configuration, with the names that another one gives its classes.

    Args:
        config: what ``transformers`` was told, such as by an argument of ``from_pretrained``.
        own: the model's.

    Raises:
        InputError: for a value that differs in anything but ``SETTABLE``.
    """
    if config.output_attentions:
        raise InputError("output_attentions is not supported: the kernels do not keep attentions")
    settable = SETTABLE | (NAMES if own.labels else set())
    for name, value in vars(BitmapsConfig.of(own)).items():
        found = getattr(config, name)
        found = section(own, found) if name == "bitmaps" else found
        if found != value and name not in settable and not name.startswith("_"):
            raise InputError(
                f"{name} is {found!r} in the configuration, and {value!r} in the model; what can "
                "be set is act, output_hidden_states, return_dict and the names of classes"
            )
    if not own.labels:
        return own
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(own.outputs)):
        raise InputError(
            f"id2label names the classes {sorted(names)}; valid are 0 to {own.outputs - 1}"
        )
    return replace(own, labels=tuple(names[number] for number in sorted(names)))


AutoConfig.register(MODEL_TYPE, BitmapsConfig, exist_ok=True)
