"""Packed sentence encoders in sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf.conftest import Make
from hf.folders import files
from transformers import AutoTokenizer

import bitmaps
import bitmaps.hf
from bitmaps.bert.families import FAMILIES
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

pytestmark = pytest.mark.slow  # to import sentence-transformers takes ten seconds

TEXTS = ["the cat sat", "a big dog and a small bird ran on the log under a red sky", "sky"]
POOLINGS = [Pooling(mode, normalize, 9) for mode in MODES for normalize in (True, False)]


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("sentence_transformers")


def vectors(folder: Path, act: str | None = None) -> torch.Tensor:
    """What ``bitmaps.load`` makes of the texts, cut at the model's own length."""
    model, tokenizer = bitmaps.load(folder, act=act), AutoTokenizer.from_pretrained(folder)
    length = model.config.pooling.length
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        return model(batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("pooling", [*POOLINGS, Pooling("mean", True, None)], ids=str)
def test_vectors_are_those_of_bitmaps(pooling: Pooling, make: Make, library: Any) -> None:
    folder = make("bert", Task.sentence_embedding, pooling=pooling).packed
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    assert encoder.max_seq_length == (pooling.length or 12)
    found = encoder.encode(TEXTS, batch_size=2)
    assert found.shape == (3, 32)
    np.testing.assert_allclose(found, vectors(folder), atol=1e-5, rtol=0)
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) == pooling.normalize
    expected = torch.cosine_similarity(vectors(folder)[:1], vectors(folder))
    torch.testing.assert_close(encoder.similarity(found[:1], found)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_architecture_is_an_encoder(name: str, make: Make, library: Any) -> None:
    folder = make(name, Task.sentence_embedding).packed
    encoder = library.SentenceTransformer(str(folder), device="cpu", model_kwargs={"act": "f32"})
    np.testing.assert_allclose(encoder.encode(TEXTS), vectors(folder, "f32"), atol=1e-5, rtol=0)
    assert encoder.get_embedding_dimension() == 32


def test_the_folder_names_only_modules_of_sentence_transformers(make: Make, library: Any) -> None:
    for pooling in POOLINGS:
        folder = make("bert", Task.sentence_embedding, pooling=pooling).packed
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        names = [module["type"].rpartition(".")[2] for module in modules]
        assert names == ["Transformer", "Pooling", "Normalize"][: 2 + pooling.normalize]
        assert {module["type"].split(".")[0] for module in modules} == {"sentence_transformers"}
        own = [type(module) for module in library.SentenceTransformer(str(folder), device="cpu")]
        assert {kind.__module__.split(".")[0] for kind in own} == {"sentence_transformers"}


@pytest.mark.parametrize("pooling", POOLINGS[::2], ids=str)
def test_a_saved_encoder_gives_the_same_vectors(
    pooling: Pooling, make: Make, library: Any, tmp_path: Path
) -> None:
    folder = make("bert", Task.sentence_embedding, pooling=pooling).packed
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    encoder.save_pretrained(str(tmp_path / "saved"))
    saved = files(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert saved[name] == files(folder)[name]
    again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert np.array_equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert again.max_seq_length == 9
    assert bitmaps.load(tmp_path / "saved").config.pooling == pooling
    assert torch.equal(vectors(tmp_path / "saved"), vectors(folder))
    with pytest.raises(InputError, match="nothing is pickled"):
        encoder.save_pretrained(str(tmp_path / "pickled"), safe_serialization=False)
    with pytest.raises(FileExistsError):
        encoder.save_pretrained(str(tmp_path / "saved"))


def test_processes_share_the_work(make: Make, library: Any) -> None:
    folder = make("bert", Task.sentence_embedding, pooling=POOLINGS[0]).packed
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    texts = TEXTS * 4
    pool = encoder.start_multi_process_pool(["cpu", "cpu"])
    try:
        found = encoder.encode(texts, pool=pool, chunk_size=3)
    finally:
        encoder.stop_multi_process_pool(pool)
    np.testing.assert_allclose(found, encoder.encode(texts), atol=1e-6, rtol=0)


def test_another_type_is_refused(make: Make, library: Any) -> None:
    folder = make("bert", Task.sentence_embedding, pooling=POOLINGS[0]).packed
    encoder = library.SentenceTransformer(str(folder), device="cpu")
    before = encoder.encode(TEXTS)
    for call in (encoder.half, encoder.bfloat16, encoder.train):
        with pytest.raises(InputError, match=r"computes in float32|training is not supported"):
            call()
    with pytest.raises(InputError, match="dtype='float16' is not supported"):
        library.SentenceTransformer(
            str(folder), device="cpu", model_kwargs={"dtype": "float16"}
        )  # fmt: skip
    assert np.array_equal(encoder.encode(TEXTS), before)


@pytest.mark.parametrize("labels", [("no", "yes"), ()])
def test_a_classifier_of_pairs_is_a_cross_encoder(
    labels: tuple[str, ...], make: Make, library: Any
) -> None:
    folders = make("bert", Task.classification, labels=labels)
    pairs = [("the cat sat", "a dog ran"), ("a bird flew", "the sky was big")]
    ours = library.CrossEncoder(str(folders.packed), device="cpu", model_kwargs={"act": "f32"})
    theirs = library.CrossEncoder(str(folders.floats), device="cpu")
    np.testing.assert_allclose(ours.predict(pairs), theirs.predict(pairs), atol=2e-4, rtol=1e-3)
