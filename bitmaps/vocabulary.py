"""The words of the project: what can be binarized, how, and what a row of a table can be.

Configurations, layers, files and reports all use these enums. Every member is a string and equals
its own name, so JSON files and command lines show the same word as the code. This module imports
nothing but the standard library.
"""

from __future__ import annotations

from enum import StrEnum, auto

IGNORE = -100
"""The label of a position that is not scored: the default ``ignore_index`` of torch's cross
entropy. Data sets it, and losses and metrics skip it."""


class Task(StrEnum):
    """What a model is for: it guesses masked words, makes a vector of a sentence, or a class."""

    masked_lm = auto()
    sentence_embedding = auto()
    classification = auto()


class Component(StrEnum):
    """A part of a BERT that can be binarized on its own."""

    embeddings = auto()
    attention = auto()
    ffnn = auto()
    head = auto()


GROUPS: dict[str, tuple[Component, ...]] = {
    "none": (),
    "all": (Component.embeddings, Component.attention, Component.ffnn, Component.head),
    "layers": (Component.attention, Component.ffnn),
    "layers_except_attention": (Component.ffnn,),
    "layers_except_ffnn": (Component.attention,),
}
"""The blog post's groups of components, in the order of its table."""


def components_of(name: str) -> tuple[Component, ...]:
    """The components behind the name that a row or a file has for them: a group, or ``a+b``.

    Raises:
        ValueError: for a name that is neither.

    >>> [component.value for component in components_of("ffnn+head")]
    ['ffnn', 'head']
    """
    return GROUPS[name] if name in GROUPS else tuple(map(Component, name.split("+")))


class LinearName(StrEnum):
    """A linear layer of a transformer layer."""

    query = auto()
    key = auto()
    value = auto()  # type: ignore[assignment]  # of the class; a member has its own `value`
    output = auto()
    expand = auto()
    contract = auto()

    @property
    def component(self) -> Component:
        """The component that the layer belongs to."""
        in_ffnn = self in (LinearName.expand, LinearName.contract)
        return Component.ffnn if in_ffnn else Component.attention


class Scope(StrEnum):
    """Which parameters of a component are binarized: every one, or its weight matrices."""

    all = auto()
    matrices = auto()


ValueSet = StrEnum("ValueSet", {"01": "01", "pm1": "pm1"})
"""The two values of a binarized weight: {0,1} (``01``) or {-1,1} (``pm1``)."""
ZERO_ONE, PLUS_MINUS_ONE = ValueSet("01"), ValueSet("pm1")
VALUE_SETS = {ZERO_ONE: "{0,1}", PLUS_MINUS_ONE: "{-1,1}"}
"""How tables write a value set."""


class Scale(StrEnum):
    """What shares one scale: nothing is scaled, or the tensor, a row, or a row and a column."""

    none = auto()
    tensor = auto()
    row = auto()
    rank_one = auto()


class Scaling(StrEnum):
    """Where a scale comes from: see ``bitmaps.quantize.quantizer.Quantization``."""

    computed = auto()
    learned = auto()
    lsq = auto()


class Center(StrEnum):
    """The threshold between the two values: zero, or the mean of the tensor or the row."""

    none = auto()
    tensor = auto()
    row = auto()


class Gradient(StrEnum):
    """The gradient of a latent weight: see ``bitmaps.quantize.quantizer.StraightThrough``."""

    identity = auto()
    scaled = auto()
    clipped = auto()
    clamp = auto()
    product = auto()


class Storage(StrEnum):
    """How a matrix is stored: floats, integers with a scale per row, or one bit per weight."""

    fp32 = auto()
    fp16 = auto()
    int8 = auto()
    int4 = auto()
    bit = auto()

    @property
    def bits(self) -> int:
        """Bits a weight."""
        return {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4, "bit": 1}[self]


class Activations(StrEnum):
    """What enters a binarized matrix: floats, int8 or int6 with a scale per token, or for chosen
    matrices one bit a number."""

    float = auto()
    int8 = auto()
    int6 = auto()
    bit = auto()

    @property
    def act(self) -> Act:
        """What kernels round them to; with ``bit``, those of the other matrices."""
        return {"float": Act.f32, "int6": Act.a6}.get(self, Act.a8)


class Act(StrEnum):
    """What the kernels round activations to: see ``bitmaps.packed.activations``."""

    f32 = auto()
    a16 = auto()
    a11 = auto()
    a8 = auto()
    a6 = auto()
    a1 = auto()

    __hash__ = str.__hash__  # looked up at every call of a layer; Enum's own hash is slow


class Weights(StrEnum):
    """The weights that a model starts from."""

    pretrained = auto()
    random = auto()


class HeadSource(StrEnum):
    """Where a masked-language-model head comes from: the checkpoint, or new parameters."""

    checkpoint = auto()
    new = auto()


class Split(StrEnum):
    """The part of a text that is scored."""

    validation = auto()
    test = auto()


class RowKind(StrEnum):
    """What a row of a table is about, in the order in which a table shows them."""

    unbinarized = auto()
    naive = auto()
    calibrated = auto()
    tuned = auto()
    trained = auto()
    packed = auto()


class Status(StrEnum):
    """The state of a run."""

    running = auto()
    ok = auto()
    failed = auto()
