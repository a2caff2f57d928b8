"""The parts of a configuration, each with its own checks.

Hydra composes ``conf/`` and holds it to these dataclasses. The comment beside a field appears in
the configuration reference unless a file in ``conf/`` has one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitmaps.errors import InputError
from bitmaps.vocabulary import (
    GROUPS,
    Center,
    Component,
    Gradient,
    HeadSource,
    Scaling,
    Scope,
    Split,
    Weights,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
SHARDED = "fsdp"  # the strategy that trains parts of a model


def check_seed(name: str, seed: int, more: int = 0) -> None:
    """
    Args:
        more: how many of the seeds that follow are used as well.

    Raises:
        InputError: for a seed that numpy does not take.
    """
    largest = 2**32 - 1 - more
    if not 0 <= seed <= largest:
        raise InputError(f"{name}={seed} is no seed; valid is 0 to {largest}")


def at_least(minimum: float, part: object, prefix: str, *names: str) -> None:
    """Raises:
    InputError: when one of these fields of a part is smaller. ``None`` passes."""
    for name in names:
        value = getattr(part, name)
        if value is not None and not value >= minimum:  # NaN is neither
            raise InputError(f"{prefix}{name}={value} is too small; valid is {minimum} or more")


@dataclass
class Binarize:
    name: str = "none"  # the name of the group in tables
    components: list[Component] = field(default_factory=list)  # any set of components
    scope: Scope = Scope.all  # `all` includes biases and LayerNorms, as in the blog post

    def label(self) -> str:
        """The components as tables write them: the group's name if they are its own, else all of
        them, sorted and joined by ``+``."""
        own = GROUPS.get(self.name, (self.name,))
        return self.name if set(self.components) == set(own) else self.joined()

    def joined(self) -> str:
        return "+".join(sorted(self.components)) or "none"


@dataclass
class Shape:
    vocab_size: int | None = None  # word pieces
    hidden_size: int | None = None  # width
    num_hidden_layers: int | None = None  # layers
    num_attention_heads: int | None = None  # heads
    intermediate_size: int | None = None  # inner width of the feed-forward blocks
    max_position_embeddings: int | None = None  # longest sequence
    type_vocab_size: int | None = None  # token types

    def sizes(self) -> dict[str, int]:
        """The sizes that are given."""
        return {name: size for name, size in asdict(self).items() if size is not None}


@dataclass
class Model:
    name: str = ""  # the name of the model in tables
    source: str | None = None  # a Hub id, a folder, or package:<package>/<folder>
    weights: Weights = Weights.pretrained  # `random` needs no download
    head: HeadSource = HeadSource.checkpoint  # `new` starts a head if the checkpoint has none
    adapter: str | None = None  # low-rank factors to add: a shipped one, or a safetensors file
    sha256: str | None = None  # digest of the file of the weights, checked if given
    random_tokenizer: str | None = None  # the tokenizer for random weights
    dropout: float = 0.0  # probability in training
    shape: Shape = field(default_factory=Shape)

    def label(self) -> str:
        """The model as tables write it."""
        return (self.source if self.name == "hub" else None) or self.name

    def check(self) -> None:
        at_least(0, self, "model.", "dropout")
        if self.dropout >= 1:
            raise InputError(
                f"model.dropout={self.dropout} is too large; valid is 0 or more and below 1"
            )
        random = self.weights is Weights.random
        if not random and self.source is None:
            raise InputError(f"model={self.name} needs model.source=<Hub id or folder>")
        if random and self.source is None and not self.shape.sizes():
            raise InputError(
                "model.weights=random needs model.shape, "
                "or a model.source whose config.json gives the shape"
            )


@dataclass
class DataColumns:
    sentence: str | None = None  # column of the sentence; null: sentence, else text
    sentence1: str | None = None  # column of the first sentence of a pair; null: sentence1
    sentence2: str | None = None  # column of the second; null: sentence2
    label: str | None = None  # column of the class; null: label
    score: str | None = None  # column of the score; null: score


LABELED = ("labeled", "glue")
"""The sources with labels."""


@dataclass
class Data:
    name: str = ""  # the name of the source
    dir: str | None = None  # the folder of `ptb`, `text` or `labeled`
    path: str | None = None  # the Hub id of the data set
    configuration: str | None = None  # the configuration of a Hub data set, or the task of GLUE
    column: str = "text"  # the column of a Hub data set that holds the text
    columns: DataColumns = field(default_factory=DataColumns)
    streaming: bool = False
    split: Split = Split.validation  # the part of the text that is scored in the end
    length: int = 64  # pieces a sequence with [CLS] and [SEP]; longer sentences are cut
    batch_size: int = 32  # sentences a step and process
    eval_batch_size: int = 128  # sentences a batch when scoring
    cropped: float = 0.0  # share of training sentences cut to a random part, anew in every epoch

    def label(self) -> str | None:
        """The text as tables write it."""
        named = {
            "hub": self.path,
            "text": self.dir,
            "labeled": self.dir,
            "glue": self.configuration,
        }
        return named.get(self.name, self.name)

    def check(self) -> None:
        at_least(1, self, "data.", "batch_size", "eval_batch_size")
        at_least(3, self, "data.", "length")  # [CLS], one piece, [SEP]
        at_least(0, self, "data.", "cropped")
        if self.cropped > 1:
            raise InputError(f"data.cropped={self.cropped} is too large; valid is a share, 0 to 1")


@dataclass
class Loss:
    name: str = ""  # the name of the loss in tables
    cross_entropy: float = 0.0  # weight of the true tokens
    logits: float = 0.0  # weight of KL(teacher || student) on masked tokens
    hidden: float = 0.0  # weight of the squared error of the hidden states
    directions: float = 0.0  # weight of the squared distance of the hidden states as unit vectors
    attention: float = 0.0  # weight of the squared error of the attention scores
    relations: float = 0.0  # weight of the squared distance of directions of q q^T, k k^T, v v^T
    vectors: float = 0.0  # weight of 1 - cosine of the vectors of sentences
    more_masked: float = 0.0
    more_masked_at_end: float | None = None

    def weights(self) -> dict[str, float]:
        """The weight of each part."""
        others = ("name", "more_masked", "more_masked_at_end")
        return {name: weight for name, weight in asdict(self).items() if name not in others}

    def shares(self) -> tuple[float, float]:
        """``more_masked`` at the first step and at the last."""
        end = self.more_masked_at_end
        return self.more_masked, self.more_masked if end is None else end

    def check(self) -> None:
        weights = self.weights()
        at_least(0, self, "loss.", *weights)
        if not any(weights.values()):
            raise InputError("all parts of loss weigh 0; at least one must weigh more")
        distills = any(weight for name, weight in weights.items() if name != "cross_entropy")
        for name, share in zip(("more_masked", "more_masked_at_end"), self.shares(), strict=True):
            if not 0 <= share <= 1:
                raise InputError(f"loss.{name}={share} is no share; valid are 0 to 1")
            if share and not distills:
                raise InputError(
                    f"loss.{name}={share} needs distillation, and loss={self.name} has none"
                )


@dataclass
class FineTuning:
    folder: str = "runs/teachers"
    lr: float = 5e-5
    max_steps: int = 600
    seed: int = 0

    def check(self) -> None:
        at_least(1, self, "fine_tuning.", "max_steps")
        check_seed("fine_tuning.seed", self.seed)
        if not (0 < self.lr < math.inf):
            raise InputError(f"fine_tuning.lr={self.lr} is no rate; valid is a number above 0")


@dataclass
class Recipe:
    name: str = ""  # the name of the recipe in tables
    scaling: Scaling = Scaling.learned
    center: Center = Center.none
    gradient: Gradient = Gradient.identity


@dataclass
class Measure:
    """What is timed: at most ``repeats`` batches, none of which starts after ``budget_s``."""

    batch_size: int = 128  # sequences a batch
    length: int = 64  # tokens a sequence
    repeats: int = 3  # batches; 0 times nothing
    budget_s: float = 20.0  # seconds after which no further batch starts

    def check(self) -> None:
        at_least(1, self, "measure.", "batch_size", "length")
        at_least(0, self, "measure.", "repeats", "budget_s")


MOST_DEVICES = 65536  # Lightning makes a list of them


@dataclass
class Devices:
    accelerator: str = "cpu"  # cpu, gpu (CUDA) or auto
    devices: Any = 1  # how many, a list of their numbers, or auto
    num_nodes: int = 1  # machines
    strategy: str = "auto"  # auto, ddp, fsdp, or another of Lightning's that starts it anew
    precision: str = "32-true"  # of training and timing; scores are always in fp32

    def check(self) -> None:
        at_least(1, self, "trainer.", "num_nodes")
        for name in ("devices", "num_nodes"):
            if isinstance(number := getattr(self, name), int) and number > MOST_DEVICES:
                raise InputError(
                    f"trainer.{name}={number} is too large; valid is at most {MOST_DEVICES}"
                )
        if self.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision={self.precision} is not supported; "
                f"valid are {', '.join(PRECISIONS)}"
            )


@dataclass
class Trainer(Devices):
    max_steps: int = 240  # steps of the optimizer
    val_check_interval: int = 120  # steps between validations; the last step has one, too
    accumulate_grad_batches: int = 1  # batches a step
    gradient_clip_val: float | None = 1.0  # largest norm of the gradient; null is no limit
    log_every_n_steps: int = 10  # steps between points of the curves
    compile: bool = False  # torch.compile

    @property
    def validation_steps(self) -> int:
        """Steps between validations. A shorter run has one."""
        return min(self.val_check_interval, self.max_steps)

    def check(self) -> None:
        super().check()
        counts = ("max_steps", "val_check_interval", "accumulate_grad_batches", "log_every_n_steps")
        at_least(1, self, "trainer.", *counts)
        at_least(0, self, "trainer.", "gradient_clip_val")
        if self.compile and self.strategy == SHARDED:
            raise InputError(f"trainer.compile=true: trainer.strategy={SHARDED} takes only false")


def check_targets(parts: Mapping[str, Any]) -> None:
    """Raises:
    InputError: for a part that should name a class and does not."""
    for name, part in parts.items():
        if part is None and name.startswith("callbacks."):
            raise InputError(f"{name}=null is no class; remove the callback by ~{name}")
        if not isinstance(part, Mapping) or "_target_" not in part:
            raise InputError(f"{name} has no _target_, the class to make")
        target = part["_target_"]
        if not isinstance(target, str) or not target:
            raise InputError(
                f"{name}._target_={target} is no class; valid is a name such as torch.optim.AdamW"
            )


def check_logger(logger: Mapping[str, Any]) -> None:
    """Raises:
    InputError: for a name or version that would be no folder inside the run folder."""
    for key, kinds in (("name", str | None), ("version", str | int | None)):
        value = logger.get(key)
        path = Path(str(value))
        if not isinstance(value, kinds) or path.is_absolute() or ".." in path.parts:
            raise InputError(f"logger.{key}={value} is no name; valid is text without / and ..")


def finite(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Raises:
    InputError: for a number, at any depth, that is infinite or NaN."""

    def check(key: str, value: Any) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{key}={value} is no finite number; valid are finite ones")
        for inner in value if isinstance(value, list) else ():
            check(key, inner)
        for inner in value.values() if isinstance(value, dict) else ():
            check(key, inner)

    for key, value in settings.items():
        check(key, value)
    return settings


def flat(value: Any, name: str) -> dict[str, Any]:
    """Nested dictionaries as one.

    >>> flat({"lr": 0.1, "schedule": {"steps": 3}}, "optimizer")
    {'optimizer.lr': 0.1, 'optimizer.schedule.steps': 3}
    """
    if not isinstance(value, dict):
        return {name: value}
    return {n: v for key, inner in value.items() for n, v in flat(inner, f"{name}.{key}").items()}
