"""``evaluate.py`` on a model that was not trained here: its row, its sentences and its masks."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from command.commands import (
    ALONE,
    BITS,
    SCORES,
    SHORT,
    TIMED,
    Commands,
    assert_sums_give,
    loss_of,
    metrics,
    original,
    rows_of,
    saved_bits,
    scores,
    sums_of,
    with_words,
)
from omegaconf import OmegaConf

from bitmaps.runs.provenance import processor

FIELDS = {
    "format", "status", "error", "row", "cross_entropy", "perplexity", "accuracy", "mrr", "masked_tokens", "inference_ms",
    "inference_masked_ms", "memory_mib", "resident_mib", "model", "data", "split", "limit", "components", "values", "scale",
    "scope", "recipe", "loss", "embeddings", "activations", "steps", "seed", "mask_seed", "mask_sets", "device", "threads",
    "dtype", "versions", "commit", "command", "known", "weights", "inference_repeats", "guessing", "processor", "scored_at",
}  # fmt: skip


def test_it_writes_every_field_and_the_config(command: Commands) -> None:
    out = command.ok("evaluate", "binarize=layers", "values=01", *TIMED, "hydra.run.dir=r")
    row = metrics("r")
    assert set(row) >= FIELDS
    found = [row[name] for name in ("status", "row", "components", "values", "scale", "scope")]
    assert found == ["ok", "naive", "layers", "01", "none", "all"]
    assert (row["recipe"], row["steps"], row["inference_repeats"]) == (None, 0, 1)
    assert min(row["inference_ms"], row["inference_masked_ms"]) > 0
    assert row["command"].startswith("python evaluate.py binarize=layers values=01")
    assert row["masked_tokens"] > row["known"]["masked_tokens"] * 0.9
    assert OmegaConf.select(OmegaConf.load("r/config.yaml"), "values") == "01"
    assert "layers" in out
    assert out.endswith("r: metrics.json, results.html\n")
    assert Path("r/results.html").is_file()
    assert row["processor"] == processor()
    age = datetime.now(UTC) - datetime.fromisoformat(row["scored_at"])
    assert timedelta(0) <= age < timedelta(minutes=5)


def test_training_writes_every_field_too(trained: Commands) -> None:
    assert set(metrics("r")) >= FIELDS


def test_random_weights_need_no_checkpoint(command: Commands) -> None:
    shape = "{vocab_size:29,hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:32}"
    given = ("model.weights=random", f"model.shape={shape}", "model.random_tokenizer=model")
    command.ok("evaluate", *given, "model.source=null", "binarize=all", "hydra.run.dir=r")
    assert metrics("r")["memory_mib"] < metrics("r")["resident_mib"] / 30
    assert metrics("r")["guessing"] == pytest.approx(math.log(29))  # the vocabulary
    assert metrics("r")["weights"] == "random"


@pytest.mark.parametrize(
    ("name", "overrides", "kinds"),
    [
        ("evaluate", ["binarize=none"], {"unbinarized"}),
        ("evaluate", ["binarize=all", "mask_sets=2"], {"naive"}),
        (
            "train",
            ["binarize=ffnn", *SHORT, "mask_sets=3"],
            {"unbinarized", "naive", "packed", "trained"},
        ),
        ("train", ["binarize=none", *SHORT], {"unbinarized", "trained"}),
    ],
)
def test_the_sentences_of_a_run_give_the_scores_of_each_of_its_rows(
    command: Commands, name: str, overrides: list[str], kinds: set[str]
) -> None:
    command.made("r", name, *overrides)
    rows, sums = rows_of("r"), sums_of("r")
    assert set(sums) == set(rows) == kinds
    for kind, row in rows.items():
        assert sums[kind].shape == (60, 4)
        assert sums[kind].dtype == np.float64
        assert_sums_give(sums[kind], row)
    # so that rows can be compared sentence by sentence
    counts = [found[:, 0].tolist() for found in sums.values()]
    assert all(count == counts[0] for count in counts)


def test_the_sums_of_a_sentence_do_not_depend_on_the_batches(command: Commands) -> None:
    for folder, size in (("a", 7), ("b", 64)):
        options = ("binarize=layers", f"data.eval_batch_size={size}", "mask_sets=2")
        command.ok("evaluate", *options, f"hydra.run.dir={folder}")
    np.testing.assert_allclose(sums_of("a")["naive"], sums_of("b")["naive"], rtol=1e-4)


def test_sets_of_masks_are_scored_together(command: Commands) -> None:
    command.ok("evaluate", "mask_sets=3", "mask_seed=5", "hydra.run.dir=r")
    for seed in (5, 6, 7):
        command.ok("evaluate", f"mask_seed={seed}", f"hydra.run.dir={seed}")
    together, singly = metrics("r"), [metrics(str(seed)) for seed in (5, 6, 7)]
    assert (together["mask_sets"], singly[0]["mask_sets"]) == (3, 1)
    counts = [row["masked_tokens"] for row in singly]
    assert together["masked_tokens"] == sum(counts)
    for name in SCORES:
        mean = np.average([row[name] for row in singly], weights=counts)
        assert together[name] == pytest.approx(mean, rel=1e-6)
    sums = sum(sums_of(str(seed))["unbinarized"] for seed in (5, 6, 7))
    np.testing.assert_allclose(sums_of("r")["unbinarized"], sums, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "known"), [("the cat sat", 1), ("xyzzy plugh", 0), ("the plugh", None)]
)
def test_known_scores_leave_out_what_the_tokenizer_does_not_know(
    command: Commands, tmp_path: Path, words: str, known: int | None
) -> None:
    text = "\n".join([" ".join([words] * 3)] * 40)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    code, _, err = command("evaluate", f"data.dir={tmp_path}", "hydra.run.dir=r")
    assert code == 0, err
    assert "UserWarning" not in err
    row = metrics("r")
    if known is None:
        assert 0 < row["known"]["masked_tokens"] < row["masked_tokens"]
        assert row["known"]["cross_entropy"] != row["cross_entropy"]
    else:
        assert row["known"]["masked_tokens"] == known * row["masked_tokens"]
        assert scores(row["known"]) == (scores(row) if known else [None] * 3)


@pytest.mark.parametrize("stored", BITS)
def test_a_word_table_is_stored_as_asked(command: Commands, stored: str) -> None:
    command.made("plain", "evaluate", "binarize=none")
    command.ok("evaluate", f"embeddings={stored}", "hydra.run.dir=r")
    plain, row = metrics("plain"), metrics("r")
    assert (plain["embeddings"], row["embeddings"], row["components"]) == ("fp32", stored, "none")
    assert saved_bits(plain, row) == pytest.approx(BITS["fp32"] - BITS[stored], abs=1e-6)
    assert row["resident_mib"] == plain["resident_mib"]
    if stored in ("int8", "int4"):
        expected = loss_of(with_words(original(), {"int8": 127, "int4": 7}[stored]))
        assert row["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert (row["cross_entropy"] == plain["cross_entropy"]) is (stored == "fp32")


def test_a_word_table_is_stored_beside_layers_that_are_binarized(command: Commands) -> None:
    command.made("plain", "evaluate", "binarize=layers")
    command.ok("evaluate", "binarize=layers", "embeddings=int8", "hydra.run.dir=r")
    row = metrics("r")
    assert (row["row"], row["components"], row["embeddings"]) == ("naive", "layers", "int8")
    saved = saved_bits(metrics("plain"), row)
    assert saved == pytest.approx(BITS["fp32"] - BITS["int8"], abs=1e-6)


def test_zeros_and_ones_may_have_scales_of_rank_one(command: Commands) -> None:
    options = ("binarize=layers", "binarize.scope=matrices", "scale=rank_one", "values=01")
    command.ok("evaluate", *options, "hydra.run.dir=r")
    assert (metrics("r")["scale"], metrics("r")["values"]) == ("rank_one", "01")


def test_without_references_a_run_has_its_own_row_alone(command: Commands) -> None:
    command.made("whole", "train", "binarize=ffnn", *SHORT)
    command.ok("train", "binarize=ffnn", *SHORT, ALONE, "hydra.run.dir=r")
    command.ok("evaluate", "checkpoint=r", "hydra.run.dir=e", ALONE)
    options = ("calibrate=8", "binarize=layers", "binarize.scope=matrices", "scale=row")
    command.ok("evaluate", *options, "hydra.run.dir=c", ALONE)
    kinds = {"r": ["packed", "trained"], "e": ["trained"], "c": ["calibrated"]}
    for folder, found in kinds.items():
        assert list(rows_of(folder)) == list(sums_of(folder)) == found
    for folder in ("r", "e"):
        assert scores(metrics(folder)) == pytest.approx(scores(metrics("whole")))
