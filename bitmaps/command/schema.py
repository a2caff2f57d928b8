"""The schema of the configuration, and what is checked before anything expensive starts.

Hydra composes ``conf/`` and holds it to these dataclasses: an unknown key, or a value of another type, is an error that
names both. The comments in ``conf/`` say what each choice is for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bitmaps.command.help import help_text
from bitmaps.errors import InputError

# the blog post's groups, in the order of its table; any other choice of components goes by their names
GROUPS: dict[str, tuple[str, ...]] = {
    "none": (),
    "all": ("embeddings", "attention", "ffnn", "head"),
    "layers": ("attention", "ffnn"),
    "layers_except_attention": ("ffnn",),
    "layers_except_ffnn": ("attention",),
}

Component = Enum("Component", ["embeddings", "attention", "ffnn", "head"])
Scope = Enum("Scope", ["all", "matrices"])
Scale = Enum("Scale", ["none", "tensor", "row", "rank_one"])
Scaling = Enum("Scaling", ["computed", "learned", "lsq"])
Center = Enum("Center", ["none", "tensor", "row"])
Gradient = Enum("Gradient", ["identity", "scaled", "clipped", "clamp", "product"])
Weights = Enum("Weights", ["pretrained", "random"])
Head = Enum("Head", ["checkpoint", "new"])
Split = Enum("Split", ["validation", "test"])
Embeddings = Enum("Embeddings", ["fp32", "fp16", "int8", "int4", "bit"])
Activations = Enum("Activations", ["float", "int8", "bit"])
Linear = Enum(
    "Linear", ["query", "key", "value", "output", "expand", "contract"]
)  # the linear layers of a layer

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class Binarize:
    name: str = "none"  # the group's, as it stands in tables
    components: list[Component] = field(default_factory=list)  # any set of them
    scope: Scope = Scope.all  # `all`: biases and LayerNorms too, as in the blog post


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
        """Those that are given."""
        return {name: size for name, size in asdict(self).items() if size is not None}


@dataclass
class Model:
    name: str = ""  # as it stands in tables
    source: str | None = None  # a Hub id, a folder, or package:<package>/<folder>
    weights: Weights = Weights.pretrained  # `random` needs no download
    head: Head = Head.checkpoint  # `new` starts one afresh where the checkpoint has none
    adapter: str | None = (
        None  # low-rank factors to add: one that is shipped, or a safetensors file
    )
    sha256: str | None = None  # of the weights' file; checked if given
    random_tokenizer: str | None = None
    dropout: float = 0.0  # in training
    shape: Shape = field(default_factory=Shape)


@dataclass
class Data:
    name: str = ""  # which source
    dir: str | None = None  # the folder of `ptb` or `text`
    path: str | None = None  # the data set's Hub id
    configuration: str | None = None  # of a Hub data set that has several
    column: str = "text"  # of a Hub data set: where its text stands
    streaming: bool = False
    split: Split = Split.validation  # what is scored in the end
    length: int = 64  # pieces a sequence, [CLS] and [SEP] included; longer sentences are cut
    batch_size: int = 32  # sentences a step and process
    eval_batch_size: int = 128  # sentences at a time when scoring


@dataclass
class Loss:
    name: str = ""  # as it stands in tables
    cross_entropy: float = 0.0
    logits: float = 0.0
    hidden: float = 0.0
    directions: float = 0.0  # squared distance of the hidden states as unit vectors
    attention: float = 0.0  # squared error of the attention scores
    relations: float = 0.0  # squared distance of the directions of q q^T, k k^T and v v^T
    more_masked: float = 0.0
    more_masked_at_end: float | None = None

    def weights(self) -> dict[str, float]:
        """What each part weighs."""
        others = ("name", "more_masked", "more_masked_at_end")
        return {name: weight for name, weight in asdict(self).items() if name not in others}

    def shares(self) -> tuple[float, float]:
        """``more_masked`` at the first step and at the last."""
        return (
            self.more_masked,
            self.more_masked if self.more_masked_at_end is None else self.more_masked_at_end,
        )


@dataclass
class Recipe:
    name: str = ""  # as it stands in tables
    scaling: Scaling = Scaling.learned
    center: Center = Center.none
    gradient: Gradient = Gradient.identity


@dataclass
class Measure:
    """What is timed: at most ``repeats`` batches of ``batch_size`` sequences of ``length`` tokens, of which none starts after
    ``budget_s`` seconds. No ``repeats``: nothing."""

    batch_size: int = 128  # sequences at a time
    length: int = 64  # tokens a sequence
    repeats: int = 3
    budget_s: float = 20.0


@dataclass
class Devices:
    accelerator: str = "cpu"  # cpu, gpu (of CUDA) or auto
    devices: Any = 1  # how many, a list of them, or auto
    num_nodes: int = 1  # machines
    strategy: str = "auto"  # auto, ddp, or another of Lightning's that starts the command anew
    precision: str = "32-true"  # 32-true, bf16-mixed or 16-mixed; scores are in fp32 whatever it is


@dataclass
class Trainer(Devices):
    max_steps: int = 240  # of the optimizer; a multiple of val_check_interval
    val_check_interval: int = 120
    accumulate_grad_batches: int = 1  # batches a step
    gradient_clip_val: float | None = 1.0  # largest norm of the gradient; null: any
    log_every_n_steps: int = 10  # steps between points of the curves
    compile: bool = False  # torch.compile

    @property
    def validation_steps(self) -> int:
        """Steps between validations: one at least in a run that is shorter."""
        return min(self.val_check_interval, self.max_steps)


@dataclass
class Common:
    binarize: Binarize = field(default_factory=Binarize)
    values: str = "pm1"  # {0,1} or {-1,1}
    scale: Scale = Scale.none  # what shares one: nothing, the tensor, a row, or a row and a column
    embeddings: Embeddings | None = None
    activations: Activations = Activations.float
    one_bit_inputs: list[Linear] = field(
        default_factory=lambda: [Linear.query, Linear.key, Linear.value]
    )
    calibrate: int = 0
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
    text: str | None = None

    def component_names(self) -> list[str]:
        return [component.name for component in self.binarize.components]

    def signed(self) -> list[str]:
        """The linear layers whose inputs are signs."""
        return (
            [linear.name for linear in self.one_bit_inputs]
            if self.activations is Activations.bit
            else []
        )

    def word_table(self) -> str:
        """How the word table is stored: as asked, or else in one bit if its component is binarized."""
        if self.embeddings is not None:
            return self.embeddings.name
        return "bit" if Component.embeddings in self.binarize.components else "fp32"

    def takes_two_values(self) -> bool:
        """Whether anything does: a component, or the word table."""
        return bool(self.component_names()) or self.word_table() == "bit"

    def facts(self) -> dict[str, Any]:
        """What is run, as it stands in ``metrics.json``."""
        names = self.component_names()
        of_group = set(names) == set(GROUPS.get(self.binarize.name, (self.binarize.name,)))
        return {
            "row": None,
            "model": (self.model.source if self.model.name == "hub" else None) or self.model.name,
            "weights": self.model.weights.name,
            "data": {"hub": self.data.path, "text": self.data.dir}.get(
                self.data.name, self.data.name
            ),
            "split": self.data.split.name,
            "limit": self.limit,
            "components": self.binarize.name if of_group else "+".join(sorted(names)) or "none",
            "values": self.values if self.takes_two_values() else None,
            "scale": self.scale.name if names else None,
            "scope": self.binarize.scope.name if names else None,
            "recipe": None,
            "loss": None,
            "embeddings": self.word_table(),
            "activations": self.activations.name,
            "one_bit_inputs": "+".join(self.signed()) or None,
            "steps": None,
            "best_step": None,
            "seed": self.seed,
            "mask_seed": self.mask_seed,
            "mask_sets": self.mask_sets,
            "settings": self.settings(),
        }

    def settings(self) -> dict[str, Any]:
        """What can be set by its key and decides how a model comes out, beside what the other facts say."""
        parts = {
            "model": ("source", "adapter", "head"),
            "data": ("configuration", "column", "length"),
        }
        found = {
            f"{part}.{name}": plain(getattr(getattr(self, part), name))
            for part in parts
            for name in parts[part]
        }
        if self.model.name == "hub":  # which goes by its source
            del found["model.source"]
        return found | (
            flat(self.model.shape.sizes(), "model.shape")
            if self.model.weights is Weights.random
            else {}
        )


def plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def flat(value: Any, name: str) -> dict[str, Any]:
    """Dictionaries within dictionaries as one.

    >>> flat({"lr": 0.1, "schedule": {"steps": 3}}, "optimizer")
    {'optimizer.lr': 0.1, 'optimizer.schedule.steps': 3}
    """
    if not isinstance(value, dict):
        return {name: plain(value)}
    return {n: v for key, inner in value.items() for n, v in flat(inner, f"{name}.{key}").items()}


@dataclass
class Evaluate(Common):
    checkpoint: str | None = None
    trainer: Devices = field(default_factory=Devices)


OF_A_STEP = (
    "devices",
    "num_nodes",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "val_check_interval",
)


@dataclass
class Train(Common):
    recipe: Recipe = field(default_factory=Recipe)
    loss: Loss = field(default_factory=Loss)
    optimizer: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    resume: str | None = None
    packed: bool = True
    trainer: Trainer = field(default_factory=Trainer)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"recipe": self.recipe.name, "loss": self.loss.name}

    def settings(self) -> dict[str, Any]:
        parts = {
            "model": {"dropout": self.model.dropout},
            "data": {"batch_size": self.data.batch_size},
            "recipe": asdict(self.recipe) if self.takes_two_values() else {},
            "loss": asdict(self.loss),
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "trainer": {
                name: value for name, value in asdict(self.trainer).items() if name in OF_A_STEP
            },
            "callbacks": self.callbacks,
        }
        names_and_steps = (
            "recipe.name",
            "loss.name",
            "schedule.num_training_steps",
        )  # which are facts of their own
        found = {key: value for part in parts for key, value in flat(parts[part], part).items()}
        return super().settings() | {
            key: value for key, value in found.items() if key not in names_and_steps
        }


# At the root, not inside a group, where it would show up as an option.
ConfigStore.instance().store("evaluate_schema", Evaluate)
ConfigStore.instance().store("train_schema", Train)


def conf_dir() -> Path:
    """The checkout's ``conf/`` if this is one (or an editable install of one), else the copy inside the package."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "conf"
    return (
        checkout
        if (package.parent / "pyproject.toml").is_file() and checkout.is_dir()
        else package / "conf"
    )


# hydra.help.template in train.yaml and evaluate.yaml
OmegaConf.register_new_resolver(
    "help_text", lambda command: help_text(conf_dir(), command), replace=True
)


def at_least(minimum: float, **values: float | None) -> None:
    """Raises:
    InputError: when a value that is not ``None`` is smaller; ``a__b`` stands for the key ``a.b``."""
    for name, value in values.items():
        if value is not None and not value >= minimum:  # nan is neither
            raise InputError(
                f"{name.replace('__', '.')}={value} is too small; valid is {minimum} or more"
            )


def check_keys(part: Any, path: str = "") -> None:
    """Raises:
    InputError: for a key that nothing reads, which Hydra lets pass with a ``+`` before it."""
    known = [field.name for field in fields(part)]
    for name, value in vars(part).items():
        if name not in known:
            raise InputError(
                f"there is no {path}{name}; valid are {', '.join(path + other for other in known)}"
            )
        if is_dataclass(value):
            check_keys(value, f"{path}{name}.")


def check_activations(config: Common) -> None:
    """Raises:
    InputError: for activations to be rounded that enter no binarized matrix."""
    activations, components = config.activations.name, config.component_names()
    if activations != "float" and not components:
        raise InputError(
            f"activations={activations} rounds what enters binarized matrices: binarize=none has none"
        )
    if activations == "bit" and not config.one_bit_inputs:
        raise InputError(
            f"activations=bit with no one_bit_inputs; valid are any of {', '.join(Linear.__members__)}"
        )
    for name in config.signed():
        block = "ffnn" if name in ("expand", "contract") else "attention"
        if block not in components:
            raise InputError(f"one_bit_inputs={name} is of {block}, which is not binarized")


def check(config: Train | Evaluate) -> None:
    """Find what is wrong with the numbers and names of a configuration.

    Raises:
        InputError: naming the bad value and the valid ones.
    """
    check_keys(config)
    parts: dict[str, dict[str, Any] | None] = {"logger": config.logger}
    if isinstance(config, Train):
        parts |= {"optimizer": config.optimizer, "schedule": config.schedule}
        parts |= {f"callbacks.{name}": callback for name, callback in config.callbacks.items()}
    for name, part in parts.items():
        if part is None and name.startswith("callbacks."):
            raise InputError(f"{name}=null is no class; to do without it, ~{name}")
        if part is None or "_target_" not in part:
            raise InputError(f"{name} has no _target_, the class that it is")
    data, measure, model, trainer = config.data, config.measure, config.model, config.trainer
    checkpoint = config.checkpoint if isinstance(config, Evaluate) else None
    at_least(
        1,
        limit=config.limit,
        data__batch_size=data.batch_size,
        data__eval_batch_size=data.eval_batch_size,
    )
    at_least(
        1,
        measure__batch_size=measure.batch_size,
        measure__length=measure.length,
        trainer__num_nodes=trainer.num_nodes,
    )
    at_least(1, mask_sets=config.mask_sets)
    at_least(0, seed=config.seed, mask_seed=config.mask_seed, measure__repeats=measure.repeats)
    at_least(0, measure__budget_s=measure.budget_s, model__dropout=model.dropout)
    at_least(3, data__length=data.length)  # [CLS], one piece, [SEP]
    for name, seed, more in (
        ("seed", config.seed, 0),
        ("mask_seed", config.mask_seed, config.mask_sets - 1),
    ):
        if seed + more >= 2**32:
            raise InputError(f"{name}={seed} is too large; valid is 0 to {2**32 - 1 - more}")
    if model.dropout >= 1:
        raise InputError(
            f"model.dropout={model.dropout} is too large; valid is 0 or more and below 1"
        )
    if trainer.precision not in PRECISIONS:
        raise InputError(
            f"trainer.precision={trainer.precision} is not supported; valid are {', '.join(PRECISIONS)}"
        )
    if model.weights is Weights.pretrained and model.source is None:
        raise InputError(f"model={model.name} needs model.source=<Hub id or folder>")
    if model.weights is Weights.random and model.source is None and not model.shape.sizes():
        raise InputError(
            "model.weights=random needs model.shape or a model.source whose config.json gives the shape"
        )
    if checkpoint is None:  # what is packed rounds the inputs of its tables too
        check_activations(config)
    if Component.embeddings in config.binarize.components and config.word_table() != "bit":
        raise InputError(
            f"embeddings={config.word_table()} contradicts binarize={config.binarize.name}, which has the word table in one bit: "
            "valid is bit"
        )
    at_least(0, calibrate=config.calibrate)
    if config.calibrate and not {"attention", "ffnn", "head"} & set(config.component_names()):
        raise InputError(
            f"calibrate fits matrices of attention, ffnn and head: binarize={config.binarize.name} has none"
        )
    if config.calibrate and isinstance(config, Evaluate):
        if config.binarize.scope is not Scope.matrices:
            raise InputError(
                f"calibrate fits matrices: binarize.scope={config.binarize.scope.name} is more; valid is matrices"
            )
        if config.scale not in (Scale.row, Scale.rank_one):
            raise InputError(
                f"calibrate fits a scale a row: scale={config.scale.name} has none; valid are row, rank_one"
            )
    if config.calibrate and isinstance(config, Train):
        recipe = config.recipe
        if recipe.scaling is Scaling.computed or recipe.center is not Center.none:
            raise InputError(
                f"calibrate chooses bits and scales, which recipe.scaling={recipe.scaling.name} with recipe.center="
                f"{recipe.center.name} would change: valid are learned or lsq, with none"
            )
    if isinstance(config, Train):
        at_least(
            1,
            trainer__max_steps=config.trainer.max_steps,
            trainer__val_check_interval=config.trainer.val_check_interval,
        )
        at_least(1, trainer__accumulate_grad_batches=config.trainer.accumulate_grad_batches)
        at_least(1, trainer__log_every_n_steps=config.trainer.log_every_n_steps)
        at_least(0, trainer__gradient_clip_val=config.trainer.gradient_clip_val)
        at_least(0, schedule__num_warmup_steps=config.schedule.get("num_warmup_steps"))
        if config.trainer.max_steps % config.trainer.validation_steps:
            raise InputError(
                f"trainer.max_steps={config.trainer.max_steps} is no multiple of trainer.val_check_interval="
                f"{config.trainer.val_check_interval}: the last steps would never be scored"
            )
        weights = config.loss.weights()
        at_least(0, **{f"loss__{name}": weight for name, weight in weights.items()})
        if not any(weights.values()):
            raise InputError("all parts of loss weigh 0; one at least must weigh more")
        distills = any(weight for name, weight in weights.items() if name != "cross_entropy")
        for name, share in zip(
            ("more_masked", "more_masked_at_end"), config.loss.shares(), strict=True
        ):
            if not 0 <= share <= 1:
                raise InputError(f"loss.{name}={share} is no share; valid are 0 to 1")
            if share and not distills:
                raise InputError(
                    f"loss.{name}={share} is for distillation, which loss={config.loss.name} has none of"
                )
        if config.binarize.components and config.binarize.scope is not Scope.matrices:
            raise InputError(
                f"binarize.scope={config.binarize.scope.name} cannot be trained: biases and LayerNorms stay fp32; valid is matrices"
            )
