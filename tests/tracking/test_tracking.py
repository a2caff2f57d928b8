"""The logger of a run."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Recorded

from bitmaps.bert import Bert
from bitmaps.quantize.convert import binarize_naive
from bitmaps.runs.folder import Row
from bitmaps.tracking.loggers import label, predictions, tracking

Read = Callable[[Path], Recorded]

FACTS: Row = {
    "row": None, "model": "minilm", "weights": "pretrained", "data": "wiki", "split": "validation", "limit": None,
    "components": "ffnn", "values": "01", "scale": "row", "scope": "matrices", "recipe": "bitmaps", "loss": "common",
    "embeddings": "fp32", "activations": "float", "steps": None, "seed": 0, "mask_seed": 481, "mask_sets": 1,
    "commit": None, "command": "python train.py", "versions": {"python": "3.11"},
}  # fmt: skip
SCORES: Row = {
    "cross_entropy": 4.5, "accuracy": 0.25, "mrr": 0.5, "inference_ms": None, "memory_mib": 60.5, "masked_tokens": 7,
    "known": {"mrr": 1.0}, "device": "cpu",
}  # fmt: skip
TRAINED: Row = FACTS | {"row": "trained", "steps": 9, "calibrated_on": 5} | SCORES
UNBINARIZED: Row = TRAINED | {
    "row": "unbinarized",
    "components": "none",
    "values": None,
    "accuracy": 0.75,
}
CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "logs", "version": ""}
WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "x", "offline": True}


def analysis(verdict: str, *tokens: str) -> dict[str, Any]:
    """One of two sentences, the second of which is a user's own, where the true token is not known."""
    guesses = [
        {"token": token, "probability": 0.5 / (place + 1)} for place, token in enumerate(tokens)
    ]
    return {
        "verdict": verdict,
        "predicted": [{"token": tokens[0], "share": 0.75}, {"token": tokens[1], "share": 0.25}],
        "confidence": {"mean": 0.5, "std": 0.125, "histogram": [0, 3, *[0] * 17, 4]},
        "sentences": [
            {"text": "the [MASK] sat [MASK]", "masked": [{"position": p, "true": "cat", "predictions": guesses} for p in (1, 3)]},
            {"text": "[MASK] ran", "masked": [{"position": 0, "true": None, "predictions": guesses}]},
        ],
    }  # fmt: skip


ANALYSES = {
    "unbinarized": analysis("fine", "cat", "dog"),
    "trained": analysis("collapsed", ".", ","),
}


def test_csv_has_the_curve_the_final_row_and_the_facts(tmp_path: Path) -> None:
    with tracking(CSV, tmp_path, FACTS, group=None) as track:
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        row = TRAINED | {"mrr": None, "ok": True}
        track.summarize([UNBINARIZED, row], ANALYSES, None, tmp_path / "packed")
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        (name, float(value))
        for row in rows
        for name, value in row.items()
        if name != "step" and value
    }
    assert {("train/loss", 2.5), ("final/accuracy", 0.25), ("final/steps", 9.0)} <= found
    assert not {"final/mrr", "final/ok", "final/known"} & {name for name, _ in found}
    assert next(row["step"] for row in rows if row["train/loss"]) == "7"
    facts = yaml.safe_load((tmp_path / "logs" / "hparams.yaml").read_text())
    assert facts == {k: v for k, v in FACTS.items() if k != "versions"} | {
        "python": "3.11",
        "label": label(FACTS),
    }


def fail(config: dict[str, Any], folder: Path) -> None:
    with tracking(config, folder, FACTS, group="a sweep") as track:
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        raise ZeroDivisionError


def test_curves_are_written_though_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(CSV, tmp_path)
    assert "2.5" in (tmp_path / "logs" / "metrics.csv").read_text()


@pytest.mark.parametrize("mode", [None, "online"])
def test_the_jobs_of_a_sweep_are_wandb_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Read, mode: str | None
) -> None:
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    jobs = {"0": FACTS, "1": FACTS | {"components": "none", "values": None, "recipe": None}}
    for number, facts in jobs.items():
        (tmp_path / number).mkdir()
        with tracking(WANDB, tmp_path / number, facts, group="a sweep") as track:
            track.logger.log_metrics({"train/loss": 2.5}, step=1)
            track.summarize(
                [TRAINED | facts | {"row": "naive", "accuracy": float(number)}],
                {},
                None,
                tmp_path / "packed",
            )
        assert os.environ.get("WANDB_MODE") == mode
    (tmp_path / "2").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail(WANDB, tmp_path / "2")
    assert os.environ.get("WANDB_MODE") == mode

    found = [recorded(tmp_path / number) for number in "012"]
    assert len({one.run["run_id"] for one in found}) == 3
    assert {(one.run["run_group"], one.run["project"]) for one in found} == {("a sweep", "x")}
    assert [one.run["display_name"] for one in found] == [
        "ffnn-01-bitmaps",
        "none",
        "ffnn-01-bitmaps",
    ]
    assert [one.run["job_type"] for one in found] == ["train", "evaluate", "train"]
    assert [set(one.run["tags"]) for one in found] == [
        {"ffnn", "01", "bitmaps", "naive"}, {"none", "naive"}, {"ffnn", "01", "bitmaps"}
    ]  # fmt: skip
    assert [one.config["values"] for one in found] == ["01", None, "01"]
    assert [one.run["exit_code"] for one in found] == [0, 0, 1]
    assert [one.summary["accuracy"] for one in found[:2]] == [0.0, 1.0]
    assert all(one.curves["train/loss"] == [2.5] for one in found)


def test_what_a_wandb_run_is_asked_to_be_called_goes_before_what_is_usual(
    tmp_path: Path, recorded: Read
) -> None:
    asked = {"name": "mine", "group": "ours", "job_type": "try"}
    with tracking(WANDB | asked, tmp_path, FACTS, group="a sweep"):
        pass
    run = recorded(tmp_path).run
    assert (run["display_name"], run["run_group"], run["job_type"]) == ("mine", "ours", "try")


def test_a_wandb_run_records_all_that_a_job_came_to(
    tmp_path: Path, tiny: Bert, recorded: Read
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "README.md").write_text("---\nlicense: mit\n---\n# the card\n", encoding="utf-8")
    (packed / "model.safetensors").write_bytes(b"bits")
    binarize_naive(tiny, ["ffnn"], "pm1", "row", "matrices")
    with tracking(WANDB, tmp_path, FACTS, group=None) as track:
        track.summarize([UNBINARIZED, TRAINED], ANALYSES, tiny, packed)
    found = recorded(tmp_path)

    plain = {k: v for k, v in FACTS.items() if k != "versions"} | {"python": "3.11"}
    came_to = {"row": "trained", "steps": 9, "calibrated_on": 5, "label": label(TRAINED)}
    assert found.config == plain | came_to
    wanted = {name: value for name, value in SCORES.items() if value is not None}
    wanted |= {"unbinarized/cross_entropy": 4.5, "unbinarized/accuracy": 0.75}
    wanted |= {"verdict": "collapsed", "predicted": ".", "predicted_share": 0.75}
    wanted |= {"confidence_mean": 0.5, "confidence_std": 0.125}
    assert {name: found.summary.get(name) for name in wanted} == wanted
    assert not {"seed", "inference_ms", "unbinarized/inference_ms"} & set(found.summary)

    confidence = found.summary["confidence"]
    assert confidence["values"] == [0, 3, *[0] * 17, 4]
    assert confidence["bins"] == pytest.approx([n / 20 for n in range(21)])
    scales = {
        name.removeprefix("scales/"): value
        for name, value in found.summary.items()
        if name.startswith("scales/")
    }
    matrices = [
        f"encoder.layers.{layer}.ffnn.{name}" for layer in (0, 1) for name in ("expand", "contract")
    ]
    assert set(scales) == set(matrices)
    for name in matrices:
        weight, histogram = tiny.get_submodule(name).weight, scales[name]
        assert sum(histogram["values"]) == 2 * len(weight)  # the two values of each row
        assert (histogram["bins"][0], histogram["bins"][-1]) == pytest.approx(
            (weight.min().item(), weight.max().item())
        )

    assert found.tables["predictions"] == (
        ["sentence", "position", "true", "unbinarized", "unbinarized probability", "unbinarized top five",
         "trained", "trained probability", "trained top five"],
        [["the [MASK] sat [MASK]", 1, "cat", "cat", 0.5, "cat 0.500, dog 0.250", ".", 0.5, ". 0.500, , 0.250"],
         ["the [MASK] sat [MASK]", 3, "cat", "cat", 0.5, "cat 0.500, dog 0.250", ".", 0.5, ". 0.500, , 0.250"],
         ["[MASK] ran", 0, None, "cat", 0.5, "cat 0.500, dog 0.250", ".", 0.5, ". 0.500, , 0.250"]],
    )  # fmt: skip

    artifact = found.artifacts[f"packed-{label(TRAINED)}"]
    assert artifact["type"] == "model"
    assert artifact["description"].strip() == "# the card"
    contents = {file["path"]: Path(file["local_path"]) for file in artifact["manifest"]["contents"]}
    assert set(contents) == {"README.md", "model.safetensors"}
    assert contents["model.safetensors"].read_bytes() == b"bits"


def test_predictions_of_different_sentences_are_not_put_side_by_side() -> None:
    shorter = analysis("fine", "cat", "dog")
    shorter["sentences"].pop()
    with pytest.raises(ValueError, match="argument 2"):
        predictions({"unbinarized": shorter, "trained": ANALYSES["trained"]})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 7), ("command", "python train.py seed=7"), ("commit", "abc")]
)
def test_runs_that_differ_in_their_seed_share_a_label(name: str, value: Any) -> None:
    assert label(TRAINED | {name: value}) == label(TRAINED)
    assert label(TRAINED).startswith("ffnn-01-row-bitmaps-trained-")


@pytest.mark.parametrize(
    "name", ["model", "data", "split", "steps", "recipe", "values", "row", "limit", "mask_seed"]
)
def test_runs_that_differ_in_anything_else_do_not(name: str) -> None:
    assert label(TRAINED | {name: "another"}) != label(TRAINED)


def test_runs_that_differ_in_a_setting_do_not_either() -> None:
    labels = {label(TRAINED | {"settings": {"optimizer.lr": rate}}) for rate in (1e-4, 3e-1)}
    assert len(labels) == 2
