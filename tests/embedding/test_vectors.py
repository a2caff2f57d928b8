"""Vectors of texts in their order, equal to those that the model makes of each text alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WORDS, Pack
from embedding.examples import CONFIG, LENGTH, encoder, one_by_one, texts
from embedding.examples import pack as pack_to
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import bitmaps
from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.data.batches import Batch, plain_batch
from bitmaps.embedding import vectors
from bitmaps.embedding.vectors import embed, embed_batches
from bitmaps.errors import InputError

KINDS = ("packed", "floats")
# words, pieces that the vocabulary lacks, and what tokenizers stumble over
TEXT = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.sampled_from(["", " ", "\n", "[CLS]", "[MASK] cat", "\0", "the" * 200]),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Bert]:
    home = tmp_path_factory.mktemp("models")
    checkpoint.save(encoder(), home / "floats")
    tokenizer.save_pretrained(home / "floats")
    pack_to(encoder(), tokenizer, home / "packed")
    acts = {"packed": "f32", "floats": None}
    return {kind: bitmaps.load(home / kind, act=acts[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(given=st.lists(TEXT, max_size=30), batch_size=st.integers(1, 40), window=st.integers(1, 40))
def test_vectors_are_those_of_the_texts_alone_in_their_order(
    kind: str, models: dict[str, Bert], given: list[str], batch_size: int, window: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "WINDOW", window)
        found = bitmaps.embed(models[kind], given, batch_size=batch_size)
    assert found.dtype == np.float32
    assert found.shape == (len(given), 16)
    np.testing.assert_allclose(found, one_by_one(models[kind], given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_any_pooling(mode: str, normalize: bool, pack: Pack) -> None:
    model = bitmaps.load(pack(encoder(Pooling(mode, normalize, LENGTH))), act="f32")
    found = embed(model, texts(40))
    np.testing.assert_allclose(found, one_by_one(model, texts(40)), atol=1e-5, rtol=0)
    lengths = np.linalg.norm(found, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) is normalize


def test_a_text_is_cut_at_the_models_own_length(models: dict[str, Bert]) -> None:
    kept = LENGTH - 2  # [CLS] and [SEP]
    long, same, shorter = WORDS[:11], [*WORDS[:kept], *WORDS[11:]], WORDS[: kept - 1]
    found = embed(models["floats"], [" ".join(words) for words in (long, same, shorter)])
    np.testing.assert_allclose(found[0], found[1], atol=1e-6, rtol=0)
    assert np.abs(found[0] - found[2]).max() > 1e-3


@pytest.mark.parametrize(
    ("length", "positions"), [(None, CONFIG.max_position_embeddings), (5, 5), (50, 12)]
)
def test_a_model_is_given_no_more_pieces_than_it_has_positions(
    length: int | None, positions: int, pack: Pack
) -> None:
    model = bitmaps.load(pack(encoder(Pooling("mean", True, length))), act="f32")
    assert model.config.longest_sentence == positions
    assert np.isfinite(embed(model, [" ".join(WORDS)])).all()


def test_any_iterable_of_texts_will_do(models: dict[str, Bert]) -> None:
    model, given = models["packed"], texts(20)
    expected = embed(model, given)
    for same in (tuple(given), iter(given), np.array(given), np.array(given, dtype=object)):
        assert (embed(model, same) == expected).all()


def test_a_model_stays_in_its_mode(models: dict[str, Bert]) -> None:
    model = models["floats"]
    expected = embed(model, texts(9))
    try:
        assert (embed(model.train(), texts(9)) == expected).all()  # without dropout
        assert model.training
    finally:
        model.eval()


def test_threads_may_share_a_model(models: dict[str, Bert]) -> None:
    model, given = models["packed"], [texts(64, seed) for seed in range(4)]
    expected = [embed(model, part) for part in given]
    found: dict[int, Any] = {}

    def run(number: int) -> None:
        found[number] = [embed(model, given[number]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((one == expected[number]).all() for number in range(4) for one in found[number])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("the cat", "texts is one str; valid is a list of texts"),
        (b"the cat", "texts is one bytes"),
        (["the cat", None], "text 1 is None; valid is text"),
        ([3], "text 0 is 3; valid is text"),
        (["a", "b", "\ud800"], r"text 2 is '\\ud800'; valid is text without unpaired surrogates"),
    ],
)
def test_what_is_no_text_is_refused(given: Any, named: str, models: dict[str, Bert]) -> None:
    with pytest.raises(InputError, match=named):
        embed(models["floats"], given)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_at_least_one_text(size: int, models: dict[str, Bert]) -> None:
    with pytest.raises(InputError, match=f"batch_size is {size}; valid is 1 or more"):
        embed(models["floats"], ["the"], batch_size=size)


def test_a_model_of_another_task_is_refused(tiny: Bert, pack: Pack) -> None:
    with pytest.raises(
        InputError, match=r"is for masked_lm, and makes no vectors.*valid is one for sentence_emb"
    ):
        embed(bitmaps.load(pack(tiny)), ["the cat"])


def test_a_model_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="pass a tokenizer"):
        embed(encoder(), ["the cat"])


def test_no_training_library_is_imported_for_it() -> None:
    code = "import bitmaps, sys; bitmaps.embed; assert not {'lightning', 'hydra'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("training", [True, False])
def test_batches_come_in_the_order_of_the_numbers(training: bool) -> None:
    model, random = encoder().train(training), np.random.default_rng(0)
    rows = [random.integers(5, 60, random.integers(2, 10)) for _ in range(23)]
    numbers = random.permutation(23).tolist()
    batches: list[Batch] = [
        plain_batch(numbers[i : i + 8], [rows[number] for number in numbers[i : i + 8]], 0)
        for i in range(0, 23, 8)
    ]
    found = embed_batches(model, batches)
    assert model.training is training
    assert found.shape == (23, 16)
    assert found.dtype == torch.float32
    model.eval()
    for row, vector in zip(rows, found, strict=True):
        with torch.no_grad():
            alone: Tensor = model(torch.tensor(row)[None])[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=0)
