"""The model that a job starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from bitmaps import ADAPTERS
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import check_sha256, load, locate
from bitmaps.command.parts import Model
from bitmaps.data.tokenizing import check_fit, tokenizer_of
from bitmaps.errors import InputError
from bitmaps.packed.format import is_packed
from bitmaps.vocabulary import Activations, Weights


@dataclass(frozen=True)
class Pretrained:
    """A model that was found, and whose weights have not been read yet.

    Attributes:
        settings: the choice in the configuration.
        shape: its sizes.
        folder: the folder with its tokenizer and, unless they are random, its weights.
        seed: of random weights and of a new head.
    """

    settings: Model
    shape: BertConfig
    folder: Path
    seed: int

    @classmethod
    def find(cls, settings: Model, seed: int, lengths: dict[str, int]) -> Pretrained:
        """Find a model.

        Args:
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
            shape, folder = BertConfig.from_dict(sizes), locate(settings.random_tokenizer)
        else:
            folder = locate(str(settings.source))
            shape = BertConfig.from_file(folder / "config.json")
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
                "or turn it into floats with bitmaps.packed.to_float"
            )
        if self.shape.needed_activations() is Activations.bit:
            raise InputError(
                f"{source} was trained with activations=bit, a part of it: "
                "score it with evaluate.py checkpoint=<run folder>"
            )

    def load(self) -> Bert:
        """The model in fp32. Every call reads it anew."""
        if self.settings.weights is Weights.random:
            return Bert(self.shape).randomize(torch.Generator().manual_seed(self.seed)).eval()
        name = self.settings.adapter
        torch.manual_seed(self.seed)  # of a new head
        adapter = None if name is None else adapter_file(name)
        return load(self.folder, adapter=adapter, head=self.settings.head)


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
