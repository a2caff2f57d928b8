"""``evaluate.py``: score a model as it is, binarized without training, trained or packed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch.loggers import Logger

from bitmaps.bert.checkpoint import load
from bitmaps.bert.finding import locate
from bitmaps.command.schema import Evaluate
from bitmaps.jobs.setup import Outcome, Setup
from bitmaps.packed import format as packed
from bitmaps.packed import model as models
from bitmaps.quantize.convert import (
    binarize_naive,
    make_trainable,
    restore_activations,
    round_activations,
    store_words,
    to_float,
)
from bitmaps.quantize.quantizer import Quantization
from bitmaps.runs.folder import ScoredRow
from bitmaps.runs.records import Facts
from bitmaps.vocabulary import Activations, Component, RowKind, Task, Weights


class Evaluation:
    """Score one model, beside the models that it was made of.

    Raises:
        InputError: for everything that can be found wrong before weights are read.
    """

    def __init__(self, config: Evaluate) -> None:
        self.config, model = config, config.model
        self.packed = config.checkpoint is not None and packed.is_packed(locate(config.checkpoint))
        with_original = config.references or config.task is Task.sentence_embedding
        if config.checkpoint is not None and not with_original:
            # a trained run has everything that is needed with it
            model = replace(
                model,
                source=config.checkpoint,
                weights=Weights.pretrained,
                adapter=None,
                sha256=None,
            )
        splits = ["train"] if config.calibrate else []
        random = model.weights is Weights.random
        self.setup = Setup.check(config, config.trainer, model, *splits, new_classifier=random)
        if config.checkpoint is None:
            self.setup.pretrained.check_floats()
        elif not self.packed:
            config.check_activations()

    def run(self, folder: Path, facts: Facts, loggers: list[Logger]) -> Outcome:
        """Score the model. ``folder`` and ``loggers`` are for trainings."""
        if self.config.checkpoint is None:
            return self.untrained(facts)
        path = locate(self.config.checkpoint)
        return self.packed_model(path, facts) if self.packed else self.trained(path, facts)

    def untrained(self, facts: Facts) -> Outcome:
        """The model as it is, or binarized without training."""
        config, components = self.config, self.config.binarize.components
        words, values = config.word_table(), config.values
        model = self.setup.original()
        binarized = facts.values is not None
        facts = replace(
            facts,
            row=RowKind.naive if binarized else RowKind.unbinarized,
            steps=0,
            calibrated_on=0,
            tuned_on=0,
        )
        references: list[ScoredRow] = []
        if config.calibrate:
            references = self.setup.references(facts)
            make_trainable(model, components, Quantization(values, config.scale), words)
            row = RowKind.tuned if config.tune else RowKind.calibrated
            facts = replace(self.setup.fit(model, facts), row=row)
            model = to_float(model)
        else:
            binarize_naive(model, components, values, config.scale, config.binarize.scope)
            if Component.embeddings not in components:
                store_words(model, words, values)
        round_activations(model, components, config.activations, config.one_bit_layers())
        return Outcome([*references, self.setup.score(model, facts)], model)

    def trained(self, path: Path, facts: Facts) -> Outcome:
        """A trained run in floats; its word table and its activations may be rounded now."""
        config, components = self.config, self.config.binarize.components
        model = load(path)
        asked = facts
        facts = replace(facts.with_model(model.config.bitmaps or {}), row=RowKind.trained)
        references = self.setup.references(facts)
        if config.embeddings is not None:
            store_words(model, config.embeddings, config.values)
            facts = replace(facts, embeddings=config.embeddings)
        one_bit = model.config.one_bit_inputs()
        if config.activations is not Activations.float:
            one_bit = config.one_bit_layers()
            facts = replace(
                facts, activations=asked.activations, one_bit_inputs=asked.one_bit_inputs
            )
        round_activations(model, components, facts.activations or Activations.float, one_bit)
        return Outcome([*references, self.setup.score(model, facts)], model)

    def packed_model(self, path: Path, facts: Facts) -> Outcome:
        """A packed model, beside the floats that it stands for."""
        scored, model = self.setup.score_packed(path, facts, self.config.activations)
        references = self.setup.references(scored.row.facts)
        if self.config.references:
            needed = model.config.needed_activations()
            floats = replace(scored.row.facts, row=RowKind.trained, activations=needed)
            references.append(self.setup.score(restore_activations(models.to_float(model)), floats))
        return Outcome([*references, scored], model)
