"""A BERT with a classifier, beside that of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bert.folders import reconfigure, rewrite, same
from hypothesis import given, settings
from hypothesis import strategies as st

from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.checkpoint import config_of, load, save
from bitmaps.errors import InputError
from bitmaps.vocabulary import HeadSource, Task

LABELS = ("zebra", "apple", "10", "2")  # in no order of letters or numbers


def classifier(labels: tuple[str, ...] = LABELS, seed: int = 0, **sizes: Any) -> Bert:
    config = BertConfig(
        **{
            "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 24, "max_position_embeddings": 12, "initializer_range": 0.3,
        } | sizes,
        task=Task.classification, labels=labels,
    )  # fmt: skip
    return Bert(config).randomize(torch.Generator().manual_seed(seed)).eval()


def inputs(model: Bert, seed: int, rows: int = 3) -> dict[str, torch.Tensor]:
    """Two sentences a row, the last half padding."""
    generator = torch.Generator().manual_seed(seed)
    length = model.config.max_position_embeddings
    ids = torch.randint(model.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    types = torch.randint(model.config.type_vocab_size, ids.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def opened_by_transformers(folder: Path) -> transformers.BertForSequenceClassification:
    model, report = transformers.BertForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


@settings(max_examples=12, deadline=None)
@given(
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    layers=st.integers(1, 2),
    wide=st.integers(1, 20),
    positions=st.integers(1, 9),
    types=st.integers(1, 3),
    classes=st.sampled_from([0, 2, 3, 7]),
    act=st.sampled_from(["gelu", "relu"]),
    seed=st.integers(0, 999),
)
def test_any_shape_gives_the_logits_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    heads: int,
    width: int,
    layers: int,
    wide: int,
    positions: int,
    types: int,
    classes: int,
    act: str,
    seed: int,
) -> None:
    model = classifier(
        tuple(f"class {number}" for number in range(classes)), seed,
        hidden_size=heads * width, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=wide,
        max_position_embeddings=positions, type_vocab_size=types, hidden_act=act, layer_norm_eps=1e-5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model") / "saved"
    save(model, folder)
    data = inputs(model, seed)
    with torch.no_grad():
        found = model(**data)
        assert found.shape == (3, max(1, classes))
        same(found, opened_by_transformers(folder)(**data).logits)
        again = load(folder)
        torch.testing.assert_close(again(**data), found, atol=1e-6, rtol=1e-6)
        for weight, other in zip(again.parameters(), model.parameters(), strict=True):
            assert torch.equal(weight, other)  # products of few numbers depend on their addresses


def test_the_labels_keep_their_order_and_transformers_reads_them(tmp_path: Path) -> None:
    model = classifier()
    save(model, tmp_path / "saved")
    theirs = opened_by_transformers(tmp_path / "saved").config
    assert theirs.id2label == dict(enumerate(LABELS))
    assert theirs.label2id == {name: number for number, name in enumerate(LABELS)}
    assert theirs.problem_type == "single_label_classification"
    assert theirs.architectures == ["BertForSequenceClassification"]
    assert config_of(tmp_path / "saved") == model.config


def test_eleven_labels_keep_the_order_of_their_numbers(tmp_path: Path) -> None:
    """As text "10" comes before "2"."""
    labels = tuple("kjihgfedcba")
    save(classifier(labels), tmp_path / "saved")
    assert load(tmp_path / "saved").config.labels == labels


def test_a_score_is_a_regression(tmp_path: Path) -> None:
    model = classifier(labels=())
    save(model, tmp_path / "saved")
    theirs = opened_by_transformers(tmp_path / "saved")
    assert theirs.config.problem_type == "regression"
    assert theirs.config.num_labels == 1
    assert config_of(tmp_path / "saved") == model.config
    data = inputs(model, 1)
    scores = torch.tensor([0.5, 2.0, -1.0])
    logits = model(**data)
    assert logits.shape == (3, 1)
    expected = theirs(**data, labels=scores).loss
    torch.testing.assert_close((logits[:, 0] - scores).square().mean(), expected)


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), min_size=2, max_size=12, unique=True).map(tuple))
def test_a_config_with_any_labels_reads_as_itself(labels: tuple[str, ...]) -> None:
    config = BertConfig(task=Task.classification, labels=labels)
    assert BertConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_folder_of_transformers_is_a_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, id2label={0: "no", 1: "maybe", 2: "yes"}, label2id={"no": 0, "maybe": 1, "yes": 2},
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path / "saved")
    model = load(tmp_path / "saved")
    assert model.config.task is Task.classification
    assert model.config.labels == ("no", "maybe", "yes")
    same(model(**inputs(model, 2)), theirs(**inputs(model, 2)).logits)


def test_two_classes_without_names_are_those_of_transformers(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").config.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"id2label": {"0": "a", "2": "b"}}, r"number its classes from 0, not \[0, 2\]"),
        ({"id2label": {"1": "a", "2": "b"}}, "number its classes from 0"),
        ({"id2label": {"x": "a", "1": "b"}}, "id2label is no table of classes"),
        ({"id2label": ["a", "b"]}, "id2label is no table of classes"),
        (
            {"bitmaps": {"task": "translation"}},
            r"bitmaps\.task is 'translation'; valid are masked_lm",
        ),
        ({"bitmaps": {"task": []}}, r"bitmaps\.task is"),
        ({"id2label": {"0": "a", "1": "b"}}, r"classifier\.weight has shape \(4, 16\)"),
    ],
)
def test_a_table_of_classes_that_cannot_be_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(classifier(), tmp_path / "saved")
    reconfigure(tmp_path / "saved", **changes)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "saved")


def test_a_checkpoint_without_a_classifier_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has no classifier .*train\.py task=classification"):
        load(folder, task=Task.classification)


@pytest.mark.parametrize("part", ["bert.pooler.dense.weight", "classifier.bias"])
def test_half_a_classifier_is_refused(part: str, tmp_path: Path) -> None:
    save(classifier(), tmp_path / "saved")
    rewrite(tmp_path / "saved", lambda tensors: {n: t for n, t in tensors.items() if n != part})
    with pytest.raises(InputError, match=f"lacks {part}"):
        load(tmp_path / "saved")


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_new_classifier_has_the_labels_and_keeps_the_body(
    labels: tuple[str, ...], folder: Path, tiny: Bert
) -> None:
    torch.manual_seed(0)
    model = load(folder, head=HeadSource.new, task=Task.classification, labels=labels)
    assert model.config == replace(tiny.config, task=Task.classification, labels=labels)
    found = dict(model.named_parameters())
    assert found["head.classifier.weight"].shape == (len(labels) or 1, 16)
    assert found["head.classifier.weight"].std() > 0
    for name, parameter in tiny.named_parameters():
        if not name.startswith("head."):
            assert torch.equal(found[name], parameter)


def test_a_new_head_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    model = classifier()
    save(model, tmp_path / "saved")
    again = load(tmp_path / "saved", head=HeadSource.new, task=Task.classification)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_dropout_of_the_classifier_acts_in_training_alone() -> None:
    model = classifier().set_dropout(0.5)
    data = inputs(model, 4)
    assert torch.equal(model(**data), model(**data))
    model.train()
    model.embeddings.eval()
    model.encoder.eval()
    assert not torch.equal(model(**data), model(**data))
