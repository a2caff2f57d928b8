from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from show.examples import LAYERS, tiny_model, tiny_run
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bitmaps.bert import Bert
from bitmaps.errors import InputError
from bitmaps.packed import format as packed
from bitmaps.packed.encoder import PackedEncoder
from bitmaps.quantize.convert import selected
from bitmaps.show.groups import Group, open_group
from bitmaps.vocabulary import Task


def names(group: Group) -> list[str]:
    return [one.name for one in group.models]


def weights(model: Bert) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def test_a_run_has_four_models(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    group = open_group(str(tiny_run(tmp_path / "run", tokenizer)))
    assert names(group) == ["fp32", "naive", "trained", "packed"]
    assert group.name == str(tmp_path / "run")
    assert group.left_out is None
    assert group.config.task is Task.masked_lm
    assert not any(one.model.training for one in group.models)
    start = weights(tiny_model(Task.masked_lm))
    fp32, naive, trained, bits = (one.model for one in group.models)
    assert all(torch.equal(p, start[name]) for name, p in fp32.named_parameters())
    layers = dict(selected(fp32, LAYERS))
    for name, weight in naive.named_parameters():
        # the blog post's: every parameter of the layers, biases and LayerNorms too
        found = torch.where(start[name] < 0, -1.0, 1.0) if name in layers else start[name]
        assert torch.equal(weight, found), name
    query = trained.get_parameter("encoder.layers.0.attention.query.weight")
    assert all(row.abs().unique().numel() == 1 for row in query)
    assert torch.equal(trained.embeddings.norm.weight, start["embeddings.norm.weight"])
    assert isinstance(bits.encoder, PackedEncoder)
    ids = torch.tensor([[2, 5, 4, 7, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(bits(ids), trained(ids), rtol=0, atol=0.2)
        assert (naive(ids) - trained(ids)).abs().max() > 1
    in_memory = [one.mib for one in group.models]
    assert in_memory[0] == in_memory[1] == in_memory[2] > in_memory[3] > 0


@pytest.mark.parametrize("part", ["", "model", "packed"])
def test_each_folder_of_a_run_leads_to_it(
    part: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer)
    assert len(open_group(str(run / part)).models) == 4
    monkeypatch.chdir(run)
    assert len(open_group(part or ".").models) == 4


def test_the_packed_folder_that_was_named_is_shown(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer)
    packed.save(tiny_model(Task.masked_lm), run / "other", tokenizer)
    group = open_group(str(run / "other"))
    assert names(group) == ["fp32", "naive", "trained", "packed"]
    assert group.models[3].mib > open_group(str(run)).models[3].mib  # no bits were found in it


def test_a_packed_folder_without_its_run_is_shown_alone(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer, Task.sentence_embedding)
    shutil.copytree(run / "packed", tmp_path / "alone")
    group = open_group(str(tmp_path / "alone"))
    assert names(group) == ["packed"]
    assert group.left_out is None
    assert group.config.task is Task.sentence_embedding
    assert group.length == 12


def test_a_run_without_a_packed_folder_has_three_models(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer, bits=False)
    assert names(open_group(str(run))) == ["fp32", "naive", "trained"]


def test_a_run_without_its_start_says_what_is_missing(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer)
    shutil.rmtree(tmp_path / "run-start")
    group = open_group(str(run))
    assert names(group) == ["trained", "packed"]
    assert group.left_out is not None
    assert str(tmp_path / "run-start") in group.left_out


def test_a_classifier_started_from_its_teacher(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer, Task.classification, ("good", "bad"))
    group = open_group(str(run))
    assert names(group) == ["fp32", "naive", "trained", "packed"]
    assert {one.model.config.labels for one in group.models} == {("good", "bad")}
    shutil.rmtree(tmp_path / "run-start")
    group = open_group(str(run))
    assert names(group) == ["trained", "packed"]
    assert "run-start, is not there" in str(group.left_out)


def test_the_first_classifier_started_from_none(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer, Task.classification, ("good", "bad"))
    state = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(state | {"teacher": None}))
    group = open_group(str(run))
    assert names(group) == ["trained", "packed"]
    assert group.left_out is None


def test_what_is_no_model_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    run = tiny_run(tmp_path / "run", tokenizer)
    for folder, said in (
        (tmp_path / "nowhere", "nowhere is no folder; valid are"),
        (tmp_path, "has no config.yaml beside a model/; valid are"),
        (tmp_path / "run-start", "has no config.yaml beside a model/; valid are"),
        (run / "metrics.json", "metrics.json is no folder; valid are"),
    ):
        with pytest.raises(InputError, match=said):
            open_group(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("packed/model.safetensors", b"xx", "truncated or not a safetensors file"),
        ("packed/config.json", b"{", "is not a JSON file"),
        ("model/model.safetensors", b"xx", "truncated or not a safetensors file"),
        ("model/tokenizer.json", b"{", "does not open"),
        ("config.yaml", b"model: {source: '${oc.env:HOME}'}", "the resolver oc.env"),
    ],
)
def test_what_is_damaged_is_refused_or_left_out(
    file: str, content: bytes, said: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    run = tiny_run(tmp_path / "run", tokenizer)
    (run / file).write_bytes(content)
    if file == "config.yaml":  # of which only the start is read
        assert said in str(open_group(str(run)).left_out)
        return
    with pytest.raises(InputError, match=said):
        open_group(str(run))
