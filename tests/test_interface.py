"""``bitmaps.binarize``, ``save`` and ``fill``."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import bitmaps
from bitmaps.bert import Bert, checkpoint
from bitmaps.errors import InputError
from bitmaps.interface import batches_of
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.calibrate import calibrate
from bitmaps.quantize.convert import binarize_naive, make_trainable
from bitmaps.quantize.quantizer import Quantization
from bitmaps.quantize.rotate import rotate_heads
from bitmaps.vocabulary import ZERO_ONE, Component, Scale, Scope, ValueSet

TEXTS = ["the cat sat on the mat", "a dog ran", "the mat", "on the cat"] * 9
SIZES = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 12, "initializer_range": 0.3,
}  # fmt: skip


@pytest.fixture
def folder(tiny: Bert, tokenizer: Any, tmp_path: Path) -> Path:
    """A model with its tokenizer, as Hugging Face writes them."""
    checkpoint.save(tiny, tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_the_public_names_are_seen_and_documented() -> None:
    assert dir(bitmaps) == bitmaps.__all__
    for name in bitmaps.__all__:
        assert getattr(bitmaps, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bitmaps.nothing


@pytest.mark.parametrize("source", ["folder", "model"])
def test_without_calibration_it_is_the_naive_model_with_scales(source: str, folder: Path) -> None:
    original = bitmaps.load(folder)
    before = parameters_of(original)
    given = folder if source == "folder" else original
    found = bitmaps.binarize(given, "ffnn+head", values="01", scale="row", scope="all")
    chosen = (Component.ffnn, Component.head)
    expected = binarize_naive(bitmaps.load(folder), chosen, ZERO_ONE, Scale.row, Scope.all)
    for name, weight in parameters_of(expected).items():
        assert torch.equal(parameters_of(found)[name], weight), name
        assert torch.equal(parameters_of(original)[name], before[name]), name
    assert not found.training


@pytest.mark.parametrize("values", ["pm1", "01"])
def test_calibration_is_that_of_the_command(
    values: str, folder: Path, ids: Tensor, tmp_path: Path
) -> None:
    """Nearer to the original than without, and in bits when it is saved."""
    original = bitmaps.load(folder)
    naive = bitmaps.binarize(original, "layers", values=values)
    found = bitmaps.binarize(original, "layers", values=values, calibrate=TEXTS)
    read = batches_of("calibrate", TEXTS, original.tokenizer)[0]
    there = read["attention_mask"].bool()

    def distance(model: Bert) -> float:
        states = [one.encode(**read)[-1][there] for one in (model, original)]
        return (states[0] - states[1]).square().mean().item()

    assert distance(found) < distance(naive)
    tuned = bitmaps.binarize(original, "layers", values=values, calibrate=TEXTS, tune=TEXTS)
    assert not tuned.training
    assert not torch.equal(tuned(ids), found(ids))
    reference = copy.deepcopy(original)
    chosen = (Component.attention, Component.ffnn)
    if values == "pm1":
        rotate_heads(reference, Scale.rank_one)
    expected = make_trainable(
        copy.deepcopy(reference), chosen, Quantization(ValueSet(values), Scale.rank_one)
    )
    calibrate(expected, reference, batches_of("calibrate", TEXTS, original.tokenizer))
    torch.testing.assert_close(found(ids), expected(ids))
    bitmaps.save(found, tmp_path / "packed", embeddings="fp32")
    opened = bitmaps.load(tmp_path / "packed", act="f32")
    bits = [m for m in opened.modules() if isinstance(m, PackedWeight) and m.storage == "bit"]
    assert len(bits) == 12
    torch.testing.assert_close(opened(ids), found(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("BertForMaskedLM", "bert."),
        ("BertForSequenceClassification", "bert."),
        ("BertModel", ""),
        ("RobertaForMaskedLM", "roberta."),
        ("DistilBertForMaskedLM", "distilbert."),
        ("ElectraForSequenceClassification", "electra."),
    ],
)
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_model_of_transformers_stays_one(
    name: str, head: str, calibrated: bool, tokenizer: Any, ids: Tensor
) -> None:
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    more = {"hidden_dim": 24} if "Distil" in name else {"embedding_size": 16}
    model = kind(kind.config_class(**SIZES, **more, pad_token_id=0)).eval()
    before = parameters_of(model)
    found = bitmaps.binarize(
        model, "attention", calibrate=TEXTS if calibrated else (), tokenizer=tokenizer
    )
    assert type(found) is kind
    changed = {
        n for n, weight in parameters_of(found).items() if not torch.equal(weight, before[n])
    }
    assert all(torch.equal(weight, before[n]) for n, weight in parameters_of(model).items())
    matrices = {n for n in changed if found.get_parameter(n).ndim == 2}
    assert len(matrices) == 8
    assert all(n.startswith(head) for n in changed)
    for n in matrices:
        magnitudes = found.get_parameter(n).detach().abs()
        singular = torch.linalg.svdvals(magnitudes.double())
        assert singular[1] < 1e-5 * singular[0], n  # a scale per row times one per column
    outputs = [one(ids % 40 + 5)[0] for one in (model, found)]
    assert outputs[0].shape == outputs[1].shape
    assert not torch.equal(*outputs)


def test_a_model_of_transformers_is_saved_in_bits(
    folder: Path, tokenizer: Any, ids: Tensor, tmp_path: Path
) -> None:
    model = transformers.BertForMaskedLM.from_pretrained(folder)
    found = bitmaps.binarize(model, "layers")
    bitmaps.save(found, tmp_path / "packed", embeddings="fp32", tokenizer=tokenizer)
    expected = bitmaps.binarize(folder, "layers")(ids)
    opened = bitmaps.load(tmp_path / "packed", act="f32")
    torch.testing.assert_close(opened(ids), expected, atol=1e-4, rtol=1e-4)


def test_masks_are_filled_in_as_the_command_does(folder: Path, tmp_path: Path) -> None:
    model = bitmaps.load(folder)
    bitmaps.save(model, tmp_path / "packed", embeddings="fp32")
    for one in (model, bitmaps.load(tmp_path / "packed", act="f32")):
        guesses = bitmaps.fill(one, "the [MASK] sat on the [MASK]")
        assert [len(best) for best in guesses] == [5, 5]
        batch = model.tokenizer("the [MASK] sat on the [MASK]", return_tensors="pt")
        logits = model(batch["input_ids"])[0].softmax(-1)
        for best, position in zip(guesses, (2, 6), strict=True):
            values, tokens = logits[position].topk(5)
            assert [guess.probability for guess in best] == pytest.approx(values.tolist(), rel=1e-4)
            names = [str(model.tokenizer.convert_ids_to_tokens(int(n))) for n in tokens]
            known = [n for n in names if n != "None"]
            assert [guess.token for guess in best if not guess.token.startswith("[")] == [
                n for n in known if not n.startswith("[")
            ]


def test_what_cannot_be_is_refused_before_anything_is_computed(
    folder: Path, tiny: Bert, tmp_path: Path
) -> None:
    sentences = ["the cat"]
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: bitmaps.binarize(folder, "ffn"), "components='ffn' is unknown; valid are none, all"),
        (lambda: bitmaps.binarize(folder, values="2"), "values='2' is unknown; valid are 01, pm1"),
        (lambda: bitmaps.binarize(folder, scale="x"), "scale='x' is unknown; valid are none, tensor"),
        (lambda: bitmaps.binarize(folder, scope="x"), "scope='x' is unknown; valid are all, matrices"),
        (lambda: bitmaps.binarize(folder, scale="none", calibrate=sentences), "fits a scale per row"),
        (lambda: bitmaps.binarize(folder, scope="all", calibrate=sentences), "fits a scale per row"),
        (lambda: bitmaps.binarize(folder, "embeddings", calibrate=sentences), "fits attention, ffnn"),
        (lambda: bitmaps.binarize(folder, calibrate="the cat"), "valid is a list of texts"),
        (lambda: bitmaps.binarize(folder, calibrate=sentences, tune="the cat"), "tune is one text"),
        (lambda: bitmaps.binarize(folder, tune=sentences), "tune goes on from a calibration"),
        (lambda: bitmaps.binarize(tiny, calibrate=sentences), "pass a tokenizer"),
        (lambda: bitmaps.save(tiny, tmp_path / "x"), "pass a tokenizer"),
        (lambda: bitmaps.save(bitmaps.load(folder), folder), "exists already"),
        (lambda: bitmaps.save(bitmaps.load(folder), tmp_path / "x", embeddings="bit"), "valid are fp32"),
        (lambda: bitmaps.fill(bitmaps.load(folder), "the cat"), "put [MASK] where a word is missing"),
        (lambda: bitmaps.fill(bitmaps.load(folder), "[MASK] the" * 12), "more than the model's 12"),
    ]  # fmt: skip
    for call, message in cases:
        with pytest.raises(InputError, match=re.escape(message)):
            call()
    assert not (tmp_path / "x").exists()


def test_another_model_of_transformers_is_refused(tokenizer: Any) -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=60, n_positions=12)
    with pytest.raises(InputError, match="gpt2"):
        bitmaps.binarize(transformers.GPT2LMHeadModel(config))


def test_it_imports_nothing_slow_before_a_function_is_used() -> None:
    code = "import bitmaps, sys; dir(bitmaps); print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
