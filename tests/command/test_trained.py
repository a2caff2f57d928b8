"""``evaluate.py checkpoint=<run>``: a trained run is scored again, and rounded if asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command.commands import (
    ALONE,
    BITS,
    ONE_BIT,
    SCORES,
    SHORT,
    Commands,
    loss_of,
    metrics,
    original,
    read,
    rows_of,
    saved_bits,
    scores,
    sums_of,
    with_int8_inputs,
    with_words,
)
from omegaconf import OmegaConf

import bitmaps


def test_it_scores_as_it_did_in_its_training(command: Commands) -> None:
    command.made("r", "train", "binarize=layers", *SHORT)
    command.ok("evaluate", "checkpoint=r", "hydra.run.dir=e")
    trained, again = [row for row in read("r", "rows") if row["row"] != "packed"], read("e", "rows")
    assert [row["row"] for row in again] == ["unbinarized", "naive", "trained"]
    for kind, sums in sums_of("e").items():
        np.testing.assert_allclose(sums_of("r")[kind], sums, rtol=1e-5, atol=1e-6)
    facts = ("components", "values", "scale", "recipe", "loss", "steps", "memory_mib")
    for name in (*SCORES, *facts):
        assert [row[name] for row in trained] == pytest.approx([row[name] for row in again]), name


def test_its_own_text_is_scored_also_on_another_split(trained: Commands) -> None:
    trained.ok("evaluate", "checkpoint=r", "data.split=test", ALONE, "hydra.run.dir=e")
    assert (metrics("e")["data"], metrics("e")["split"]) == ("text", "test")
    assert metrics("e")["masked_tokens"] < metrics("r")["masked_tokens"]


def test_it_may_be_scored_on_more_masks(trained: Commands) -> None:
    trained.ok("evaluate", "checkpoint=r", "mask_sets=4", ALONE, "hydra.run.dir=e")
    assert metrics("e")["mask_sets"] == 4
    assert metrics("e")["masked_tokens"] > 3 * metrics("r")["masked_tokens"]


def test_it_decides_what_is_binarized(trained: Commands) -> None:
    for override in ("binarize=all", "values=01", "scale=row", "calibrate=9", "binarize.scope=all"):
        err = trained.refused("evaluate", "checkpoint=r", override)
        assert f"{override.split('=')[0]} is what checkpoint=r was trained with" in err
        assert "leave it out" in err


def test_it_is_scored_alone_without_the_model_that_it_came_from(
    trained: Commands, tmp_path: Path
) -> None:
    config = OmegaConf.load("r/config.yaml")
    config.model.source = str(tmp_path / "not here")
    OmegaConf.save(config, "r/config.yaml")
    err = trained.refused("evaluate", "checkpoint=r", "hydra.run.dir=with")
    assert "not here holds no model" in err
    trained.ok("evaluate", "checkpoint=r", ALONE, "hydra.run.dir=alone")
    assert scores(metrics("alone")) == pytest.approx(scores(metrics("r")))
    assert metrics("alone")["model"] == str(tmp_path / "not here")


def test_a_run_that_was_scored_holds_no_trained_model(command: Commands) -> None:
    command.made("r", "evaluate", "binarize=none")
    err = command.refused("evaluate", "checkpoint=r")
    assert "checkpoint=r holds no trained model: that run was scored, not trained" in err


# Rounding afterwards


@pytest.mark.parametrize(
    ("binarize", "activations", "message"),
    [
        ("ffnn", "bit", "one_bit_inputs=query belongs to attention, which is not binarized"),
        ("none", "int8", "activations=int8 rounds what enters binarized matrices: binarize=none"),
    ],
)
def test_inputs_of_no_binarized_matrix_are_not_said_to_be_rounded(
    command: Commands, binarize: str, activations: str, message: str
) -> None:
    command.made("r", "train", f"binarize={binarize}", *SHORT)
    options = ("checkpoint=r", f"activations={activations}", "hydra.run.dir=e")
    assert message in command.refused("evaluate", *options)
    assert not Path("e/metrics.json").exists()


def test_its_word_table_may_be_stored_in_int8_afterwards(trained: Commands) -> None:
    trained.ok("evaluate", "checkpoint=r", "embeddings=int8", "hydra.run.dir=e")
    tables = {kind: row["embeddings"] for kind, row in rows_of("e").items()}
    assert tables == {"unbinarized": "fp32", "naive": "fp32", "trained": "int8"}
    before, after = metrics("r"), metrics("e")
    names = ("recipe", "loss", "steps", "activations")
    assert [after[name] for name in names] == ["bitmaps", "common", 4, "float"]
    assert saved_bits(before, after) == pytest.approx(BITS["fp32"] - BITS["int8"], abs=1e-6)
    expected = loss_of(with_words(bitmaps.load("r"), 127))
    assert after["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert after["cross_entropy"] != before["cross_entropy"]


def test_the_inputs_of_its_matrices_may_be_rounded_afterwards(trained: Commands) -> None:
    options = ("activations=int8", "embeddings=int4", "hydra.run.dir=e")
    trained.ok("evaluate", "checkpoint=r", *options)
    rows = rows_of("e")
    assert [(row["row"], row["activations"], row["embeddings"]) for row in rows.values()] == [
        ("unbinarized", "float", "fp32"), ("naive", "float", "fp32"), ("trained", "int8", "int4")
    ]  # fmt: skip
    model = with_words(bitmaps.load("r"), 7)
    unrounded = loss_of(model)
    expected = loss_of(with_int8_inputs(model, "attention", "ffnn"))
    assert abs(expected - unrounded) > 1e-5
    near = pytest.approx(expected, abs=0.1 * abs(expected - unrounded))
    assert metrics("e")["cross_entropy"] == near
    plain = pytest.approx(loss_of(original()), rel=1e-6)
    assert rows["unbinarized"]["cross_entropy"] == plain


def test_a_word_table_in_one_bit_cannot_get_another_afterwards(command: Commands) -> None:
    command.made("r", "train", "binarize=all", *ONE_BIT[1:])
    err = command.refused("evaluate", "checkpoint=r", "embeddings=int8")
    assert "embeddings is bit in checkpoint=r" in err
