"""The model that a job starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bitmaps import ADAPTERS
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import config_of, load
from bitmaps.bert.finding import NotOnHubError, check_sha256, locate
from bitmaps.command.parts import Model
from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError
from bitmaps.packed.format import is_packed
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import Activations, HeadSource, Task, ValueSet, Weights


@dataclass(frozen=True)
class Pretrained:
    """A model that was found, and whose weights have not been read yet.

    Attributes:
        settings: the choice in the configuration.
        shape: its sizes.
        folder: the folder with its tokenizer and, unless they are random, its weights.
        seed: of random weights and of a new head.
        labels: the classes of a new classifier; ``None`` where the model has its own head.
    """

    settings: Model
    shape: BertConfig
    folder: Path
    seed: int
    labels: tuple[str, ...] | None = None

    @classmethod
    def find(
        cls, settings: Model, seed: int, lengths: dict[str, int], task: Task = Task.masked_lm
    ) -> Pretrained:
        """Find a model.

        Args:
            task: what it is for.
            lengths: tokens a sequence, by the key that asks for them.

        Raises:
            InputError: when the model or its adapter is missing or damaged, is no BERT, does not
                fit its tokenizer, or has fewer positions than one of ``lengths``.
        """
        random = settings.weights is Weights.random
        if random and (sizes := settings.shape.sizes()):
            if settings.random_tokenizer is None:
                raise InputError(
                    "model.shape gives the sizes of random weights: "
                    "model.random_tokenizer is missing"
                )
            shape = replace(BertConfig.from_dict(sizes), task=task)
            folder = located(settings.random_tokenizer)
        else:
            folder = located(str(settings.source))
            shape = config_of(folder, task)
            check_task(folder, shape)
            if settings.sha256 and not random:
                check_sha256(folder / "model.safetensors", settings.sha256)
        if settings.adapter is not None and not random:
            check_adapter(settings.adapter)
        check_fit(tokenizer_of(str(folder)), folder, shape.vocab_size)
        for name, length in lengths.items():
            if length > shape.max_position_embeddings:
                raise InputError(
                    f"{name}={length} is more than the model's "
                    f"{shape.max_position_embeddings} positions"
                )
        return cls(settings, shape, folder, seed)

    def check_floats(self) -> None:
        """Raises:
        InputError: when the model is in real bits or was trained with one-bit inputs, from which a
            binarization cannot start."""
        if self.settings.weights is Weights.random:
            return
        source = f"model.source={self.settings.source}"
        if is_packed(self.folder):
            raise InputError(
                f"{source} is packed: score it with evaluate.py checkpoint=…, "
                "or turn it into floats with `python -m bitmaps.packed to_float`"
            )
        if self.shape.needed_activations() is Activations.bit:
            raise InputError(
                f"{source} was trained with activations=bit, a part of it: "
                "score it with evaluate.py checkpoint=<run folder>"
            )

    def with_classifier(self, labels: tuple[str, ...]) -> Pretrained:
        """This model with a new classifier, unless it has one."""
        if has_classifier(self.folder) and self.settings.weights is not Weights.random:
            return self
        return replace(self, labels=labels, shape=replace(self.shape, labels=labels))

    def labels_for(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """The classes of the data in the order of the model's outputs.

        Raises:
            InputError: when the model has other classes.
        """
        if self.labels is not None or not has_classifier(self.folder):
            return found
        own = self.shape.labels
        numbers = tuple(str(number) for number in range(len(own)))
        if own == tuple(f"LABEL_{number}" for number in numbers) and set(found) <= set(numbers):
            return numbers
        if not set(found) <= set(own) or bool(own) != bool(found):
            raise InputError(
                f"{self.folder} tells {', '.join(own) or 'a score'} apart, and the data has "
                f"{', '.join(found) or 'scores'}"
            )
        return own

    def load(self) -> Bert:
        """The model in fp32. Every call reads it anew."""
        if self.settings.weights is Weights.random:
            return Bert(self.shape).randomize(torch.Generator().manual_seed(self.seed)).eval()
        name = self.settings.adapter
        torch.manual_seed(self.seed)  # of a new head
        adapter = None if name is None else adapter_file(name)
        return load(
            self.folder,
            adapter=adapter,
            head=self.settings.head if self.labels is None else HeadSource.new,
            task=self.shape.task,
            labels=self.labels,
        )

    def naive(self, components: Iterable[str], values: ValueSet) -> Bert:
        """The model naively binarized, as in the blog post. Every call reads it anew."""
        return binarize_naive(self.load(), components, values)


def located(source: str) -> Path:
    """``locate``, with what a command offers instead.

    Raises:
        InputError: when there is no such model.
    """
    try:
        return locate(source)
    except NotOnHubError as error:
        raise InputError(
            f"{error}. Without the Hub use model=minilm (weights from the package index), "
            "model=hub model.source=<folder>, or model.weights=random"
        ) from error


def has_classifier(folder: Path) -> bool:
    """Whether a folder says that its model is a classifier."""
    return config_of(folder).task is Task.classification


def check_classifier(source: str, found: Pretrained) -> None:
    """Raises:
    InputError: when a teacher is no classifier."""
    if not has_classifier(found.folder):
        raise InputError(
            f"teacher={source} is no classifier; valid is a run of "
            "train.py task=classification binarize=none"
        )


def check_task(folder: Path, shape: BertConfig) -> None:
    """Raises:
    InputError: when a model of this project was made for another task."""
    made_for = (shape.bitmaps or {}).get("task", shape.task)
    if made_for != shape.task and shape.bitmaps is not None:
        raise InputError(f"{folder} was made for task={made_for}, not for task={shape.task}")


def adapter_file(name: str) -> Path:
    """A shipped adapter by its name, or any other by its path."""
    shipped = ADAPTERS / f"{name}.safetensors"
    return shipped if shipped.is_file() else Path(name).expanduser()


def check_adapter(name: str) -> None:
    """Raises:
    InputError: when there is no such adapter."""
    if not adapter_file(name).is_file():
        shipped = ", ".join(sorted(path.stem for path in ADAPTERS.glob("*.safetensors")))
        raise InputError(f"model.adapter={name} is no file; shipped with the package: {shipped}")
