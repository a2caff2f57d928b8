"""``train.py``: binarize a model, train it, and score its best checkpoint."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.strategies import ModelParallelStrategy
from omegaconf import OmegaConf

from bitmaps.bert import Bert
from bitmaps.bert.checkpoint import save
from bitmaps.command.parts import SHARDED
from bitmaps.command.schema import Train
from bitmaps.errors import InputError
from bitmaps.jobs.pretrained import Pretrained, check_classifier, has_classifier
from bitmaps.jobs.setup import Outcome, Setup, make_trainer
from bitmaps.jobs.teacher import (
    is_first_process,
    one_at_a_time,
    teacher_config,
    teacher_folder,
    wait_for_all_processes,
)
from bitmaps.packed import format as packed
from bitmaps.quantize.convert import make_trainable, round_activations, to_float
from bitmaps.quantize.quantizer import Quantization
from bitmaps.quantize.rounding import input_quantizers
from bitmaps.runs.files import draft_of
from bitmaps.runs.folder import RunFolder, ScoredRow, has_checkpoint
from bitmaps.runs.records import Facts
from bitmaps.scoring.progress import ShowsProgress
from bitmaps.training.callbacks import (
    RoundedInputs,
    StaysStopped,
    StopsAtOnce,
    ValidatesLastStep,
    best_checkpoint,
    check_moments,
    check_monitors,
)
from bitmaps.training.checkpoints import (
    CheckpointFiles,
    LastCheckpoint,
    last_good,
    read_checkpoint,
)
from bitmaps.training.losses import LossWeights
from bitmaps.training.module import Trained
from bitmaps.vocabulary import RowKind, Storage, Task

log = logging.getLogger(__name__)


class Training:
    """Binarize and train a model, and score it beside the unbinarized and the naive one.

    Raises:
        InputError: for everything that can be found wrong before weights are read.
    """

    def __init__(self, config: Train) -> None:
        self.config = config
        model = config.model
        if config.teacher is not None:
            model = replace(model, source=config.teacher, adapter=None, sha256=None)
        self.setup = Setup.check(
            config, config.trainer, model, "train", "validation", new_classifier=True
        )
        if config.teacher is not None:
            check_classifier(config.teacher, self.setup.pretrained)
        self.setup.pretrained.check_floats()
        self.optimizer: Callable[..., Any] = partial(instantiate, config.optimizer)
        self.schedule: Callable[..., Any] = partial(instantiate, config.schedule)
        try:
            self.schedule(self.optimizer([torch.nn.Parameter(torch.zeros(1))]))
            callbacks = {name: instantiate(one) for name, one in config.callbacks.items()}
        except InstantiationException as error:
            raise InputError(str(error)) from error
        check_monitors(callbacks, config.task)
        check_moments(callbacks, config.callbacks)
        self.best = best_checkpoint(callbacks)
        self.callbacks: list[Callback] = list(callbacks.values())
        make_trainer(**self.arguments(), logger=False, callbacks=self.callbacks)

    def arguments(self) -> dict[str, Any]:
        """The arguments of Lightning's ``Trainer``. Steps count, and epochs do not: the training
        stream is endless."""
        settings = self.config.trainer
        arguments = self.setup.trainer | asdict(settings)
        del arguments["compile"]
        if settings.strategy == SHARDED:
            arguments["strategy"] = ModelParallelStrategy(
                data_parallel_size=self.setup.processes,
                tensor_parallel_size=1,
                save_distributed_checkpoint=False,
            )
        # Lightning counts this one in batches, and a step may take several
        batches = settings.validation_steps * settings.accumulate_grad_batches
        return arguments | {
            "val_check_interval": batches,
            "max_epochs": -1,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
            "enable_progress_bar": self.has_bar(),
        }

    def has_bar(self) -> bool:
        """Whether a configured callback is a progress bar."""
        return any(isinstance(one, ProgressBar) for one in self.callbacks)

    def run(self, folder: Path, facts: Facts, loggers: list[Logger]) -> Outcome:
        """Train, write the model below ``folder``, and score it."""
        config = self.config
        if self.needs_teacher():
            self.setup = replace(self.setup, pretrained=self.fine_tuned(facts))
        if has_classifier(classifier := self.setup.pretrained.folder):
            run = classifier.parent
            source = run if (run / "config.yaml").is_file() else classifier
            facts = replace(facts, teacher=str(source))
        seed_everything(config.seed, verbose=False)
        student, facts = self.student(facts)
        loss = LossWeights(**config.loss.weights())
        if self.setup.pretrained.labels is not None:  # a new classifier has no teacher
            loss, facts = LossWeights(), replace(facts, loss="tokens")
        module = self.setup.task.trained(
            student,
            self.setup.pretrained.load() if loss.distill else None,
            loss=loss,
            optimizer=self.optimizer,
            schedule=self.schedule,
            more_masked=config.loss.shares(),
            seed=config.seed,
        )
        trainer = self.fit(module, folder / "checkpoints", loggers)
        checkpoint = read_checkpoint(Path(self.best.best_model_path))
        model = module.gather(checkpoint["state_dict"])
        effective = to_float(model)
        facts = replace(
            facts,
            row=RowKind.trained,
            steps=trainer.global_step,
            best_step=checkpoint["global_step"],
        )
        if trainer.is_global_zero:
            self.write_model(model, effective, folder, facts)
        own = self.setup.score(effective, facts)
        return Outcome([*self.setup.references(facts), *self.packed(folder, facts), own], effective)

    def needs_teacher(self) -> bool:
        """Whether a classifier is fine-tuned in full precision before it is binarized."""
        config = self.config
        fine_tuned = has_classifier(self.setup.pretrained.folder)
        return config.task is Task.classification and config.takes_two_values() and not fine_tuned

    def fine_tuned(self, facts: Facts) -> Pretrained:
        """The classifier that equal jobs share, fine-tuned now unless it is there already."""
        config = teacher_config(self.config)
        folder = teacher_folder(config)
        with one_at_a_time(folder):
            run = RunFolder(folder, writes=is_first_process())
            if not run.is_done():
                log.info("fine-tuning the classifier in full precision, in %s", folder)
                fine_tune(config, run, facts)
                wait_for_all_processes()  # the first one writes the model
        model = replace(config.model, source=str(folder), adapter=None, sha256=None)
        return Pretrained.find(model, config.seed, {}, config.task)

    def student(self, facts: Facts) -> tuple[Bert, Facts]:
        """The binarized model that is trained, and the facts with what it was fitted on before."""
        config, recipe = self.config, self.config.recipe
        resumed = config.resume is not None
        # a checkpoint brings its own heads and its own weights
        model = self.setup.pretrained.load() if resumed else self.setup.original()
        model.set_dropout(config.model.dropout)
        components = config.binarize.components
        quantization = Quantization(
            config.values, config.scale, recipe.scaling, recipe.center, recipe.gradient
        )
        one_bit = config.one_bit_layers()
        make_trainable(model, components, quantization, config.word_table(), one_bit)
        round_activations(model, components, config.activations, one_bit)
        facts = self.setup.fit(model, facts, already=resumed)
        if config.trainer.compile:
            # part by part: training takes the logits at masked positions between them
            for part in (model.embeddings, model.encoder, model.head):
                part.compile(dynamic=True)
        return model.train(), facts

    def fit(self, module: Trained, checkpoints: Path, loggers: list[Logger]) -> Trainer:
        """Train from the start, or from the last good checkpoint when a run is resumed.

        Raises:
            InputError: when there is none, or it has more steps than are asked for.
        """
        files, last = CheckpointFiles(), checkpoints / "last.ckpt"
        ours = [ValidatesLastStep(), StaysStopped(), StopsAtOnce(), LastCheckpoint(last, files)]
        callbacks = [*self.callbacks, *ours]
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(checkpoints)
        if inputs := input_quantizers(module.model):
            callbacks.append(RoundedInputs(inputs, self.config.activations_from))
        if not self.has_bar():
            callbacks.append(ShowsProgress())
        trainer = make_trainer(
            **self.arguments(), logger=loggers, callbacks=callbacks, plugins=[files]
        )
        start = self.start(last) if self.config.resume else None
        trainer.fit(module, datamodule=self.setup.task.data, ckpt_path=start, weights_only=True)
        return trainer

    def start(self, last: Path) -> Path:
        """The checkpoint that a resumed run goes on from: the last one, or, if that is damaged, the
        best one. Each step depends on the seed and its number, so both lead to the same model.

        Raises:
            InputError: when there is none, or it has more steps than are asked for.
        """
        best = last.with_name("best.ckpt")
        path, checkpoint = last_good([last, best] if best.is_file() else [last])
        steps, most = checkpoint["global_step"], self.config.trainer.max_steps
        if steps > most:
            raise InputError(f"trainer.max_steps={most} is too small: {path} has {steps} already")
        return path

    def write_model(self, model: Bert, effective: Bert, folder: Path, facts: Facts) -> None:
        """Write the trained model, with the tokenizer: its effective weights in Hugging Face's
        layout (``model/``) and, if asked, its real bits (``packed/``). Both are drafts until
        ``RunFolder.finish`` puts them beside their rows."""
        model.config = effective.config = replace(model.config, bitmaps=facts.of_model())
        draft = draft_of(folder / "model")
        shutil.rmtree(draft, ignore_errors=True)
        save(effective, draft)
        self.setup.tokenizer.save_pretrained(draft)
        in_bits = facts.components != "none" or facts.embeddings is not Storage.fp32
        if self.config.packed and in_bits:
            draft = draft_of(folder / "packed")
            shutil.rmtree(draft, ignore_errors=True)
            packed.save(model, draft, self.setup.tokenizer, self.config.packed_embeddings)

    def packed(self, folder: Path, facts: Facts) -> list[ScoredRow]:
        """The row of the model in real bits, where there is one and kernels run it: in one process,
        on the CPU."""
        draft = draft_of(folder / "packed")
        if not self.setup.on_cpu or self.setup.processes > 1 or not draft.is_dir():
            return []
        scored, _ = self.setup.score_packed(draft, facts)
        return [scored]


def fine_tune(config: Train, run: RunFolder, asked: Facts) -> None:
    """Train a full-precision classifier, from its last checkpoint if it was stopped.

    Args:
        asked: of the job that needs it.
    """
    if has_checkpoint(run.path):
        config = replace(config, resume=str(run.path))
    elif run.holds_run() and run.writes:
        shutil.rmtree(run.path)  # it failed before its first checkpoint
    facts = replace(
        config.facts(), command=asked.command, versions=asked.versions, commit=asked.commit
    )
    job = Training(config)
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    run.claim(text, facts, resume=config.resume is not None)
    try:
        curves = CSVLogger(run.path, name="logs")
        run.finish(job.run(run.path, facts, [curves]).scored)
    except BaseException as error:
        run.fail(error, facts)
        raise
