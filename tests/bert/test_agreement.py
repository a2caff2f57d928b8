"""Where config.json and the file disagree, and where a file holds what no BERT has."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bert.folders import (
    DECODER,
    LAYER,
    WORDS,
    opened_by_transformers,
    reconfigure,
    rewrite,
    same,
    write_adapter,
)
from torch import Tensor

from bitmaps.bert import Bert, checkpoint
from bitmaps.bert.checkpoint import load, save
from bitmaps.errors import InputError


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "mpnet"}, "'mpnet'"),
        ({"num_hidden_layers": 3}, r"num_hidden_layers=3, but the checkpoint has 2 layers$"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers=1, but the checkpoint has 2 layers$"),
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000, but .* 2 layers$"),
        ({"vocab_size": 64}, r"vocab_size=64, but .*word_embeddings.weight has shape \(60, 16\)$"),
        ({"hidden_size": 2**62}, r"hidden_size=\d+, but .*word_embeddings.* has shape \(60, 16\)$"),
        (
            {"max_position_embeddings": 9},
            r"max_position_embeddings=9, but .* has shape \(12, 16\)$",
        ),
        ({"type_vocab_size": 1}, r"type_vocab_size=1, but .* has shape \(2, 16\)$"),
        ({"intermediate_size": 25}, r"intermediate_size=25, but .* has shape \(24, 16\)$"),
    ],
)
def test_another_architecture_is_an_input_error(
    folder: Path, changes: dict[str, Any], named: str
) -> None:
    reconfigure(folder, **changes)
    with pytest.raises(InputError, match=named):
        load(folder)


@pytest.mark.parametrize(
    ("content", "tied"),
    [
        (lambda words: {DECODER: words}, True),  # both, and the same
        (lambda words: {DECODER: words.flip(0)}, False),  # both, and different
        (lambda words: {DECODER: words, WORDS: None}, True),  # the decoder alone
    ],
)
def test_what_the_file_ties_is_tied(
    tiny: Bert, folder: Path, ids: Tensor, tmp_path: Path, content: Any, tied: bool
) -> None:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors |= content(tensors[WORDS])
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    rewrite(folder, change)
    model = load(folder)
    same(model(ids), opened_by_transformers(folder, ids))
    assert torch.equal(model(ids), tiny(ids)) is tied
    assert model.config.tie_word_embeddings is tied
    assert (model.head.decoder.weight is model.embeddings.word.weight) is tied
    save(model, tmp_path / "again")
    same(opened_by_transformers(tmp_path / "again", ids), model(ids))


def test_an_adapter_changes_both_names_of_a_tied_matrix(
    tiny: Bert, folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    low_rank = {
        WORDS.replace("weight", "lora_A.weight"): torch.randn(1, 16),
        WORDS.replace("weight", "lora_B.weight"): torch.randn(60, 1),
    }
    base = folder / "model.safetensors"
    expected = load(folder, adapter=write_adapter(tmp_path, low_rank, base))(ids)
    rewrite(folder, lambda tensors: tensors | {DECODER: tensors[WORDS]})
    model = load(folder, adapter=write_adapter(tmp_path, low_rank, base))
    assert model.config.tie_word_embeddings
    assert torch.equal(model(ids), expected)


def test_an_untied_model_without_decoder_is_told_of_the_tie(folder: Path) -> None:
    reconfigure(folder, tie_word_embeddings=False)
    with pytest.raises(
        InputError, match=rf"lacks {DECODER}: .* only if config.json says tie_word_embeddings=true$"
    ):
        load(folder, head="new")


@pytest.mark.parametrize("head", ["checkpoint", "new"])
@pytest.mark.parametrize(
    ("lost", "named"), [("decoder.bias", "decoder.bias"), ("transform", "transform.LayerNorm.bias")]
)
def test_half_a_head_is_not_thrown_away(
    folder: Path, head: checkpoint.HeadSource, lost: str, named: str
) -> None:
    rewrite(
        folder,
        lambda tensors: {n: t for n, t in tensors.items() if f"predictions.{lost}" not in n},
    )
    with pytest.raises(
        InputError,
        match=rf"lacks cls\.predictions\.{named}.*: a part of its masked-language-model head",
    ) as error:
        load(folder, head=head)
    assert "head=new" not in str(error.value)


@pytest.mark.parametrize("head", ["checkpoint", "new"])
def test_missing_layer_tensor_is_named(folder: Path, head: checkpoint.Head) -> None:
    rewrite(folder, lambda tensors: {name: t for name, t in tensors.items() if name != LAYER})
    with pytest.raises(InputError, match=f"lacks {LAYER}"):
        load(folder, head=head)


@pytest.mark.parametrize("head", ["checkpoint", "new"])
@pytest.mark.parametrize(
    ("renamed", "prefix"),
    [
        (lambda name: f"student.{name}", "student."),
        (lambda name: f"student.{name.removeprefix('bert.')}", "student."),
        (lambda name: f"module.{name}" if name.startswith("bert.") else name, "module."),
        (lambda name: f"module.{name}" if name.startswith("cls.") else name, "module."),
    ],
)
def test_another_prefix_is_named(
    folder: Path, head: checkpoint.HeadSource, renamed: Callable[[str], str], prefix: str
) -> None:
    rewrite(folder, lambda tensors: {renamed(name): t for name, t in tensors.items()})
    with pytest.raises(
        InputError, match=f"lacks .*: some of its names begin with '{prefix}'; rename"
    ):
        load(folder, head=head)


@pytest.mark.parametrize("name", [LAYER, "bert.encoder.layer.0.attention.self.query.bias", WORDS,
                                  "cls.predictions.decoder.bias"])  # fmt: skip
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.flatten().index_fill(0, torch.tensor([1, 3]), float("nan")),
         "NaN or infinity at 2 of"),
        (lambda t: t.double() * 1e300, "NaN or infinity at"),
        (lambda t: t.long(), "int64; valid are floating-point numbers$"),
        (lambda t: t > 0, "bool; valid are floating-point numbers$"),
    ],
)  # fmt: skip
def test_a_weight_that_is_no_finite_number_is_named(
    folder: Path, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    rewrite(folder, lambda tensors: tensors | {name: change(tensors[name]).view_as(tensors[name])})
    with pytest.raises(InputError, match=rf"saved: {re.escape(name)} holds {said}"):
        load(folder)


def test_numbers_of_other_tasks_are_not_looked_at(tiny: Bert, folder: Path, ids: Tensor) -> None:
    nan = torch.full((16, 16), float("nan"))
    rewrite(
        folder,
        lambda tensors: tensors | {"bert.pooler.dense.weight": nan, "classifier.weight": nan},
    )
    assert torch.equal(load(folder)(ids), tiny(ids))


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.0.attention.self.distance_embedding.weight",
        "bert.encoder.layer.0.crossattention.self.query.weight",
        "bert.encoder.layer.0.intermediate_act_fn.weight",
        "cls.predictions.adapter.weight",
    ],
)
def test_a_part_of_another_architecture_is_named(folder: Path, name: str) -> None:
    rewrite(folder, lambda tensors: tensors | {name: torch.zeros(1)})
    with pytest.raises(InputError, match=f"no BERT of its config.json has: {re.escape(name)}$"):
        load(folder)


def test_other_positions_in_the_file_are_not_dropped(tiny: Bert, folder: Path, ids: Tensor) -> None:
    usual = {
        "bert.embeddings.position_ids": torch.arange(12)[None],
        "bert.embeddings.token_type_ids": torch.zeros(1, 12, dtype=torch.long),
    }
    rewrite(folder, lambda tensors: tensors | usual)
    assert torch.equal(load(folder)(ids), tiny(ids))
    for name, buffer in usual.items():
        rewrite(
            folder, lambda tensors, name=name, buffer=buffer: tensors | usual | {name: buffer + 1}
        )
        with pytest.raises(InputError, match=f"{re.escape(name)} is not"):
            load(folder)
