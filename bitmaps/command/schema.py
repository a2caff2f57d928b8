"""The configurations of the two commands, and their checks before anything expensive starts.

An unknown key, or a value of another type, is Hydra's error. ``check`` finds the rest: values out
of range, and choices that contradict each other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bitmaps.command.help import help_text
from bitmaps.command.parts import (
    LABELED,
    Binarize,
    Data,
    Devices,
    FineTuning,
    Loss,
    Measure,
    Model,
    Recipe,
    Trainer,
    at_least,
    check_logger,
    check_seed,
    check_targets,
    finite,
    flat,
)
from bitmaps.errors import InputError
from bitmaps.runs.records import Facts, measures
from bitmaps.vocabulary import (
    PLUS_MINUS_ONE,
    Activations,
    Center,
    Component,
    LinearName,
    Scale,
    Scaling,
    Scope,
    Storage,
    Task,
    ValueSet,
    Weights,
)

CAN_BE_CALIBRATED = {Component.attention, Component.ffnn, Component.head}


@dataclass
class Common:
    task: Task = Task.masked_lm  # what the model is for; the group of this name sets it
    binarize: Binarize = field(default_factory=Binarize)
    values: ValueSet = PLUS_MINUS_ONE  # {0,1} or {-1,1}
    scale: Scale = Scale.none  # what shares a scale: nothing, the tensor, a row, or row and column
    embeddings: Storage | None = None
    activations: Activations = Activations.float
    one_bit_inputs: list[LinearName] = field(
        default_factory=lambda: [LinearName.query, LinearName.key, LinearName.value]
    )
    calibrate: int = 0
    tune: int = 0
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    measure: Measure = field(default_factory=Measure)
    logger: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    mask_seed: int = 481
    mask_sets: int = 1
    references: bool = True
    analysis: bool = False
    similarity: str | None = None
    text: str | None = None
    objective: str = "cross_entropy"

    def one_bit_layers(self) -> list[LinearName]:
        """The linear layers with one-bit inputs."""
        return self.one_bit_inputs if self.activations is Activations.bit else []

    def word_table(self) -> Storage:
        """How the word table is stored: as asked, else in one bit if its component is binarized."""
        if self.embeddings is not None:
            return self.embeddings
        binarized = Component.embeddings in self.binarize.components
        return Storage.bit if binarized else Storage.fp32

    def takes_two_values(self) -> bool:
        """Whether a component or the word table is in one bit."""
        return bool(self.binarize.components) or self.word_table() is Storage.bit

    def facts(self) -> Facts:
        """What is run, as far as the configuration says it.

        Raises:
            InputError: for a number that is infinite or NaN, which no file of a run can hold.
        """
        matrices, masks = bool(self.binarize.components), self.task is Task.masked_lm
        return Facts(
            task=self.task,
            similarity=self.similarity,
            model=self.model.label(),
            weights=self.model.weights,
            data=self.data.label(),
            split=self.data.split,
            limit=self.limit,
            components=self.binarize.label(),
            values=self.values if self.takes_two_values() else None,
            scale=self.scale if matrices else None,
            scope=self.binarize.scope if matrices else None,
            embeddings=self.word_table(),
            activations=self.activations,
            one_bit_inputs="+".join(self.one_bit_layers()) or None,
            seed=self.seed,
            mask_seed=self.mask_seed if masks else None,
            mask_sets=self.mask_sets if masks else None,
            settings=finite(self.settings()),
        )

    def settings(self) -> dict[str, Any]:
        """The keys that decide how a model comes out and are no fact of their own."""
        parts = {
            "model": ("source", "adapter", "head"),
            "data": ("configuration", "column", "length"),
        }
        found = {
            f"{part}.{name}": getattr(getattr(self, part), name)
            for part, names in parts.items()
            for name in names
        }
        if self.model.name == "hub":  # its source is the fact `model`
            del found["model.source"]
        if self.model.weights is Weights.random:
            found |= flat(self.model.shape.sizes(), "model.shape")
        return found

    def check(self) -> None:
        """Raises:
        InputError: naming a bad value and the valid ones."""
        check_keys(self)
        check_targets({"logger": self.logger})
        check_logger(self.logger)
        for part in (self.model, self.data, self.measure):
            part.check()
        self.check_task()
        self.check_objective()
        at_least(1, self, "", "limit", "mask_sets")
        at_least(0, self, "", "calibrate", "tune")
        check_seed("seed", self.seed)
        check_seed("mask_seed", self.mask_seed, self.mask_sets - 1)
        if (
            Component.embeddings in self.binarize.components
            and self.word_table() is not Storage.bit
        ):
            raise InputError(
                f"embeddings={self.word_table()} contradicts binarize={self.binarize.name}, "
                "which has the word table in one bit: valid is bit"
            )
        if self.calibrate and not CAN_BE_CALIBRATED & set(self.binarize.components):
            raise InputError(
                "calibrate fits matrices of attention, ffnn and head: "
                f"binarize={self.binarize.name} has none"
            )
        if self.tune and not self.calibrate:
            raise InputError(
                f"tune={self.tune} goes on from a calibration: valid is calibrate=<sentences> "
                "with it"
            )

    def check_task(self) -> None:
        """Raises:
        InputError: for data, a component or a setting that the task does not have."""
        task, labeled = self.task, self.data.name in LABELED
        if labeled != (task is Task.classification):
            valid = ", ".join(LABELED) if not labeled else "wiki, ptb, text, hub"
            raise InputError(
                f"data={self.data.name} {'has' if labeled else 'has no'} labels: with task={task} "
                f"valid are {valid}"
            )
        if task is Task.sentence_embedding and Component.head in self.binarize.components:
            raise InputError(
                f"binarize={self.binarize.name} has the head, and task={task} has none: valid are "
                "embeddings, attention and ffnn, as in "
                "'binarize.components=[embeddings,attention,ffnn]'"
            )
        for name, value, only in (
            ("text", self.text, Task.masked_lm),
            ("analysis", self.analysis, Task.masked_lm),
            ("similarity", self.similarity, Task.sentence_embedding),
            ("data.cropped", self.data.cropped, Task.sentence_embedding),
        ):
            if value and task is not only:
                raise InputError(f"{name}={value} has no effect with task={task}: it is for {only}")

    def check_objective(self) -> None:
        """Raises:
        InputError: for an objective that is no column of numbers, or that is not measured."""
        if self.objective not in measures():
            raise InputError(
                f"objective={self.objective} is no column of numbers; "
                f"valid are {', '.join(measures())}"
            )
        if self.objective == "inference_ms" and not self.measure.repeats:
            raise InputError("objective=inference_ms needs a time: measure.repeats=0 times nothing")

    def check_activations(self) -> None:
        """Raises:
        InputError: for activations to be rounded that enter no binarized matrix."""
        components = self.binarize.components
        if self.activations is not Activations.float and not components:
            raise InputError(
                f"activations={self.activations} rounds what enters binarized matrices: "
                "binarize=none has none"
            )
        if self.activations is Activations.bit and not self.one_bit_inputs:
            raise InputError(
                f"activations=bit needs one_bit_inputs; valid are any of {', '.join(LinearName)}"
            )
        for layer in self.one_bit_layers():
            if layer.component not in components:
                raise InputError(
                    f"one_bit_inputs={layer} belongs to {layer.component}, which is not binarized"
                )


@dataclass
class Evaluate(Common):
    checkpoint: str | None = None
    trainer: Devices = field(default_factory=Devices)

    def check(self) -> None:
        super().check()
        self.trainer.check()
        if self.checkpoint is None:  # a packed model rounds the inputs of its tables too
            self.check_activations()
        if not self.calibrate:
            return
        if self.binarize.scope is not Scope.matrices:
            raise InputError(
                f"calibrate fits matrices: binarize.scope={self.binarize.scope} is more; "
                "valid is matrices"
            )
        if self.scale not in (Scale.row, Scale.rank_one):
            raise InputError(
                f"calibrate fits a scale per row: scale={self.scale} has none; "
                "valid are row, rank_one"
            )


@dataclass
class Train(Common):
    activations_from: float = 0.0
    teacher: str | None = None
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    recipe: Recipe = field(default_factory=Recipe)
    loss: Loss = field(default_factory=Loss)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    packed: bool = True
    packed_embeddings: Storage = Storage.int8
    trainer: Trainer = field(default_factory=Trainer)

    def facts(self) -> Facts:
        return replace(super().facts(), recipe=self.recipe.name, loss=self.loss.name)

    def settings(self) -> dict[str, Any]:
        trainer = self.trainer
        parts: dict[str, dict[str, Any]] = {
            "model": {"dropout": self.model.dropout},
            "data": {"batch_size": self.data.batch_size},
            "recipe": asdict(self.recipe) if self.takes_two_values() else {},
            "loss": asdict(self.loss),
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "trainer": {
                "devices": trainer.devices,
                "num_nodes": trainer.num_nodes,
                "precision": trainer.precision,
                "val_check_interval": trainer.val_check_interval,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "gradient_clip_val": trainer.gradient_clip_val,
            },
            "callbacks": self.callbacks,
        }
        facts = ("recipe.name", "loss.name", "schedule.num_training_steps")  # or follow from them
        found = {key: value for part in parts for key, value in flat(parts[part], part).items()}
        if self.activations_from:
            found["activations_from"] = self.activations_from
        if self.task is not Task.sentence_embedding:
            del found["loss.vectors"]
        if self.task is Task.classification and self.binarize.components:
            own = asdict(self.fine_tuning)
            del own["folder"]
            given = {"teacher": self.teacher}
            found |= flat(own, "fine_tuning") if self.teacher is None else given
        return super().settings() | {k: v for k, v in found.items() if k not in facts}

    def check(self) -> None:
        super().check()
        callbacks = {f"callbacks.{name}": part for name, part in self.callbacks.items()}
        check_targets({"optimizer": self.optimizer, "schedule": self.schedule} | callbacks)
        self.trainer.check()
        self.loss.check()
        self.fine_tuning.check()
        self.check_teacher()
        self.check_activations()
        if not 0 <= self.activations_from <= 1:
            raise InputError(
                f"activations_from={self.activations_from} is no share; valid are 0 to 1"
            )
        if self.activations_from and self.activations is Activations.float:
            raise InputError(
                f"activations_from={self.activations_from} needs rounded activations: "
                "valid are activations=int8, int6 and bit"
            )
        if self.packed_embeddings is Storage.bit:
            raise InputError(
                "packed_embeddings=bit rounds without training: embeddings=bit trains the word "
                "table in one bit; valid are fp32, fp16, int8, int4"
            )
        warmup = self.schedule.get("num_warmup_steps")
        if warmup is not None and not (isinstance(warmup, int | float) and warmup >= 0):
            raise InputError(
                f"schedule.num_warmup_steps={warmup} is no number of steps; valid is 0 or more"
            )
        recipe = self.recipe
        fixed = recipe.scaling is Scaling.computed or recipe.center is not Center.none
        if self.calibrate and fixed:
            raise InputError(
                f"calibrate chooses bits and scales, which recipe.scaling={recipe.scaling} with "
                f"recipe.center={recipe.center} would change: valid are learned or lsq, with none"
            )
        if self.binarize.components and self.binarize.scope is not Scope.matrices:
            raise InputError(
                f"binarize.scope={self.binarize.scope} cannot be trained: biases and LayerNorms "
                "stay fp32; valid is matrices"
            )

    def check_teacher(self) -> None:
        """Raises:
        InputError: for a teacher that has no place, or a loss without anything to learn."""
        if self.teacher is not None and self.task is not Task.classification:
            raise InputError(
                f"teacher={self.teacher} has no effect with task={self.task}, whose teacher is the "
                "model itself: it is for classification"
            )
        if self.teacher is not None and not self.takes_two_values():
            raise InputError(
                f"teacher={self.teacher} has no effect with binarize=none, which trains a teacher"
            )
        if self.loss.vectors and self.task is not Task.sentence_embedding:
            raise InputError(
                f"loss.vectors={self.loss.vectors} has no effect with task={self.task}: "
                "it is for sentence_embedding"
            )
        if self.task is not Task.sentence_embedding:
            return
        weighing = {name for name, weight in self.loss.weights().items() if weight}
        # the task itself adds the vectors to whatever loss was chosen
        if not weighing - {"cross_entropy"} or weighing == {"cross_entropy", "vectors"}:
            raise InputError(
                f"loss={self.loss.name} learns from labels, and task={self.task} has none; "
                "valid is a loss with another part, such as common"
            )


# At the root, not inside a group, where it would show up as an option.
ConfigStore.instance().store("evaluate_schema", Evaluate)
ConfigStore.instance().store("train_schema", Train)


def conf_dir() -> Path:
    """The checkout's ``conf/`` if this is one, or an editable install of one; else the copy inside
    the package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    is_checkout = (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
    return checkout if is_checkout else package / "conf"


# hydra.help.template in train.yaml and evaluate.yaml
OmegaConf.register_new_resolver(
    "help_text", lambda command: help_text(conf_dir(), command), replace=True
)


def check_keys(part: Any, path: str = "") -> None:
    """Raises:
    InputError: for a key that nothing reads, which Hydra accepts after a ``+``."""
    known = [field.name for field in fields(part)]
    for name, value in vars(part).items():
        if name not in known:
            valid = ", ".join(path + other for other in known)
            raise InputError(f"there is no {path}{name}; valid are {valid}")
        if is_dataclass(value):
            check_keys(value, f"{path}{name}.")
