"""What a run writes down: what was run, how it scored, how fast and how large it is.

A ``Row`` is one line of a table. In ``rows.json`` its parts share one flat object. A field that
tables show carries its ``Column``; a ``Role`` says what the field means when rows are compared.
To add a column, add a field here and fill it in where the part is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Flag, auto
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_type_hints

from pydantic import AfterValidator, TypeAdapter, ValidationError

from bitmaps.errors import InputError
from bitmaps.vocabulary import (
    Activations,
    RowKind,
    Scale,
    Scope,
    Split,
    Storage,
    Task,
    ValueSet,
    Weights,
)


class Role(Flag):
    """What a field means when rows are compared.

    Attributes:
        label: part of every label.
        text: rows that differ here were scored on other text and are not comparable.
        where: a column of its own as soon as two rows differ.
        how: the same as soon as two rows of one kind differ.
        timing: like ``where``, among rows that were timed.
        model: stored with a trained model, in the section ``bitmaps`` of its ``config.json``.
    """

    label = auto()
    text = auto()
    where = auto()
    how = auto()
    timing = auto()
    model = auto()


@dataclass(frozen=True)
class Column:
    """How tables and charts show a field.

    Attributes:
        heading: the heading of the column.
        format: the format of its numbers; empty for text.
        title: the title of an axis, with the unit.
        lower_is_better: whether the best row has the lowest number.
    """

    heading: str
    format: str = ""
    title: str = ""
    lower_is_better: bool = True


def present_names(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings with the present names of the classes in ``RENAMED``."""
    return {
        key: RENAMED.get(value, value) if isinstance(value, str) else value
        for key, value in settings.items()
    }


@dataclass(frozen=True)
class Facts:
    """What was run. A run that fails keeps its facts.

    Attributes:
        command, versions, commit: what was typed, the versions of the packages, and the commit of
            the checkout.
        model, weights: what was scored: the name of the choice, or the source of ``model=hub``.
        task: what it was scored as.
        data, split, limit, mask_seed, mask_sets: the text and the masks that it was scored on.
        similarity: the file of judged pairs of sentences that it was scored on too.
        components, values, scale, scope: what was binarized, to which values; ``None`` where
            nothing was.
        row: the kind of row; ``None`` until there is one.
        recipe, loss: how it was trained; ``None`` where it was not.
        embeddings: how the word table is stored.
        activations, one_bit_inputs: what enters the binarized matrices, and which layers take
            signs, joined by ``+``.
        steps, best_step: steps of training, and the step with the best validation.
        calibrated_on: sentences that bits and scales were fitted on, layer by layer.
        tuned_on: sentences that the whole model was then fitted on.
        teacher: the run of the full-precision classifier that it was made from.
        seed: of training or of random weights.
        settings: every other key that decides how a model comes out, such as ``optimizer.lr``.
    """

    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    model: Annotated[str | None, Role.where] = None
    weights: Annotated[Weights | None, Role.where] = None
    task: Annotated[Task, Role.where | Role.text | Role.model] = Task.masked_lm
    data: Annotated[str | None, Role.where | Role.text] = None
    split: Annotated[Split | None, Role.where | Role.text] = None
    limit: Annotated[int | None, Role.where | Role.text] = None
    mask_seed: Annotated[int | None, Role.where | Role.text] = None
    mask_sets: Annotated[int | None, Role.where | Role.text] = None
    similarity: Annotated[str | None, Role.where | Role.text] = None
    components: Annotated[str | None, Role.label | Role.model, Column("components")] = None
    values: Annotated[ValueSet | None, Role.label | Role.model, Column("values")] = None
    row: Annotated[RowKind | None, Role.label, Column("row")] = None
    scale: Annotated[Scale | None, Role.label | Role.model] = None
    scope: Annotated[Scope | None, Role.how | Role.model] = None
    recipe: Annotated[str | None, Role.how | Role.model] = None
    loss: Annotated[str | None, Role.how | Role.model] = None
    embeddings: Annotated[Storage | None, Role.how | Role.model] = None
    activations: Annotated[Activations | None, Role.how | Role.model] = None
    one_bit_inputs: Annotated[str | None, Role.how | Role.model] = None
    calibrated_on: Annotated[int | None, Role.how | Role.model] = None
    tuned_on: Annotated[int | None, Role.how | Role.model] = None
    steps: Annotated[int | None, Role.how | Role.model] = None
    best_step: Annotated[int | None, Role.model] = None
    teacher: Annotated[str | None, Role.model] = None
    seed: Annotated[int | None, Role.model] = None
    settings: Annotated[Mapping[str, Any], Role.model, AfterValidator(present_names)] = field(
        default_factory=dict
    )

    def of_model(self) -> dict[str, Any]:
        """The facts that are stored with a trained model."""
        return {name: getattr(self, name) for name in fields_with(Role.model)}

    def with_model(self, stored: Mapping[str, Any]) -> Facts:
        """These facts for a model that ``stored`` such facts; the settings of both are joined.

        Raises:
            InputError: for a stored value of another type.
        """
        trained = parse(Facts, stored)
        found = {name: getattr(trained, name) for name in fields_with(Role.model) if name in stored}
        return replace(self, **found | {"settings": {**trained.settings, **self.settings}})


@dataclass(frozen=True)
class Scores:
    """Means over what was scored; ``None`` where a task has no such score.

    Attributes:
        cross_entropy: of masked tokens or labels, in nats.
        perplexity: of masked tokens, its exponential in fp64; ``None`` where that overflows.
        accuracy: share of masked tokens whose true piece alone scores highest, or of right classes.
        mrr: mean reciprocal rank of masked tokens, 0 beyond rank 32.
        masked_tokens: how many were scored.
        f1, matthews: of classes (``bitmaps.scoring.classes``).
        cosine, recall_at_10: of sentence vectors, against the original's
            (``bitmaps.scoring.vectors``).
        spearman, pearson: correlations with judgements, times 100.
        sentences: how many sentences, or pairs, were scored.
        guessing: the headline score of who only guesses (``headline_of``). It is ln(vocabulary) for
            the cross entropy of masked tokens, the share of the most frequent class for the
            accuracy of classes, k/(n - 1) for the recall of k neighbours among n sentences, and 0
            for a correlation.
    """

    cross_entropy: Annotated[float | None, Column("CE", ".4f", "cross entropy, nats")] = None
    accuracy: Annotated[float | None, Column("accuracy", ".4f", "accuracy", False)] = None
    mrr: Annotated[float | None, Column("MRR", ".4f", "mean reciprocal rank, top 32", False)] = None
    f1: Annotated[float | None, Column("F1", ".4f", "F1", False)] = None
    matthews: Annotated[float | None, Column("MCC", ".4f", "Matthews correlation", False)] = None
    cosine: Annotated[float | None, Column("cosine", ".4f", "cosine to the original", False)] = None
    recall_at_10: Annotated[float | None, Column("recall@10", ".4f", "recall at 10", False)] = None
    spearman: Annotated[float | None, Column("Spearman", ".2f", "Spearman x 100", False)] = None
    pearson: Annotated[float | None, Column("Pearson", ".2f", "Pearson x 100", False)] = None
    perplexity: float | None = None
    masked_tokens: Annotated[int | None, Role.text] = None
    sentences: Annotated[int | None, Role.text] = None
    guessing: float | None = None


@dataclass(frozen=True)
class KnownScores:
    """The same without the targets that the tokenizer does not know; ``None`` where all are
    unknown."""

    cross_entropy: float | None = None
    accuracy: float | None = None
    mrr: float | None = None
    masked_tokens: int | None = None


@dataclass(frozen=True)
class Timing:
    """Inference time: ``None`` where nothing was timed.

    Attributes:
        inference_ms: milliseconds a sequence with all logits, the median of the batches.
        inference_masked_ms: the same with the logits at 15 % of the positions alone.
        inference_repeats: how many batches were timed.
        inference_batch, inference_length: sequences in a batch, and tokens in a sequence.
        sentences_per_second: of the text that was scored, in batches of sentences of like length.
    """

    inference_ms: Annotated[float | None, Column("ms", ".2f", "milliseconds a sequence")] = None
    sentences_per_second: Annotated[
        float | None, Column("sentences/s", ".0f", "sentences a second", False)
    ] = None
    inference_masked_ms: float | None = None
    inference_repeats: int | None = None
    inference_batch: Annotated[int | None, Role.timing] = None
    inference_length: Annotated[int | None, Role.timing] = None


@dataclass(frozen=True)
class Size:
    """MiB of the weights: the pseudo size (``bitmaps.scoring.measure``), and what they occupy in
    memory."""

    memory_mib: Annotated[float, Column("MiB (pseudo)", ".1f", "MiB (pseudo)")]
    resident_mib: float | None = None


@dataclass(frozen=True)
class Machine:
    """Where and when it was measured. Scores are always in fp32.

    Attributes:
        device: ``cpu``, or the name of the GPU.
        threads: of torch.
        dtype: the precision that it was timed in.
        processor: the name of the CPU. It tells no rows apart, as older files lack it.
        scored_at: when it had been scored, in UTC, as ISO 8601 writes it.
    """

    device: Annotated[str | None, Role.timing] = None
    threads: Annotated[int | None, Role.timing] = None
    dtype: Annotated[str | None, Role.timing] = None
    processor: str | None = None
    scored_at: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    facts: Facts
    scores: Scores
    size: Size
    known: KnownScores = field(default_factory=KnownScores)
    timing: Timing = field(default_factory=Timing)
    machine: Machine = field(default_factory=Machine)

    @property
    def kind(self) -> RowKind:
        assert self.facts.row is not None
        return self.facts.row

    def flat(self) -> dict[str, Any]:
        """The row as one object, as it is in ``rows.json``."""
        flat: dict[str, Any] = {}
        for name in PARTS:
            flat |= asdict(getattr(self, name))
        return flat | {"known": asdict(self.known)}


PARTS: Mapping[str, type[Any]] = {
    "facts": Facts,
    "scores": Scores,
    "timing": Timing,
    "size": Size,
    "machine": Machine,
}
"""The parts of a row that share its flat object."""


RENAMED = {"bitmaps.diagnostics.SignWatch": "bitmaps.training.sign_watch.SignWatch"}
"""Classes that configurations written before name differently: old name -> present name."""

T = TypeVar("T")


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse(kind: type[T], value: Any, key: str = "") -> T:
    """A dataclass from what ``json.loads`` gave. Keys that it does not have are ignored.

    Args:
        key: the key of the value, for the message.

    Raises:
        InputError: for a value that is missing or of another type.
    """
    try:
        found: T = adapter(cast(Any, kind)).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(filter(None, (key, *map(str, first["loc"]))))
        if first["type"] == "missing":
            raise InputError(f"there is no {key}") from error
        raise InputError(f"{key or 'it'} is {first['input']!r:.40}: {first['msg']}") from error
    return found


def parse_row(flat: Any) -> Row:
    """The row behind one object of ``rows.json``: the opposite of ``Row.flat``.

    Raises:
        InputError: for a value that is missing or of another type.
    """
    parts = {name: parse(kind, flat) for name, kind in PARTS.items()}
    row = Row(**parts, known=parse(KnownScores, flat.get("known", {}), "known"))
    if row.facts.row is None:
        raise InputError("there is no row")
    if row.facts.task is Task.masked_lm:
        for name in score_names():
            if getattr(row.scores, name) is None:
                raise InputError(f"there is no {name}")
    return row


def annotations_of(kind: type) -> Iterator[tuple[str, Any]]:
    """The fields of the parts of a row and what is said of them: (name, Role or Column)."""
    for part in PARTS.values():
        hints = get_type_hints(part, include_extras=True)
        for one in fields(part):
            for said in getattr(hints[one.name], "__metadata__", ()):
                if isinstance(said, kind):
                    yield one.name, said


@cache
def columns() -> Mapping[str, Column]:
    """The columns that every table has, in their order."""
    return dict(annotations_of(Column))


@cache
def measures() -> Mapping[str, Column]:
    """The columns that hold numbers."""
    return {name: column for name, column in columns().items() if column.format}


@cache
def fields_with(role: Role) -> tuple[str, ...]:
    """The names of the fields with a role, in their order."""
    return tuple(name for name, given in annotations_of(Role) if role & given)


def score_names(scores: Scores | None = None) -> list[str]:
    """The scores that are columns: those of masked words, or those that ``scores`` has."""
    names = [one.name for one in fields(Scores) if one.name in columns()]
    if scores is None:
        return names[:3]
    return [name for name in names if getattr(scores, name) is not None]


HEADLINES = ("spearman", "recall_at_10", "accuracy")
"""What tables and charts of a task other than masked words compare first, if it is there."""


def headline(rows: Sequence[Row]) -> str:
    """The score that charts of these rows show: cross entropy for masked words."""
    names = {name for row in rows for name in score_names(row.scores)}
    return headline_of({row.facts.task for row in rows}, names)


def headline_of(tasks: Collection[Task], names: Collection[str]) -> str:
    """The score that charts of rows for these tasks, which have these scores, show."""
    first = [name for name in HEADLINES if name in names and Task.masked_lm not in tasks]
    return first[0] if first else "cross_entropy"


def perplexity(cross_entropy: float) -> float | None:
    """exp of a cross entropy in nats, in fp64; ``None`` where that overflows.

    >>> perplexity(0.0), perplexity(1000.0)
    (1.0, None)
    """
    try:
        return math.exp(cross_entropy)
    except OverflowError:
        return None
