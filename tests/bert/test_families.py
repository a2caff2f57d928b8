"""RoBERTa, XLM-R, DistilBERT and ELECTRA, beside those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bert.architectures import AUTO, OTHERS, inputs, own_config, own_model
from bert.folders import reconfigure, rewrite, same
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import load, save
from bitmaps.errors import InputError
from bitmaps.hf import to_transformers
from bitmaps.packed.format import load as load_packed
from bitmaps.packed.format import save as pack
from bitmaps.packed.model import to_float
from bitmaps.quantize.convert import binarize_naive
from bitmaps.vocabulary import PLUS_MINUS_ONE, Act, Component, HeadSource, Scale, Scope, Task

TASKS = list(Task)


def result(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Logits, or the states of a body alone, where there are tokens."""
    with torch.no_grad():
        if isinstance(model, Bert):
            sentence = model.config.task is Task.sentence_embedding
            found = model.encode(**batch)[-1] if sentence else model(**batch)
        else:
            output = model(**batch)
            found = output.last_hidden_state if "last_hidden_state" in output else output.logits
    return found if found.ndim == 2 else found[batch["attention_mask"].bool()]


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(OTHERS),
    task=st.sampled_from(TASKS),
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    layers=st.integers(1, 2),
    wide=st.integers(1, 20),
    positions=st.integers(3, 9),
    tied=st.booleans(),
    act=st.sampled_from(["gelu", "relu"]),
    seed=st.integers(0, 999),
)
def test_any_shape_gives_what_transformers_gives_there_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    task: Task,
    heads: int,
    width: int,
    layers: int,
    wide: int,
    positions: int,
    tied: bool,
    act: str,
    seed: int,
) -> None:
    theirs = own_model(
        name, task, seed, hidden_size=heads * width, num_attention_heads=heads,
        num_hidden_layers=layers, intermediate_size=wide, max_position_embeddings=positions,
        tie_word_embeddings=tied, hidden_act=act,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("family")
    theirs.save_pretrained(folder / "theirs")
    batch = inputs(theirs.config, positions, seed)
    expected = result(theirs, batch)
    ours = load(folder / "theirs", task=task)
    same(result(ours, batch), expected)
    save(ours, folder / "ours")
    again, report = AUTO[task].from_pretrained(
        folder / "ours", output_loading_info=True, dtype=torch.float32
    )
    assert type(again) is type(theirs)
    assert {key for key in report["missing_keys"] if "pooler" not in key} == set()
    assert report["unexpected_keys"] == set()
    same(result(again.eval(), batch), expected)
    same(result(load(folder / "ours", task=task), batch), expected)


@pytest.mark.parametrize("name", OTHERS)
def test_a_body_alone_gets_a_new_classifier(name: str, tmp_path: Path) -> None:
    body = own_model(name, Task.sentence_embedding)
    body.save_pretrained(tmp_path)
    model = load(tmp_path, task=Task.classification, head=HeadSource.new, labels=("no", "yes"))
    batch = inputs(body.config, 7)
    states = torch.cat(
        [
            s[m.bool()]
            for s, m in zip(model.encode(**batch)[-1], batch["attention_mask"], strict=True)
        ]
    )
    same(states, result(body, batch))
    assert model.config.labels == ("no", "yes")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", OTHERS)
def test_packed_folders_keep_the_architecture(
    name: str, task: Task, tmp_path: Path, tokenizer: Any
) -> None:
    theirs = own_model(name, task, hidden_size=32, vocab_size=len(tokenizer))
    theirs.save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs", task=task)
    binarize_naive(model, [Component.ffnn], PLUS_MINUS_ONE, Scale.row, Scope.matrices)
    pack(model, tmp_path / "packed", tokenizer)
    opened = load_packed(tmp_path / "packed", Act.f32)
    batch = inputs(theirs.config, 7)
    same(result(opened, batch), result(model, batch))
    assert opened.config.model_type == name
    config = json.loads((tmp_path / "packed" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["bitmaps"]["family"]) == ("bitmaps", name)
    save(to_float(opened), tmp_path / "floats")
    again = AUTO[task].from_pretrained(tmp_path / "floats", dtype=torch.float32).eval()
    same(result(again, batch), result(model, batch))
    del config["bitmaps"]["family"]
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="does not belong"):
        load_packed(tmp_path / "packed", None)


@pytest.mark.parametrize("name", OTHERS)
def test_masked_words_behind_the_interface_of_transformers(name: str, tmp_path: Path) -> None:
    theirs = own_model(name, Task.masked_lm)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = to_transformers(load(tmp_path / "theirs"))
    batch = inputs(theirs.config, 7)
    same(result(ours, batch), result(theirs, batch))
    ours.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == name
    assert config["architectures"] == [type(theirs).__name__]


def test_a_trained_token_type_is_written_into_the_positions(tmp_path: Path) -> None:
    """DistilBERT has no token types, and its equal BERT has one, which training changes."""
    own_model("distilbert", Task.masked_lm).save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs")
    torch.nn.init.normal_(model.embeddings.token_type.weight)
    save(model, tmp_path / "ours")
    batch = inputs(own_config("distilbert"), 7)
    again = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    same(result(again.eval(), batch), result(model, batch))


def test_a_model_with_one_token_type_ignores_types(tmp_path: Path) -> None:
    """The tokenizer of a DistilBERT is a BERT's, which gives the second sentence type 1."""
    own_model("distilbert", Task.masked_lm).save_pretrained(tmp_path)
    model, batch = load(tmp_path), inputs(own_config("distilbert"), 7)
    types = torch.ones_like(batch["input_ids"])
    assert torch.equal(model(**batch, token_type_ids=types), model(**batch))


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("electra", {"embedding_size": 8}, "embedding_size 8 is not hidden_size 16"),
        ("roberta", {"pad_token_id": None}, "pad_token_id must be a token, .*: None"),
        ("roberta", {"pad_token_id": "1"}, "pad_token_id must be a token, .*: '1'"),
        ("xlm-roberta", {"pad_token_id": -1}, "pad_token_id must be a token, .*: -1"),
        ("xlm-roberta", {"max_position_embeddings": 2}, "max_position_embeddings must .* not 0"),
        ("distilbert", {"n_layers": 3}, "num_hidden_layers=3, but .* 2 layers .*as in a BERT"),
        ("roberta", {"model_type": "mpnet"}, "'mpnet' .*; valid are bert, roberta, xlm-roberta"),
        ("roberta", {"model_type": "electra"}, "embedding_size 128 is not hidden_size 16"),
        ("roberta", {"model_type": "bert"}, "'roberta"),
        ("roberta", {"model_type": ["roberta"]}, "another architecture"),
    ],
)
def test_what_is_no_such_architecture_is_an_input_error(
    name: str, changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    own_model(name, Task.masked_lm).save_pretrained(tmp_path)
    reconfigure(tmp_path, **changes)
    with pytest.raises(InputError, match=named):
        load(tmp_path)


def test_two_matrices_under_one_name_are_an_input_error(tmp_path: Path) -> None:
    own_model("distilbert", Task.masked_lm).save_pretrained(tmp_path)
    query = "bert.encoder.layer.0.attention.self.query.weight"
    rewrite(tmp_path, lambda tensors: tensors | {query: torch.zeros(16, 16)})
    with pytest.raises(InputError, match=f"two different tensors for {query}"):
        load(tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_defaults_are_those_of_transformers(name: str) -> None:
    """A ``config.json`` may leave out what is the default of its architecture."""
    values = transformers.AutoConfig.for_model(name).to_dict()
    if name == "electra":  # whose default has a projection
        values["embedding_size"] = values["hidden_size"]
    few = {"model_type": name, **({"embedding_size": 256} if name == "electra" else {})}
    found, expected = BertConfig.from_dict(few), BertConfig.from_dict(values)
    assert found == expected
