"""``evaluate.py checkpoint=<run>/packed``: a model in real bits beside the floats behind it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from command.commands import (
    ALONE,
    ONE_BIT,
    SCORES,
    TIMED,
    Commands,
    assert_sums_give,
    loss_of,
    metrics,
    original,
    rows_of,
    scores,
    sums_of,
)

import bitmaps
from bitmaps.packed.__main__ import main as packed_main


def test_it_is_scored_beside_what_it_was_made_of(trained: Commands) -> None:
    out = trained.ok("evaluate", "checkpoint=r/packed", "hydra.run.dir=e")
    rows, before = rows_of("e"), metrics("r")
    assert list(rows) == list(sums_of("e")) == ["unbinarized", "naive", "trained", "packed"]
    assert "packed" in out
    assert [row["activations"] for row in rows.values()] == ["float", "float", "float", "int8"]
    assert metrics("e")["row"] == "packed"
    # in floats again, with the int8 tables of the packed model
    assert scores(rows["trained"]) == pytest.approx(scores(before), rel=1e-3)
    assert (before["embeddings"], rows["trained"]["embeddings"]) == ("fp32", "int8")
    for name in ("recipe", "loss", "steps", "components", "values", "scale", "scope"):
        assert rows["packed"][name] == rows["trained"][name] == before[name], name
    in_training = rows_of("r")["packed"]
    assert scores(rows["packed"]) == pytest.approx(scores(in_training), rel=1e-5)
    for name in ("activations", "embeddings", "memory_mib", "steps"):
        assert rows["packed"][name] == in_training[name], name
    plain, packed = loss_of(original()), loss_of(bitmaps.load("r/packed"))
    assert rows["unbinarized"]["cross_entropy"] == pytest.approx(plain, rel=1e-5)
    assert rows["packed"]["cross_entropy"] == pytest.approx(packed, rel=1e-3)
    assert 0 < abs(rows["packed"]["cross_entropy"] - rows["trained"]["cross_entropy"]) < 0.05
    # in floats, tables of positions and types in int8 count as floats
    assert rows["packed"]["memory_mib"] < rows["trained"]["memory_mib"] < before["memory_mib"]
    assert rows["packed"]["resident_mib"] < rows["trained"]["resident_mib"] / 2
    for kind, row in rows.items():
        assert_sums_give(sums_of("e")[kind], row)


def test_it_may_be_scored_alone_and_without_rounding(trained: Commands) -> None:
    options = (ALONE, "activations=float", "hydra.run.dir=e")
    trained.ok("evaluate", "checkpoint=r/packed", *options)
    assert list(rows_of("e")) == ["packed"]
    assert metrics("e")["activations"] == "float"
    assert scores(metrics("e")) == pytest.approx(scores(metrics("r")), rel=1e-3)


def test_its_tables_may_stay_as_they_were_trained(command: Commands) -> None:
    command.ok("train", *ONE_BIT, "packed_embeddings=fp32", "hydra.run.dir=r")
    assert rows_of("r")["packed"]["embeddings"] == "fp32"
    assert rows_of("r")["packed"]["memory_mib"] == pytest.approx(metrics("r")["memory_mib"])
    command.ok("evaluate", "checkpoint=r/packed", ALONE, "activations=float", "hydra.run.dir=e")
    assert scores(metrics("e")) == pytest.approx(scores(metrics("r")), rel=1e-5)
    err = command.refused("train", *ONE_BIT, "packed_embeddings=bit")
    assert "packed_embeddings=bit rounds without training: embeddings=bit trains" in err
    assert "valid are fp32, fp16, int8, int4" in err


def test_it_is_timed_and_may_be_scored_on_other_text(trained: Commands) -> None:
    options = ("data.split=test", "limit=20", ALONE, "hydra.run.dir=e")
    trained.ok("evaluate", "checkpoint=r/packed", *options, *TIMED)
    assert metrics("e")["inference_ms"] > 0
    assert (metrics("e")["split"], metrics("e")["limit"]) == ("test", 20)


def test_taken_elsewhere_it_is_scored_alone(trained: Commands) -> None:
    trained.ok("evaluate", "checkpoint=r/packed", ALONE, "hydra.run.dir=here")
    shutil.move("r/packed", "elsewhere")
    text = ("data=text", "data.dir=text", "data.eval_batch_size=16")
    trained.ok("evaluate", "checkpoint=elsewhere", *text, "hydra.run.dir=e")
    assert list(rows_of("e")) == ["packed"]
    facts = ("components", "values", "scale", "recipe", "steps", "embeddings", "activations")
    for name in (*SCORES, *facts, "memory_mib"):
        assert metrics("e")[name] == pytest.approx(metrics("here")[name]), name
    err = trained.refused("evaluate", "checkpoint=elsewhere", *text, "references=true")
    assert "there is no run beside checkpoint=elsewhere to refer to" in err


def pack_again(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "r", *arguments])
    packed_main()


def test_with_rounded_tables_it_says_so(trained: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    pack_again(monkeypatch, "r/small", "--embeddings", "int8", "--head", "int8")
    trained.ok("evaluate", "checkpoint=r/small", "hydra.run.dir=e")
    rows = rows_of("e")
    assert {kind: row["embeddings"] for kind, row in rows.items()} == {
        "unbinarized": "fp32", "naive": "fp32", "trained": "int8", "packed": "int8"
    }  # fmt: skip
    assert rows["packed"]["memory_mib"] < metrics("r")["memory_mib"]


def test_packed_again_it_gets_a_card_of_its_own(
    trained: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_again(monkeypatch, "large", "--embeddings", "fp32")
    first, second = (
        Path(folder, "README.md").read_text(encoding="utf-8") for folder in ("r/packed", "large")
    )
    assert "word table: int8" in first
    assert "The last row is this model as it is stored." in first
    assert "word table: fp32" in second
    assert "The last row is this model in floats, before it was packed." in second
    assert "| packed" in first
    assert "| packed" not in second  # which was another folder


def test_it_decides_what_it_is(trained: Commands) -> None:
    for override, what in (
        ("embeddings=int8", "embeddings is what checkpoint=r/packed was packed with: leave it out"),
        ("binarize=all", "binarize is what"),
        ("values=01", "values is what"),
        ("calibrate=9", "calibrate is what"),
        ("model=minilm", "model is what"),
    ):
        err = trained.refused("evaluate", "checkpoint=r/packed", override, "hydra.run.dir=e")
        assert what in err
    assert not Path("e/metrics.json").exists()


def test_it_is_nothing_to_start_from(trained: Commands) -> None:
    for name in ("train", "evaluate"):
        err = trained.refused(name, "model.source=r/packed", f"hydra.run.dir={name}")
        assert "model.source=r/packed is packed: score it with evaluate.py checkpoint=" in err
        assert not Path(name, "config.yaml").exists()


def test_damaged_it_ends_in_one_clear_error(trained: Commands) -> None:
    path = Path("r/packed/model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    err = trained.refused("evaluate", "checkpoint=r/packed", "hydra.run.dir=e")
    assert "r/packed/model.safetensors is damaged" in err
