"""The golden folders: packed models of every kind of tensor, and what they must compute for ever.

    PYTHONPATH=tests python -m packed.golden_models <version>

writes those of the version that this package writes. They are committed once, with the version, and
never written again.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from packed.matrices import using
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertTokenizer

from bitmaps.bert import Bert, BertConfig
from bitmaps.packed.format import load, save
from bitmaps.packed.integrity import digest
from bitmaps.packed.kernels import REFERENCE
from bitmaps.packed.model import to_float
from bitmaps.quantize.convert import binarize_naive, store_words
from bitmaps.vocabulary import Act, Component, Scale, Scope, Storage, ValueSet

GOLDEN = Path(__file__).with_name("golden")
ACTS = (Act.f32, Act.a16, Act.a8)
WORDS = "the a cat dog bird sat ran flew on under over mat log sky and then".split()  # noqa: SIM905


def floats(seed: int, *, tied: bool = True) -> Bert:
    config = BertConfig(
        vocab_size=21,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=21,
        max_position_embeddings=8,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).eval()


def binary(model: Bert, component: Component, values: ValueSet, scale: Scale) -> None:
    binarize_naive(model, (component,), values, scale, Scope.matrices)


def scales() -> Bert:
    """Every kind of one-bit matrix, and words in int4."""
    model = floats(0)
    binary(model, Component.attention, ValueSet("pm1"), Scale.rank_one)
    binary(model, Component.ffnn, ValueSet("01"), Scale.row)
    with torch.no_grad():
        two = model.get_parameter("encoder.layers.0.attention.query.weight")
        two.copy_(torch.where(two > 0, 0.5, -0.25))
        contract = model.get_parameter("encoder.layers.1.ffnn.contract.weight")
        contract.mul_(torch.linspace(0.5, 1.5, contract.shape[1]))
    return store_words(model, Storage.int4)


def inputs() -> Bert:
    """Matrices of -1 and 1 with a scale for each row, some of one-bit inputs, and words in fp16."""
    model = floats(1)
    for component in (Component.attention, Component.ffnn):
        binary(model, component, ValueSet("pm1"), Scale.row)
    trained = {"components": "layers", "activations": "bit", "one_bit_inputs": "query+contract"}
    model.config = replace(model.config, bitmaps=trained)
    return store_words(model, Storage.fp16)


def untied() -> Bert:
    """Words and a decoder of their own, both in int8."""
    model = floats(2, tied=False)
    for component in (Component.attention, Component.ffnn):
        binary(model, component, ValueSet("pm1"), Scale.rank_one)
    return store_words(model, Storage.int8)


# name -> the model, and how its tables and its head are stored
MODELS = {
    "scales": (scales, Storage.int8, Storage.fp16),
    "inputs": (inputs, None, None),
    "untied": (untied, Storage.int8, Storage.int8),
}


def some_ids() -> Tensor:
    return torch.randint(21, (3, 7), generator=torch.Generator().manual_seed(3))


def weights_of(folder: Path) -> str:
    """A digest of all weights that a folder stands for, as numbers in fp32."""
    model = to_float(load(folder, Act.f32))
    return digest({name: each.detach() for name, each in model.named_parameters()})


def write(to: Path) -> None:
    """Pack all models into folders of ``to``."""
    to.mkdir(parents=True)
    vocabulary = to / "vocab.txt"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary.write_text("\n".join(pieces) + "\n", encoding="utf-8")
    for name, (make, embeddings, head) in MODELS.items():
        save(make(), to / name, BertTokenizer(str(vocabulary)), embeddings, head)
    vocabulary.unlink()


def main(version: str) -> None:
    write(GOLDEN / version)
    for folder in [GOLDEN / version / name for name in MODELS]:
        with using(REFERENCE):
            expected = {act.value: load(folder, act)(some_ids()).contiguous() for act in ACTS}
        weights = {"weights": weights_of(folder)}
        save_file(expected, folder.with_suffix(".safetensors"), metadata=weights)


if __name__ == "__main__":
    main(sys.argv[1])
