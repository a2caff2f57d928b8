"""The models behind a run folder or a packed folder, opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert, BertConfig, checkpoint
from bitmaps.command.inherit import trained_config
from bitmaps.command.mistakes import found_in
from bitmaps.command.saved import FILE
from bitmaps.command.schema import Evaluate
from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError, as_text
from bitmaps.jobs.pretrained import Pretrained
from bitmaps.packed import format as packed
from bitmaps.quantize.convert import restore_activations
from bitmaps.runs.folder import read_state
from bitmaps.scoring.measure import resident_mib
from bitmaps.vocabulary import VALUE_SETS, RowKind


@dataclass(frozen=True)
class Shown:
    """A model that the page asks.

    Attributes:
        name: ``fp32``, ``naive``, ``trained`` or ``packed``.
        about: what it is, in a few words.
        mib: MiB of its weights in memory.
    """

    name: str
    about: str
    model: Bert
    mib: float

    @classmethod
    def of(cls, kind: RowKind, about: str, model: Bert) -> Shown:
        name = "fp32" if kind is RowKind.unbinarized else str(kind)
        return cls(name, about, model, resident_mib(model))


@dataclass(frozen=True)
class Group:
    """The models of one folder.

    Attributes:
        name: the folder, as it was typed.
        models: in the order of ``RowKind``; at least one.
        folder: where their tokenizer is.
        left_out: why ``fp32`` and ``naive`` are missing from a run that has them, if so.
    """

    name: str
    models: tuple[Shown, ...]
    folder: Path
    left_out: str | None = None

    @property
    def config(self) -> BertConfig:
        """The shape and the task of what was trained or packed."""
        return self.models[-1].model.config

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return tokenizer_of(str(self.folder))

    @property
    def length(self) -> int:
        """The greatest number of pieces of a text, special tokens included."""
        positions = self.config.max_position_embeddings
        return min(self.config.pooling.length or positions, positions)


def open_group(source: str) -> Group:
    """Open everything that a folder leads to.

    Args:
        source: a run folder, its ``model/``, or a packed folder, with its run around it or without.

    Raises:
        InputError: when it is none of these, or a model in it is damaged.
    """
    run, bits = find(source)
    models: list[Shown] = []
    left_out = None
    if run is not None:
        trained = restore_activations(checkpoint.load(run / "model"))
        try:
            models += references(run)
        except InputError as error:
            left_out = str(error)
        models.append(Shown.of(RowKind.trained, "the run's model, in floats", trained))
    if bits is not None:
        about = "its weights in real bits" if run is not None else "in real bits"
        models.append(Shown.of(RowKind.packed, about, packed.load(bits, None)))
    tokens = run / "model" if run is not None else cast(Path, bits)
    group = Group(as_text(source), tuple(models), tokens, left_out)
    for one in models:
        check_fit(group.tokenizer, tokens, one.model.config.vocab_size)
    return group


def find(source: str) -> tuple[Path | None, Path | None]:
    """The run folder and the packed folder that ``source`` leads to; one of them at least.

    Raises:
        InputError: when it leads to neither.
    """
    folder = Path(source).expanduser().absolute()
    if packed.is_packed(folder):
        return (folder.parent if holds_model(folder.parent) else None), folder
    run = folder.parent if folder.name == "model" and holds_model(folder.parent) else folder
    if not holds_model(run):
        found = "is no folder" if not folder.is_dir() else f"has no {FILE} beside a model/"
        raise InputError(
            f"{source} {found}; valid are the folder of a training and a packed folder, "
            "such as runs/train/<time> and runs/train/<time>/packed"
        )
    bits = run / "packed"
    return run, bits if bits.exists() else None


def holds_model(folder: Path) -> bool:
    """Whether a folder is that of a run that left a model."""
    return (folder / FILE).is_file() and (folder / "model" / "config.json").is_file()


def references(run: Path) -> list[Shown]:
    """The model that a run started from, and naively binarized; nothing for the first classifier,
    which started from none.

    Raises:
        InputError: when that model is not there.
    """
    saved = trained_config(OmegaConf.structured(Evaluate()), run, [])
    with found_in(run / FILE):
        config = cast(Evaluate, OmegaConf.to_object(saved))
    if not config.references:  # a classifier's start, which is another run
        if (teacher := read_state(run).facts.teacher) is None:
            return []
        raise InputError(f"the classifier that the run started from, {teacher}, is not there")
    config.model.check()
    start = Pretrained.find(config.model, config.seed, {}, config.task)
    start.check_floats()
    fp32 = Shown.of(RowKind.unbinarized, "the model that the run started from", start.load())
    components, values = config.binarize.components, config.values
    if not components:
        return [fp32]
    about = f"{config.binarize.label()} set to {VALUE_SETS[values]}, no training"
    return [fp32, Shown.of(RowKind.naive, about, start.naive(components, values))]
