"""What ``import bitmaps`` offers beside ``load``: binarize a model, save it, and ask it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitmaps.bert import Bert, checkpoint
from bitmaps.data.masking import Vocabulary
from bitmaps.errors import InputError
from bitmaps.loading import load
from bitmaps.packed import format as packed
from bitmaps.quantize.calibrate import Tokens, calibrated
from bitmaps.quantize.convert import binarize_naive, to_float
from bitmaps.quantize.quantizer import Quantization
from bitmaps.scoring import filling
from bitmaps.training.tune import tune as fit_whole
from bitmaps.vocabulary import (
    GROUPS,
    Component,
    Scale,
    Scope,
    Storage,
    Task,
    ValueSet,
    components_of,
)

if TYPE_CHECKING:
    from bitmaps.runs.analysis import Guess

BATCH = 32  # sentences that calibration reads at a time
LENGTH = 64  # and tokens of each

AnyModel = TypeVar("AnyModel", Bert, PreTrainedModel)


def binarize(
    model: AnyModel | str | Path,
    components: str = "layers",
    *,
    values: str = "pm1",
    scale: str = "rank_one",
    scope: str = "matrices",
    calibrate: Sequence[str] = (),
    tune: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> AnyModel | Bert:
    """A copy of a model in which components take two values, without training.

    It still computes in floats: ``bitmaps.save`` stores the two values as bits. Without calibration
    little of the quality is kept. Sentences of the kind that the model will read keep most of it;
    512 of them take a minute.

    Args:
        model: a model of ``bitmaps.load`` or of ``transformers``, or what ``bitmaps.load`` opens.
            The copy has the same type.
        components: a group, such as ``layers``, ``layers_except_attention`` or ``all``, or
            components joined by ``+``: ``embeddings``, ``attention``, ``ffnn``, ``head``.
        values: ``pm1`` for {-1,1}, ``01`` for {0,1}, both times the scale.
        scale: what shares one: ``none`` (the values themselves), ``tensor``, ``row``, or
            ``rank_one``, a number for each row times one for each column.
        scope: ``matrices``, or ``all``: biases and LayerNorms too, as in the blog post.
        calibrate: sentences on which bits, scales and biases are fitted to the model
            (``bitmaps.quantize.calibrate``).
        tune: sentences on which the calibrated model then learns to predict what the model predicts
            (``bitmaps.training.tune``). They may be the same, and need no labels.
        tokenizer: of a model of ``transformers`` that is calibrated.

    Raises:
        InputError: for an unknown choice, or calibration without a tokenizer, without a scale per
            row, of everything, or of components without a linear layer.
    """
    if isinstance(model, str | Path):
        return binarize(
            load(model), components, values=values, scale=scale, scope=scope,
            calibrate=calibrate, tune=tune, tokenizer=tokenizer,
        )  # fmt: skip
    chosen, two, scales, reach = checked(components, values, scale, scope, bool(calibrate))
    if tune and not calibrate:
        raise InputError("tune goes on from a calibration: valid is calibrate=<sentences> with it")
    ours = model if isinstance(model, Bert) else from_transformers(model)
    if calibrate:
        words = tokenizer or ours.tokenizer
        batches = batches_of("calibrate", calibrate, words)
        fitted = calibrated(ours, chosen, Quantization(two, scales), batches)
        if tune:
            for _ in fit_whole(fitted, ours, batches_of("tune", tune, words), Vocabulary.of(words)):
                pass
        found = to_float(fitted)
    else:
        found = binarize_naive(copy.deepcopy(ours), chosen, two, scales, reach)
    return found if isinstance(model, Bert) else with_weights_of(model, found)


def checked(
    components: str, values: str, scale: str, scope: str, calibrated: bool
) -> tuple[tuple[Component, ...], ValueSet, Scale, Scope]:
    """The choices of ``binarize`` as members of the enums.

    Raises:
        InputError: for a choice that does not exist, or that calibration does not have.
    """
    for name, kind, value in (
        ("values", ValueSet, values),
        ("scale", Scale, scale),
        ("scope", Scope, scope),
    ):
        if value not in list(kind):
            raise InputError(f"{name}={value!r} is unknown; valid are {', '.join(kind)}")
    try:
        chosen = components_of(components)
    except ValueError as error:
        raise InputError(
            f"components={components!r} is unknown; valid are {', '.join((*GROUPS, *Component))}, "
            "and several components joined by +"
        ) from error
    if calibrated and (scope != Scope.matrices or scale not in (Scale.row, Scale.rank_one)):
        raise InputError(
            f"calibrate fits a scale per row of matrices, which scale={scale!r} with "
            f"scope={scope!r} has not; valid are row and rank_one, with matrices"
        )
    if calibrated and not set(chosen) - {Component.embeddings}:
        raise InputError(
            f"calibrate fits attention, ffnn and head: components={components!r} has none"
        )
    return chosen, ValueSet(values), Scale(scale), Scope(scope)


def batches_of(name: str, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[Tokens]:
    """The texts of an argument as batches."""
    if isinstance(texts, str):
        raise InputError(f"{name} is one text; valid is a list of texts")
    options = {"padding": True, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
    parts = [list(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    return [cast(Tokens, tokenizer(part, **options)) for part in parts]


def from_transformers(model: PreTrainedModel) -> Bert:
    """A copy of a model of ``transformers``.

    A body without a head becomes a sentence encoder: only its hidden states are read.

    Raises:
        InputError: when it is no BERT (``bitmaps.bert.FAMILIES``).
    """
    body = model.base_model is model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return checkpoint.load(folder, task=Task.sentence_embedding if body else None)


def with_weights_of(model: PreTrainedModel, found: Bert) -> PreTrainedModel:
    """A copy of a model of ``transformers`` with the weights of one of ours."""
    same = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(found, Path(folder))
        tensors = load_file(Path(folder) / "model.safetensors")
    left = same.load_state_dict(tensors, strict=False).unexpected_keys
    if left:
        raise RuntimeError(f"{type(model).__name__} has no {', '.join(left[:5])}")
    return same


def save(
    model: Bert | PreTrainedModel,
    folder: str | Path,
    *,
    embeddings: str = "int8",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a model as a packed folder, with two values as bits. ``bitmaps.load`` opens it.

    Args:
        model: of floats, such as ``binarize`` gives.
        folder: must not exist.
        embeddings: storage of the word, position and type tables that have more bits: ``fp32`` (as
            they are), ``fp16``, ``int8`` or ``int4``.
        tokenizer: of a model of ``transformers``.

    Raises:
        InputError: when the folder exists or cannot be written, for another storage, or without a
            tokenizer.
    """
    valid = [storage for storage in Storage if storage is not Storage.bit]
    if embeddings not in valid:
        raise InputError(f"embeddings={embeddings!r} is unknown; valid are {', '.join(valid)}")
    ours = model if isinstance(model, Bert) else from_transformers(model)
    packed.save(ours, Path(folder), tokenizer or ours.tokenizer, Storage(embeddings))


def fill(model: Bert, text: str) -> list[list[Guess]]:
    """The five most probable tokens at each [MASK] of a text, the most probable first.

    Raises:
        InputError: for a text without a [MASK], or longer than the model, or a model of another
            task.
    """
    if model.config.task is not Task.masked_lm:
        raise InputError(f"fill guesses masked words, and this model is for {model.config.task}")
    positions = model.config.max_position_embeddings
    example = filling.sentence_of(text, model.tokenizer, positions)
    (sentence,) = filling.fill(model, [example], model.tokenizer)
    return [list(token.predictions) for token in sentence.masked]
