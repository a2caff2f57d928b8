"""What both jobs share: the model, the sentences and the devices, found and checked; and how a
model becomes a row."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig
from bitmaps.command.parts import SHARDED, Devices, Model
from bitmaps.command.schema import Common
from bitmaps.data.batches import Batch
from bitmaps.data.classified import classes_of
from bitmaps.data.labeled import LabeledSource
from bitmaps.data.tokenizing import tokenizer_of
from bitmaps.errors import InputError
from bitmaps.jobs.pretrained import Pretrained
from bitmaps.jobs.score import score
from bitmaps.jobs.tasks import JOBS, TaskJob, source_of
from bitmaps.packed import format as packed
from bitmaps.packed.model import PackedBert
from bitmaps.quantize.calibrate import calibrate
from bitmaps.quantize.rotate import rotate_heads
from bitmaps.runs.folder import ScoredRow
from bitmaps.runs.records import Facts
from bitmaps.scoring.display import Work, show_all
from bitmaps.training.tune import steps_of, tune
from bitmaps.vocabulary import (
    PLUS_MINUS_ONE,
    Activations,
    Component,
    RowKind,
    Scale,
    Scope,
    Storage,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a job returns.

    Attributes:
        scored: the rows; the last one is the job's own.
        model: the model of the last row; ``None`` where another run made the rows.
    """

    scored: list[ScoredRow]
    model: Bert | None

    def with_command(self, command: str) -> Outcome:
        """The same rows, as this command makes them."""
        scored = [
            replace(one, row=replace(one.row, facts=replace(one.row.facts, command=command)))
            for one in self.scored
        ]
        return replace(self, scored=scored)


@dataclass(frozen=True)
class Setup:
    """Everything that a job needs and that can be checked before weights are read.

    Attributes:
        task: the data of the task, and how models are scored and trained.
        trainer: the arguments of Lightning's ``Trainer`` that say where it runs.
        processes: how many take part.
        starts_processes: whether Lightning starts the command again for further processes.
        on_cpu: whether models are trained and scored on the CPU.
    """

    config: Common
    pretrained: Pretrained
    task: TaskJob[Any, Any]
    tokenizer: PreTrainedTokenizerBase
    trainer: dict[str, Any]
    processes: int
    starts_processes: bool
    on_cpu: bool

    @classmethod
    def check(
        cls,
        config: Common,
        devices: Devices,
        model: Model,
        *splits: str,
        new_classifier: bool = False,
    ) -> Setup:
        """Find and check the model, the devices and the text.

        Args:
            splits: the parts of the text that are read besides the one that is scored.
            new_classifier: give a model without a classifier a new one.

        Raises:
            InputError: for everything that can be found wrong before weights are read.
        """
        data, source = config.data, source_of(config)
        source.check(*splits, data.split)
        lengths = {"data.length": data.length}
        if config.measure.repeats:
            lengths["measure.length"] = config.measure.length
        pretrained = Pretrained.find(model, config.seed, lengths, config.task)
        if new_classifier and isinstance(source, LabeledSource):
            pretrained = pretrained.with_classifier(classes_of(source))
        # what is wrong with the devices is found before the text is read
        arguments, processes, starts_processes, on_cpu = check_devices(devices)
        task = JOBS[config.task](config, pretrained, {*splits, data.split})
        tokenizer = tokenizer_of(str(pretrained.folder))
        where = (arguments, processes, starts_processes, on_cpu)
        return cls(config, pretrained, task, tokenizer, *where)

    def score(self, model: Bert, facts: Facts) -> ScoredRow:
        """A row of the table, with what it is made of."""
        config, split = self.config, self.config.data.split
        return score(model, facts, self.task, split, config.measure, self.trainer)

    def score_packed(
        self, folder: Path, facts: Facts, activations: Activations | None = None
    ) -> tuple[ScoredRow, PackedBert]:
        """The row of a packed model, and the model.

        Args:
            facts: of the command; the folder says what the model is.
            activations: what a model without one-bit inputs rounds its activations to; by default
                what ``bitmaps.load`` chooses.
        """
        shape = BertConfig.from_file(folder / "config.json")
        activations = activations or packed.default_activations(shape)
        model = packed.load(folder, activations.act)
        facts = replace(facts.with_model(shape.bitmaps or {}), row=RowKind.packed)
        if shape.needed_activations() is not Activations.bit:
            facts = replace(facts, activations=activations)
        return self.score(model, facts), model

    def original(self) -> Bert:
        """The model that is binarized, its heads rotated if it will be calibrated for {-1,1}."""
        config, model = self.config, self.pretrained.load()
        attention = Component.attention in config.binarize.components
        if config.calibrate and config.values is PLUS_MINUS_ONE and attention:
            rotate_heads(model, config.scale)
        return model

    def fit(self, model: Bert, facts: Facts, already: bool = False) -> Facts:
        """Fit a binarized model to the original on sentences of the train split, as far as the
        configuration asks for it: calibrate it, then tune it.

        Args:
            facts: of the model.
            already: it is fitted, and only the facts are asked for.

        Returns:
            the facts, with the numbers of sentences.
        """
        config, data = self.config, self.task.data
        if not config.binarize.components:
            return replace(facts, calibrated_on=0, tuned_on=0)
        to_calibrate = data.first_batches(config.calibrate) if config.calibrate else []
        to_tune = data.first_batches(config.tune) if config.tune else []
        facts = replace(facts, calibrated_on=count(to_calibrate), tuned_on=count(to_tune))
        if to_calibrate and not already:
            log.info("calibrating on %d sentences", facts.calibrated_on)
            calibrate(model, self.original(), to_calibrate)
        if to_tune and not already:
            log.info("tuning on %d sentences", facts.tuned_on)
            steps = tune(model, self.pretrained.load(), to_tune, data.vocabulary)
            show_all(Work("tuning", "step", steps_of(to_tune)), steps)
        return facts

    def references(self, facts: Facts) -> list[ScoredRow]:
        """The model as it was, and naively binarized as in the blog post; nothing unless wanted."""
        config, components = self.config, self.config.binarize.components
        if not config.references or self.pretrained.labels is not None:
            return []  # a new classifier has learned nothing yet
        plain = replace(
            facts,
            recipe=None,
            loss=None,
            steps=0,
            best_step=None,
            calibrated_on=0,
            tuned_on=0,
            activations=Activations.float,
            one_bit_inputs=None,
            settings=Common.settings(config),
        )
        unbinarized = replace(
            plain,
            row=RowKind.unbinarized,
            components="none",
            values=None,
            scale=None,
            scope=None,
            embeddings=Storage.fp32,
        )
        rows = [self.score(self.pretrained.load(), unbinarized)]
        if components:
            words = Storage.bit if Component.embeddings in components else Storage.fp32
            naive = replace(
                plain, row=RowKind.naive, scale=Scale.none, scope=Scope.all, embeddings=words
            )
            rows.append(self.score(self.pretrained.naive(components, config.values), naive))
        return rows


def count(batches: list[Batch]) -> int:
    """The sentences of some batches."""
    return sum(len(batch["input_ids"]) for batch in batches)


def make_trainer(**arguments: Any) -> Trainer:
    """Raises:
    InputError: when Lightning does not accept the arguments."""
    try:
        return Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"trainer: {error}") from error


def check_devices(devices: Devices) -> tuple[dict[str, Any], int, bool, bool]:
    """The arguments of Lightning's ``Trainer`` for scoring, and the rest of where a job runs:
    ``processes``, ``starts_processes`` and ``on_cpu`` of ``Setup``.

    Raises:
        InputError: for devices that are not there, or a strategy that is not supported.
    """
    arguments: dict[str, Any] = {
        "accelerator": devices.accelerator,
        "devices": devices.devices,
        "num_nodes": devices.num_nodes,
        # only a training has parts of a model
        "strategy": "ddp" if devices.strategy == SHARDED else devices.strategy,
        "precision": devices.precision,
        "enable_progress_bar": False,  # ShowsProgress
    }
    trainer = make_trainer(**arguments, logger=False)
    strategy, processes = trainer.strategy, trainer.num_devices * trainer.num_nodes
    starts_processes = isinstance(strategy.launcher, _SubprocessScriptLauncher)
    # processes of another kind would keep the scores to themselves
    if strategy.launcher is not None and not starts_processes:
        raise InputError(
            f"trainer.strategy={devices.strategy} is not supported; "
            f"valid are auto, ddp, {SHARDED} and others that start the command anew"
        )
    # scores are summed in fp64, which not every device has
    kind = torch.device(strategy.root_device).type
    if kind not in ("cpu", "cuda"):
        raise InputError(
            f"trainer.accelerator={devices.accelerator} is {kind} here; "
            "valid are cpu, and gpu with CUDA"
        )
    return arguments, processes, starts_processes, kind == "cpu"
