"""Packed models that transformers stores, uploads and copies."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf.conftest import Make
from hf.folders import LABELS, Folders, batch_of, files
from hf.hub import running
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

import bitmaps
import bitmaps.hf
from bitmaps.bert import BertConfig
from bitmaps.bert.families import FAMILIES
from bitmaps.bert.pooling import MODES, Pooling
from bitmaps.errors import InputError
from bitmaps.vocabulary import Task

OWN = {"config.json", "model.safetensors"}
SENTENCE = {"modules.json", "sentence_bert_config.json", "1_Pooling/config.json"}


def opener_of(task: Task) -> Any:
    return {
        Task.masked_lm: AutoModelForMaskedLM,
        Task.sentence_embedding: AutoModel,
        Task.classification: AutoModelForSequenceClassification,
    }[task]


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_stored_model_has_the_same_bytes(
    name: str, task: Task, make: Make, tmp_path: Path
) -> None:
    folders = make(name, task)
    for opener in {AutoModel, opener_of(task)}:
        to = tmp_path / opener.__name__
        opener.from_pretrained(folders.packed, act="a16").save_pretrained(to)
        stored = files(to)
        assert stored.keys() == OWN | (SENTENCE if task is Task.sentence_embedding else set())
        assert stored.items() <= files(folders.packed).items()
    batch = batch_of(folders.config)
    assert torch.equal(bitmaps.load(to)(**batch), bitmaps.load(folders.packed)(**batch))
    again = opener_of(task).from_pretrained(to)
    assert torch.equal(
        again(**batch)[0], opener_of(task).from_pretrained(folders.packed)(**batch)[0]
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("normalize", [True, False])
def test_a_sentence_encoder_keeps_how_it_pools(
    mode: str, normalize: bool, make: Make, tmp_path: Path
) -> None:
    pooling = Pooling(mode, normalize, 9)
    folders = make("bert", Task.sentence_embedding, pooling=pooling)
    bitmaps.to_transformers(bitmaps.load(folders.packed)).save_pretrained(tmp_path / "stored")
    stored = files(tmp_path / "stored")
    assert stored.keys() == OWN | SENTENCE
    assert stored.items() <= files(folders.packed).items()
    assert bitmaps.load(tmp_path / "stored").config.pooling == pooling


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_wrapped_floats_are_stored_as_a_model_of_transformers(
    name: str, task: Task, make: Make, tmp_path: Path
) -> None:
    folders = make(name, task)
    model = bitmaps.load(folders.floats)
    wrapped = bitmaps.to_transformers(model)
    assert type(wrapped) is type(bitmaps.to_transformers(bitmaps.load(folders.packed)))
    wrapped.save_pretrained(tmp_path / "stored")
    stored = opener_of(task).from_pretrained(tmp_path / "stored")
    batch = batch_of(folders.config)
    kept = batch["attention_mask"].bool() if task is not Task.classification else slice(None)
    found, expected = stored(**batch)[0][kept], wrapped(**batch)[0][kept]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    wrapped.train().requires_grad_(True)  # which floats can
    assert all(parameter.requires_grad for parameter in wrapped.parameters())


def test_classes_can_be_renamed(make: Make, tmp_path: Path) -> None:
    folders = make("bert", Task.classification)
    names = {0: "red", 1: "green", 2: "blue"}
    model = AutoModelForSequenceClassification.from_pretrained(folders.packed, id2label=names)
    model.save_pretrained(tmp_path / "one")
    assert bitmaps.load(tmp_path / "one").config.labels == ("red", "green", "blue")
    model.config.id2label = dict(enumerate(LABELS))
    model.save_pretrained(tmp_path / "two")
    assert files(tmp_path / "two").items() <= files(folders.packed).items()
    for wrong in ({0: "red"}, {0: "a", 1: "b", 3: "c"}, {}):
        model.config.id2label = wrong
        with pytest.raises(InputError, match=r"id2label names the classes .*; valid are 0 to 2"):
            model.save_pretrained(tmp_path / "three")
    scores = make("bert", Task.classification, labels=())
    with pytest.raises(InputError, match=r"id2label is \{0: 'score'\} in the configuration"):
        AutoModelForSequenceClassification.from_pretrained(scores.packed, id2label={0: "score"})
    assert not (tmp_path / "three").exists()


def test_a_configuration_that_was_changed_is_not_stored(masked: Folders, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked.packed)
    model.config.num_attention_heads = 4
    with pytest.raises(InputError, match="num_attention_heads is 4 in the configuration, and 2"):
        model.save_pretrained(tmp_path / "stored")


def test_nothing_is_overwritten_split_or_pickled(masked: Folders, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(masked.packed)
    for options, named in (
        ({"max_shard_size": "1KB"}, "max_shard_size='1KB' is too small"),
        ({"safe_serialization": False}, "nothing is pickled"),
    ):
        with pytest.raises(InputError, match=named):
            model.save_pretrained(tmp_path / "stored", **options)
    with pytest.raises(TypeError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "stored", push_to_hub=True)
    assert not (tmp_path / "stored").exists()
    model.save_pretrained(tmp_path / "stored", max_shard_size="5GB")
    before = files(tmp_path / "stored")
    with pytest.raises(FileExistsError, match=r"config\.json exists already"):
        model.save_pretrained(tmp_path / "stored")
    (tmp_path / "stored" / "config.json").unlink()
    with pytest.raises(FileExistsError, match=r"model\.safetensors exists already"):
        model.save_pretrained(tmp_path / "stored")
    assert files(tmp_path / "stored").items() <= before.items()


@pytest.mark.parametrize("act", ["f32", "a8"])
def test_copies_compute_the_same(act: str, masked: Folders, tmp_path: Path) -> None:
    model, batch = AutoModelForMaskedLM.from_pretrained(masked.packed, act=act), {}
    batch = batch_of(masked.config)
    expected = model(**batch).logits
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    fresh = AutoModelForMaskedLM.from_pretrained(masked.packed, act=act)
    with torch.no_grad():
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        fresh.bert.encoder.layers[0].attention.query.weight.data.zero_()
    assert not torch.allclose(fresh(**batch).logits, expected)
    fresh.load_state_dict(model.state_dict())
    for copied in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(saved, weights_only=False),
        fresh,
        copy.deepcopy(model).to("cpu").float().cpu(),
        copy.deepcopy(model).share_memory(),
    ):
        assert torch.equal(copied(**batch).logits, expected)
        copied.save_pretrained(tmp_path / f"copy{len(list(tmp_path.iterdir()))}")
    for folder in tmp_path.iterdir():
        assert files(folder).items() <= files(masked.packed).items()


PUSH = """
import sys, bitmaps.hf
from transformers import AutoModel, AutoTokenizer
from sentence_transformers import SentenceTransformer
encoder, bare = sys.argv[1:3]
model = AutoModel.from_pretrained(encoder)
model.add_model_tags("ours")
found = model.push_to_hub("me/encoder", tags=["small", "one-bit"], private=True)
AutoTokenizer.from_pretrained(encoder).push_to_hub("me/encoder")
print(found.commit_url)
model.push_to_hub("me/encoder", commit_message="again")
model.push_to_hub("me/encoder", revision="other")
print(model.push_to_hub("me/encoder", create_pr=True).pr_url)
AutoModel.from_pretrained(bare).push_to_hub("me/bare")
SentenceTransformer(encoder, device="cpu").push_to_hub("me/sentences")
"""
PULL = """
import sys, bitmaps, bitmaps.hf, torch
from transformers import AutoModel, AutoTokenizer
from sentence_transformers import SentenceTransformer
local, texts = sys.argv[1], ["the cat sat", "a big dog and a small bird ran on"]
tokenizer = AutoTokenizer.from_pretrained(local)
batch = tokenizer(texts, padding=True, truncation=True, max_length=9, return_tensors="pt")
vectors = bitmaps.load(local)(batch["input_ids"], batch["attention_mask"])
states = AutoModel.from_pretrained(local)(**batch).last_hidden_state
for source in ("me/encoder", "me/sentences"):
    for options in ({}, {"revision": "other"}) if source == "me/encoder" else ({},):
        found = AutoModel.from_pretrained(source, act="a8", **options)
        assert torch.equal(found(**batch).last_hidden_state, states), source
    ours = bitmaps.load(source)
    assert ours.config.pooling.mode == "max", ours.config.pooling
    assert torch.equal(ours(batch["input_ids"], batch["attention_mask"]), vectors), source
    theirs = SentenceTransformer(source, device="cpu")
    assert theirs.max_seq_length == 9
    found = theirs.encode(texts, convert_to_tensor=True)
    assert (found - vectors).abs().max() < 1e-5, source
"""
MODEL_CARD = """---
license: mit
tags:
- bert
---

# A card of its own
"""


@pytest.mark.slow  # to import all of it twice takes half a minute
def test_the_hub_has_what_the_folder_has(make: Make, tmp_path: Path) -> None:
    folder = make("bert", Task.sentence_embedding, pooling=Pooling("max", False, 9)).packed
    bare = make("bert", Task.masked_lm).packed
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    for path, content in files(folder).items():
        (encoder / path).parent.mkdir(exist_ok=True)
        (encoder / path).write_bytes(content)
    (encoder / "README.md").write_text(MODEL_CARD, encoding="utf-8")
    with running() as hub:
        variables = os.environ | hub.environment(str(tmp_path / "home"))

        def run(code: str, *arguments: object) -> str:
            command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
            done = subprocess.run(
                command, env=variables, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        said = run(PUSH, encoder, bare).splitlines()
        assert said[0].startswith(f"{hub.url}/me/encoder/commit/")
        assert said[1] == f"{hub.url}/me/encoder/discussions/1"
        pushed = hub.repositories["me/encoder"]
        assert hub.private == {"me/encoder"}
        assert pushed.keys() == {"main", "other", "refs/pr/1"}
        for branch in pushed.values():
            assert {name: branch[name] for name in OWN | SENTENCE}.items() <= files(encoder).items()
        card = pushed["main"]["README.md"].decode()
        assert card.endswith("# A card of its own\n")
        front = card.split("---\n")[1]
        assert front == "license: mit\ntags:\n- bert\n- ours\n- small\n- one-bit\n"
        assert pushed["refs/pr/1"]["README.md"].decode() == card
        messages = [message for _, message, _ in hub.commits]
        assert messages[0] == "Upload BitmapsModel"
        assert "again" in messages
        bare_card = hub.repositories["me/bare"]["main"]["README.md"].decode()
        assert "library_name: bitmaps" in bare_card
        assert hub.repositories["me/sentences"]["main"]["README.md"].decode() == MODEL_CARD
        run(PULL, encoder)


def test_a_folder_inside_a_folder_is_found(make: Make, tmp_path: Path) -> None:
    folders = make("bert", Task.masked_lm)
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "inner").symlink_to(folders.packed)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "outer", subfolder="inner")
    batch = batch_of(folders.config)
    assert torch.equal(model(**batch).logits, bitmaps.load(folders.packed)(**batch))


def test_an_older_folder_opens(make: Make, tmp_path: Path) -> None:
    """Its config.json named no task, and another architecture."""
    folder = make("bert", Task.masked_lm).packed
    config = transformers.AutoConfig.from_pretrained(folder)
    config.architectures, config.bitmaps = ["bitmaps.packed"], {"embeddings": "int8"}
    model = AutoModelForMaskedLM.from_pretrained(folder, config=config)
    assert isinstance(model.bert.config, BertConfig)
