"""What ``evaluate.py`` and ``train.py`` do, once their configuration stands.

A job is made first, which checks all that can be checked without reading weights, and then run.
"""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from bitmaps import ADAPTERS
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import check_sha256, load, locate, save
from bitmaps.command import schema
from bitmaps.data.module import MaskedSentences, tokenizer_of
from bitmaps.data.sources import Source
from bitmaps.errors import InputError
from bitmaps.packed import format as packed
from bitmaps.quantize.calibrate import calibrate
from bitmaps.quantize.convert import (
    binarize_naive,
    make_trainable,
    restore_activations,
    round_activations,
    store_words,
    to_float,
)
from bitmaps.quantize.quantizer import Quantization
from bitmaps.quantize.rotate import rotate_heads
from bitmaps.quantize.rounding import one_bit_quantizers
from bitmaps.report.card import write_card
from bitmaps.runs.folder import Row
from bitmaps.scoring.predictions import analyse, chosen_sentences, fill, sentence_of
from bitmaps.scoring.score import evaluate
from bitmaps.training.module import LossWeights, MaskedLanguageModel, OneBitInputs
from bitmaps.vocabulary import Act, Scale, Scope, ValueSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model that is known to be there, before its weights are read: its settings, shape, and the folder with its tokenizer and,
    unless they are random, its weights."""

    settings: schema.Model
    shape: BertConfig
    folder: Path
    seed: int

    @classmethod
    def find(cls, settings: schema.Model, seed: int, lengths: dict[str, int]) -> Pretrained:
        """Raises:
        InputError: when the model or its adapter is missing or damaged, is no BERT, does not fit its tokenizer, or has fewer
            positions than one of ``lengths``, which go by their keys."""
        random = settings.weights is schema.Weights.random
        if random and (sizes := settings.shape.sizes()):
            if settings.random_tokenizer is None:
                raise InputError(
                    "model.shape gives the sizes of random weights: model.random_tokenizer is missing"
                )
            shape, folder = BertConfig.from_dict(sizes), locate(settings.random_tokenizer)
        else:
            folder = locate(str(settings.source))
            shape = BertConfig.from_file(folder / "config.json")
            if settings.sha256 and not random:
                check_sha256(folder / "model.safetensors", settings.sha256)
        if (
            settings.adapter is not None
            and not random
            and not adapter_file(settings.adapter).is_file()
        ):
            shipped = ", ".join(sorted(p.stem for p in ADAPTERS.glob("*.safetensors")))
            raise InputError(
                f"model.adapter={settings.adapter} is no file; shipped with the package: {shipped}"
            )
        pieces = len(tokenizer_of(str(folder)))
        if pieces > shape.vocab_size:
            raise InputError(
                f"the tokenizer in {folder} has {pieces} pieces, but the model only {shape.vocab_size}"
            )
        for name, length in lengths.items():
            if length > shape.max_position_embeddings:
                raise InputError(
                    f"{name}={length} is more than the model's {shape.max_position_embeddings} positions"
                )
        return cls(settings, shape, folder, seed)

    def check_floats(self) -> None:
        """Raises:
        InputError: when the model is in real bits, or was trained on the signs of its activations: one cannot start from those."""
        if self.settings.weights is schema.Weights.random:
            return
        source = f"model.source={self.settings.source}"
        if packed.is_packed(self.folder):
            raise InputError(
                f"{source} is packed: score it with evaluate.py checkpoint=…, or have bitmaps.packed.to_float make floats of it"
            )
        if (self.shape.bitmaps or {}).get("activations") == "bit":
            raise InputError(
                f"{source} was trained with activations=bit, a part of it: score it with evaluate.py checkpoint=<run folder>"
            )

    def load(self) -> Bert:
        """The model in fp32. Every call reads it anew."""
        if self.settings.weights is schema.Weights.random:
            return Bert(self.shape).randomize(torch.Generator().manual_seed(self.seed)).eval()
        adapter = None if self.settings.adapter is None else adapter_file(self.settings.adapter)
        torch.manual_seed(self.seed)  # of a new head
        return load(self.folder, adapter=adapter, head=self.settings.head.name)  # type: ignore[arg-type]


def adapter_file(name: str) -> Path:
    """One that comes with the package, by its name, or any other by its path."""
    shipped = ADAPTERS / f"{name}.safetensors"
    return shipped if shipped.is_file() else Path(name).expanduser()


def make_trainer(**arguments: Any) -> Trainer:
    """Raises:
    InputError: when Lightning does not accept the arguments."""
    try:
        return Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"trainer: {error}") from error


class Job:
    """What both commands share: the model, the sentences, and rows that say what was run.

    Raises:
        InputError: for all that can be found wrong before weights are read.
    """

    def __init__(
        self, config: schema.Common, devices: schema.Devices, model: schema.Model, *splits: str
    ) -> None:
        data, self.config = config.data, config
        self.split = data.split.name
        self.sentences: dict[str, torch.Tensor] = {}  # the kind of a row -> SentenceSums
        self.analyses: dict[
            str, dict[str, Any]
        ] = {}  # the kind of a row -> what it predicts, of which `shown` in full
        self.scored: Bert | None = None  # the model of the last row
        self.devices = {
            f: getattr(devices, f)
            for f in ("accelerator", "devices", "num_nodes", "strategy", "precision")
        }
        self.devices["enable_progress_bar"] = sys.stdout.isatty()
        self.source = Source(
            data.name, data.dir, data.path, data.configuration, data.column, data.streaming
        )
        self.source.check(*splits, self.split)
        lengths = {"data.length": data.length} | (
            {"measure.length": config.measure.length} if config.measure.repeats else {}
        )
        self.pretrained = Pretrained.find(model, config.seed, lengths)
        # what is wrong with the devices is found before the text is read
        strategy = make_trainer(**self.devices, logger=False).strategy
        self.starts_processes = isinstance(strategy.launcher, _SubprocessScriptLauncher)
        # processes of another kind would keep the scores to themselves
        if strategy.launcher is not None and not self.starts_processes:
            raise InputError(
                f"trainer.strategy={devices.strategy} is not supported; valid are auto, ddp and others that start the command anew"
            )
        if strategy.root_device.type not in (
            "cpu",
            "cuda",
        ):  # scores are summed in fp64, which not every device has
            raise InputError(
                f"trainer.accelerator={devices.accelerator} is {strategy.root_device.type} here; valid are cpu, and gpu with CUDA"
            )
        self.data = MaskedSentences(
            self.source,
            str(self.pretrained.folder),
            batch_size=data.batch_size,
            eval_batch_size=data.eval_batch_size,
            length=data.length,
            limit=config.limit,
            seed=config.seed,
            mask_seed=config.mask_seed,
            mask_sets=config.mask_sets,
        )
        self.tokenizer = tokenizer_of(str(self.pretrained.folder))
        own, positions = config.text, self.pretrained.shape.max_position_embeddings
        self.shown = [] if own is None else [sentence_of(own, self.tokenizer, positions)]
        for split in {
            *splits,
            self.split,
        }:  # what is wrong with the text is found before a model is read
            self.data.read(split)
        self.shown += chosen_sentences(self.data.masked(self.split), config.mask_seed)

    def row(self, model: Bert, facts: Row, **changed: Any) -> Row:
        """One row: what was run, and how it came out. What each sentence came to is kept in ``sentences``, what is predicted in
        ``analyses``."""
        facts, self.scored = facts | changed, model
        kind = facts["row"]
        evaluated = evaluate(model, self.data, self.split, self.config.measure, self.devices)
        self.sentences[kind] = evaluated.sentence_sums
        self.analyses[kind] = analyse(
            evaluated.predicted, self.tokenizer, self.data.occurrences(self.split)
        )
        self.analyses[kind]["sentences"] = fill(model, self.shown, self.tokenizer)
        return facts | evaluated.row

    def original(self) -> Bert:
        """The model that is binarized; if it will be calibrated, with the heads of attention rotated for {-1,1}."""
        config, model = self.config, self.pretrained.load()
        if config.calibrate and config.values == "pm1" and "attention" in config.component_names():
            rotate_heads(model, config.scale.name)  # type: ignore[arg-type]
        return model

    def calibrate(self, model: Bert, already: bool = False) -> int:
        """Fit a binarized model to the original, unless it is already, on sentences of the train split; gives how many."""
        if not self.config.calibrate or not self.config.component_names():
            return 0
        batches = self.data.first_batches(self.config.calibrate)
        if not already:
            calibrate(model, self.original(), batches)
        return sum(len(batch["input_ids"]) for batch in batches)

    def reference_rows(self, facts: Row) -> list[Row]:
        """The model as it was, and as naive binarization in the manner of the blog post leaves it; none unless wanted."""
        if not self.config.references:
            return []
        plain = {
            "recipe": None,
            "loss": None,
            "steps": 0,
            "best_step": None,
            "calibrated_on": 0,
            "activations": "float",
            "one_bit_inputs": None,
            "settings": schema.Common.settings(self.config),
        }
        nothing = {
            "components": "none",
            "values": None,
            "scale": None,
            "scope": None,
            "embeddings": "fp32",
        }
        rows = [self.row(self.pretrained.load(), facts, row="unbinarized", **plain, **nothing)]
        if components := self.config.component_names():
            naive = binarize_naive(self.pretrained.load(), components, self.config.values)  # type: ignore[arg-type]
            table = "bit" if "embeddings" in components else "fp32"
            rows.append(
                self.row(
                    naive, facts, row="naive", scale="none", scope="all", **plain, embeddings=table
                )
            )
        return rows


def as_it_was_trained(facts: Row, model: Bert) -> Row:
    """What is scored is how it was trained, on the text that these facts name."""
    trained = model.config.bitmaps or {}
    return facts | trained | {"settings": trained.get("settings", {}) | facts["settings"]}


class Evaluation(Job):
    """Score a model as it is or naively binarized, or a trained run beside both."""

    config: schema.Evaluate

    def __init__(self, config: schema.Evaluate) -> None:
        self.checkpoint, model = config.checkpoint, config.model
        if (
            self.checkpoint is not None and not config.references
        ):  # a trained run has all that is needed with it
            weights = schema.Weights.pretrained
            model = replace(
                model, source=self.checkpoint, weights=weights, adapter=None, sha256=None
            )
        super().__init__(config, config.trainer, model, *(["train"] if config.calibrate else []))
        if self.checkpoint is None:
            self.pretrained.check_floats()
        elif not packed.is_packed(locate(self.checkpoint)):
            schema.check_activations(config)

    def run(self, folder: Path, facts: Row, loggers: list[Logger]) -> list[Row]:
        config, components, words = (
            self.config,
            self.config.component_names(),
            self.config.word_table(),
        )
        if self.checkpoint is not None:
            if packed.is_packed(locate(self.checkpoint)):
                return self.packed_rows(facts)
            model = restore_activations(load(self.checkpoint))
            facts = as_it_was_trained(facts, model) | {"row": "trained"}
            references = self.reference_rows(facts)
            if config.embeddings is not None:  # post-training
                store_words(model, words, config.values)  # type: ignore[arg-type]
                facts["embeddings"] = words
            if config.activations.name != "float":
                facts |= {name: config.facts()[name] for name in ("activations", "one_bit_inputs")}
            if facts["activations"] == "int8" or config.signed():
                round_activations(model, components, config.signed())
            return [*references, self.row(model, facts)]
        model = self.original()
        facts = facts | {
            "row": "naive" if facts["values"] else "unbinarized",
            "steps": 0,
            "calibrated_on": 0,
        }
        rows = []
        if config.calibrate:
            rows = self.reference_rows(facts)
            make_trainable(model, components, Quantization(config.values, config.scale.name), words)  # type: ignore[arg-type]
            facts |= {"row": "calibrated", "calibrated_on": self.calibrate(model)}
            model = to_float(model)
        else:
            binarize_naive(
                model,
                components,
                ValueSet(config.values),
                Scale(config.scale.name),
                Scope(config.binarize.scope.name),
            )
            if "embeddings" not in components:
                store_words(model, words, config.values)  # type: ignore[arg-type]
        if config.activations.name != "float":
            round_activations(model, components, config.signed())
        return [*rows, self.row(model, facts)]

    def packed_rows(self, facts: Row) -> list[Row]:
        """A packed model, beside what it was made of in floats."""
        activations = self.config.activations.name
        model = packed.load(
            locate(str(self.checkpoint)), Act.a8 if activations == "int8" else Act.f32
        )
        facts = as_it_was_trained(facts, model) | {"row": "packed"}
        signed = facts["activations"] == "bit"
        if not signed:
            facts["activations"] = activations
        rows = self.reference_rows(facts)
        if self.config.references:
            floats = restore_activations(packed.to_float(model))
            rows.append(
                self.row(floats, facts, row="trained", activations="bit" if signed else "float")
            )
        return [*rows, self.row(model, facts)]


class Training(Job):
    """Binarize, train, and score the best checkpoint beside the unbinarized and the naive model."""

    config: schema.Train

    def __init__(self, config: schema.Train) -> None:
        super().__init__(config, config.trainer, config.model, "train", "validation")
        self.pretrained.check_floats()
        try:
            self.optimizer = partial(instantiate, config.optimizer)
            self.schedule = partial(instantiate, config.schedule)
            self.schedule(self.optimizer([torch.nn.Parameter(torch.zeros(1))]))
            self.callbacks: list[Callback] = [
                instantiate(callback) for callback in config.callbacks.values()
            ]
        except InstantiationException as error:
            raise InputError(str(error)) from error
        found = [c for c in self.callbacks if isinstance(c, ModelCheckpoint) and c.monitor]
        if len(found) != 1:
            raise InputError(
                f"callbacks: one ModelCheckpoint with a monitor keeps the best model; there are {len(found)}"
            )
        self.best = found[0]
        make_trainer(**self.arguments(), logger=False)

    def arguments(self) -> dict[str, Any]:
        """What Lightning's ``Trainer`` is made with. Steps count, epochs do not: the training stream is endless."""
        settings = self.config.trainer
        arguments = self.devices | asdict(settings)
        del arguments["compile"]
        # Lightning counts this one in batches, of which a step may take several
        arguments["val_check_interval"] = (
            settings.validation_steps * settings.accumulate_grad_batches
        )
        return arguments | {
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
        }

    def run(self, folder: Path, facts: Row, loggers: list[Logger]) -> list[Row]:
        config = self.config
        seed_everything(config.seed, verbose=False)
        # a checkpoint brings its own heads
        model = self.original() if config.resume is None else self.pretrained.load()
        model.set_dropout(config.model.dropout)
        loss = LossWeights(**config.loss.weights())
        components, recipe = config.component_names(), config.recipe
        parts = (
            config.values,
            config.scale.name,
            recipe.scaling.name,
            recipe.center.name,
            recipe.gradient.name,
        )
        quantization = Quantization(*parts)  # type: ignore[arg-type]
        make_trainable(model, components, quantization, config.word_table(), config.signed())  # type: ignore[arg-type]
        if config.activations.name != "float":
            round_activations(model, components, config.signed())
        fitted = self.calibrate(
            model, already=config.resume is not None
        )  # then the checkpoint has its weights
        if (
            config.trainer.compile
        ):  # the parts, because training takes the logits at masked positions between them
            for part in (model.embeddings, model.encoder, model.head):
                part.compile(dynamic=True)
        teacher = self.pretrained.load() if loss.distill else None
        module = MaskedLanguageModel(
            model.train(),
            teacher,
            loss,
            self.optimizer,
            self.schedule,
            config.loss.shares(),
            config.seed,
        )
        if inputs := one_bit_quantizers(model):
            self.callbacks.append(OneBitInputs(inputs))
        for callback in self.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(folder / "checkpoints")
        bar = [RichProgressBar()] if self.devices["enable_progress_bar"] else []
        trainer = make_trainer(
            **self.arguments(), logger=loggers, callbacks=[*self.callbacks, *bar]
        )
        last = folder / "checkpoints" / "last.ckpt"
        trainer.fit(
            module,
            datamodule=self.data,
            ckpt_path=last if config.resume else None,
            weights_only=True,
        )

        checkpoint = torch.load(self.best.best_model_path, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
        effective = to_float(module.model.cpu())
        facts = facts | {
            "row": "trained",
            "steps": trainer.global_step,
            "best_step": checkpoint["global_step"],
        }
        facts |= {"calibrated_on": fitted}
        if trainer.is_global_zero:
            self.write_model(module.model, effective, folder, facts)
        rows = [*self.reference_rows(facts), self.row(effective, facts)]
        if trainer.is_global_zero and (folder / "packed").is_dir():
            write_card(folder / "packed", rows, config.model, config.data)
        return rows

    def write_model(self, model: Bert, effective: Bert, folder: Path, facts: Row) -> None:
        """Write the ``effective`` weights in Hugging Face's layout (``model/``) and, if asked, in real bits (``packed/``), each
        with the tokenizer. When a run is resumed, those of a shorter training stay until the new ones are complete."""
        kept = (
            "components", "values", "scale", "scope", "recipe", "loss", "embeddings", "activations", "one_bit_inputs",
            "calibrated_on", "steps", "best_step", "seed", "settings",
        )  # fmt: skip
        config = replace(model.config, bitmaps={name: facts[name] for name in kept})
        model.config = effective.config = config
        draft = folder / "model.draft"
        shutil.rmtree(draft, ignore_errors=True)
        save(effective, draft)
        self.tokenizer.save_pretrained(draft)
        drafts = {folder / "model": draft}
        if self.config.packed and (facts["components"] != "none" or facts["embeddings"] != "fp32"):
            drafts[folder / "packed"] = folder / "packed.draft"
            shutil.rmtree(folder / "packed.draft", ignore_errors=True)
            packed.save(model, folder / "packed.draft", self.tokenizer)
        for final, draft in drafts.items():
            if final.exists():
                shutil.rmtree(final)
            draft.rename(final)
