"""The logger of a run."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Recorded

from bitmaps.bert import Bert
from bitmaps.quantize.convert import binarize_naive
from bitmaps.runs.analysis import (
    Analysis,
    Confidence,
    FrequentToken,
    Guess,
    MaskedToken,
    Sentence,
)
from bitmaps.runs.folder import ScoredRow
from bitmaps.runs.records import (
    Facts,
    KnownScores,
    Machine,
    Role,
    Row,
    Scores,
    Size,
    fields_with,
    parse_row,
)
from bitmaps.tracking.tracking import config_of, label, predictions, tracking
from bitmaps.vocabulary import (
    PLUS_MINUS_ONE,
    ZERO_ONE,
    Activations,
    Component,
    RowKind,
    Scale,
    Scope,
    Split,
    Storage,
    Weights,
)

Read = Callable[[Path], Recorded]

FACTS = Facts(
    command="python train.py", versions={"python": "3.11"}, model="minilm",
    weights=Weights.pretrained, data="wiki", split=Split.validation, mask_seed=481, mask_sets=1,
    components="ffnn", values=ZERO_ONE, scale=Scale.row, scope=Scope.matrices, recipe="bitmaps",
    loss="common", embeddings=Storage.fp32, activations=Activations.float, seed=0,
    settings={"optimizer.lr": 0.5},
)  # fmt: skip
TRAINED = Row(
    facts=replace(FACTS, row=RowKind.trained, steps=9, calibrated_on=5),
    scores=Scores(4.5, 0.25, 0.5, masked_tokens=7),
    known=KnownScores(mrr=1.0),
    size=Size(60.5),
    machine=Machine("cpu"),
)
UNBINARIZED = Row(
    facts=replace(TRAINED.facts, row=RowKind.unbinarized, components="none", values=None),
    scores=Scores(4.5, 0.75, 0.5),
    size=Size(60.5),
)
CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "logs", "version": ""}
WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "x", "offline": True}


def analysis(verdict: str, *tokens: str) -> Analysis:
    """One of two sentences. The second is a user's own, whose true token is not known."""
    guesses = [Guess(token, 0.5 / (place + 1)) for place, token in enumerate(tokens)]
    return Analysis(
        verdict=verdict,
        predicted=[
            FrequentToken(token, share, 0.125, 0.5)
            for token, share in zip(tokens, (0.75, 0.25), strict=True)
        ],
        distinct=2,
        confidence=Confidence(0.5, 0.125, [0, 3, *[0] * 17, 4]),
        by_input={},
        by_frequency=[],
        sentences=[
            Sentence("the [MASK] sat [MASK]", [], [MaskedToken(p, "cat", guesses) for p in (1, 3)]),
            Sentence("[MASK] ran", [], [MaskedToken(0, None, guesses)]),
        ],
    )


def scored(row: Row, analysis: Analysis) -> ScoredRow:
    return ScoredRow(row, np.zeros((1, 4)), analysis)


FINE, COLLAPSED = analysis("fine", "cat", "dog"), analysis("collapsed", ".", ",")
SCORED = [scored(UNBINARIZED, FINE), scored(TRAINED, COLLAPSED)]


def plain(facts: Facts) -> dict[str, Any]:
    """Facts as a tracker stores them, without the label."""
    flat: dict[str, Any] = json.loads(json.dumps(asdict(facts)))
    settings, versions = flat.pop("settings"), flat.pop("versions")
    return {**flat, **settings, **versions}


def test_csv_has_the_curve_the_final_row_and_the_facts(tmp_path: Path) -> None:
    with tracking(CSV, tmp_path, FACTS, group=None) as track:
        assert track.loggers == [track.logger]  # which keeps the curves itself
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        track.summarize(SCORED, None, tmp_path / "packed")
    with (tmp_path / "logs" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        (name, float(value))
        for row in rows
        for name, value in row.items()
        if name != "step" and value
    }
    assert {("train/loss", 2.5), ("final/accuracy", 0.25), ("final/steps", 9.0)} <= found
    # what was not measured, and what is no number, are left out
    absent = {f"final/{name}" for name in ("inference_ms", "limit", "known", "model", "values")}
    assert not absent & {name for name, _ in found}
    assert next(row["step"] for row in rows if row["train/loss"]) == "7"
    facts = yaml.safe_load((tmp_path / "logs" / "hparams.yaml").read_text())
    assert facts == plain(FACTS) | {"label": label(asdict(FACTS))}


def fail(config: dict[str, Any], folder: Path) -> None:
    with tracking(config, folder, FACTS, group="a sweep") as track:
        track.logger.log_metrics({"train/loss": 2.5}, step=7)
        raise ZeroDivisionError


def test_curves_are_written_though_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail(CSV, tmp_path)
    assert "2.5" in (tmp_path / "logs" / "metrics.csv").read_text()


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_wandb_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Read
) -> None:
    modes = (None, "online")
    jobs = (FACTS, replace(FACTS, components="none", values=None, recipe=None))
    for number, (facts, mode) in enumerate(zip(jobs, modes, strict=True)):
        if mode:
            monkeypatch.setenv("WANDB_MODE", mode)
        folder = tmp_path / str(number)
        folder.mkdir()
        naive = replace(
            TRAINED,
            facts=replace(facts, row=RowKind.naive),
            scores=replace(TRAINED.scores, accuracy=float(number)),
        )
        with tracking(WANDB, folder, facts, group="a sweep") as track:
            assert track.curves is not None  # those that the report reads
            assert track.loggers == [track.logger, track.curves]
            assert Path(track.curves.log_dir) == folder / "logs" / "version_0"
            track.logger.log_metrics({"train/loss": 2.5}, step=1)
            track.summarize([scored(naive, FINE)], None, folder / "packed")
        assert os.environ.get("WANDB_MODE") == mode
    (tmp_path / "2").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail(WANDB, tmp_path / "2")
    assert os.environ.get("WANDB_MODE") == "online"

    found = [recorded(tmp_path / number) for number in "012"]
    assert len({one.run["run_id"] for one in found}) == 3
    assert {(one.run["run_group"], one.run["project"]) for one in found} == {("a sweep", "x")}
    names = [one.run["display_name"] for one in found]
    assert names == ["ffnn-01-bitmaps", "none", "ffnn-01-bitmaps"]
    assert [one.run["job_type"] for one in found] == ["train", "evaluate", "train"]
    assert [set(one.run["tags"]) for one in found] == [
        {"ffnn", "01", "bitmaps", "naive"}, {"none", "naive"}, {"ffnn", "01", "bitmaps"}
    ]  # fmt: skip
    assert [one.config["values"] for one in found] == ["01", None, "01"]
    assert [one.run["exit_code"] for one in found] == [0, 0, 1]
    assert [one.summary["accuracy"] for one in found[:2]] == [0.0, 1.0]
    assert all(one.curves["train/loss"] == [2.5] for one in found)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# the card\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"bits")
    return folder


def test_a_wandb_run_records_the_whole_outcome(
    tmp_path: Path, tiny: Bert, packed: Path, recorded: Read
) -> None:
    binarize_naive(tiny, [Component.ffnn], PLUS_MINUS_ONE, Scale.row, Scope.matrices)
    asked = {"name": "mine", "group": "ours", "job_type": "try"}
    with tracking(WANDB | asked, tmp_path, FACTS, group="a sweep") as track:
        track.summarize(SCORED, tiny, packed)
    found = recorded(tmp_path)
    run = found.run  # what it is asked to be called goes before what is usual
    assert (run["display_name"], run["run_group"], run["job_type"]) == ("mine", "ours", "try")
    assert found.config == plain(TRAINED.facts) | {"label": label(TRAINED.flat())}
    check_summary(found.summary)
    check_scales(found.tables["scales"], tiny)
    check_table(found.tables["predictions"])
    assert found.tables["rows"] == (
        ["row", "cross_entropy", "accuracy", "mrr", "memory_mib"],
        [["unbinarized", 4.5, 0.75, 0.5, 60.5], ["trained", 4.5, 0.25, 0.5, 60.5]],
    )
    artifact = found.artifacts[f"packed-{label(TRAINED.flat())}"]
    assert artifact["type"] == "model"
    assert artifact["description"].strip() == "# the card"
    contents = {file["path"]: Path(file["local_path"]) for file in artifact["manifest"]["contents"]}
    assert set(contents) == {"README.md", "model.safetensors"}
    assert contents["model.safetensors"].read_bytes() == b"bits"


def check_summary(summary: Mapping[str, Any]) -> None:
    wanted = {
        "cross_entropy": 4.5, "accuracy": 0.25, "mrr": 0.5, "memory_mib": 60.5,
        "unbinarized/cross_entropy": 4.5,
        "verdict": "collapsed", "predicted": ".", "predicted_share": 0.75,
        "confidence_mean": 0.5, "confidence_std": 0.125,
    }  # fmt: skip
    assert {name: summary.get(name) for name in wanted} == wanted
    seen = {name for name in summary if not name.startswith("_")}
    assert seen - set(wanted) == {"confidence", "rows", "predictions", "scales"}
    confidence = summary["confidence"]
    assert confidence["values"] == [0, 3, *[0] * 17, 4]
    assert confidence["bins"] == pytest.approx([n / 20 for n in range(21)])


def check_scales(table: tuple[list[str], list[list[Any]]], model: Bert) -> None:
    columns, lines = table
    assert columns[:2] == ["matrix", "least"]
    names = [f"encoder.layers.{n}.ffnn.{name}" for n in (0, 1) for name in ("expand", "contract")]
    assert [line[0] for line in lines] == names
    for name, *quantiles in lines:
        weight = model.get_parameter(f"{name}.weight").detach()
        both = np.concatenate([weight.amin(1).numpy(), weight.amax(1).numpy()])  # of each row
        expected = [both.min(), *np.percentile(both, (25, 50, 75)), both.max()]
        assert quantiles == pytest.approx(expected)


def check_table(table: tuple[list[str], list[list[Any]]]) -> None:
    columns, lines = table
    assert columns == [
        "sentence", "position", "true",
        "unbinarized", "unbinarized probability", "unbinarized top five",
        "trained", "trained probability", "trained top five",
    ]  # fmt: skip
    guessed = ["cat", 0.5, "cat 0.500, dog 0.250", ".", 0.5, ". 0.500, , 0.250"]
    assert lines == [
        ["the [MASK] sat [MASK]", 1, "cat", *guessed],
        ["the [MASK] sat [MASK]", 3, "cat", *guessed],
        ["[MASK] ran", 0, None, *guessed],
    ]


def test_predictions_of_different_sentences_are_not_put_side_by_side() -> None:
    shorter = replace(FINE, sentences=FINE.sentences[:1])
    with pytest.raises(ValueError, match="argument 2"):
        predictions({"unbinarized": shorter, "trained": COLLAPSED})


# The label


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 7),
        ("command", "python train.py seed=7"),
        ("commit", "abc"),
        ("best_step", 3),
        ("versions", {"python": "3.12"}),
        ("cross_entropy", 9.0),
    ],
)
def test_runs_that_differ_in_their_seed_share_a_label(name: str, value: Any) -> None:
    flat = TRAINED.flat()
    assert label(flat | {name: value}) == label(flat)
    assert label(flat).startswith("ffnn-01-row-bitmaps-trained-")


@pytest.mark.parametrize("name", fields_with(Role.label | Role.text | Role.where | Role.how))
def test_runs_that_differ_in_anything_else_do_not(name: str) -> None:
    flat = TRAINED.flat()
    assert label(flat | {name: "another"}) != label(flat)


def test_runs_that_differ_in_a_setting_do_not_either() -> None:
    flat = TRAINED.flat()
    labels = {label(flat | {"settings": {"optimizer.lr": rate}}) for rate in (1e-4, 3e-1)}
    assert len(labels) == 2


def test_a_label_is_the_same_before_and_after_json() -> None:
    """Enums and their text are the same word."""
    flat = TRAINED.flat()
    assert label(json.loads(json.dumps(flat))) == label(flat)
    facts = asdict(FACTS)
    assert label(json.loads(json.dumps(facts))) == label(facts)
    assert label(parse_row(json.loads(json.dumps(flat))).flat()) == label(flat)


def test_a_config_is_plain() -> None:
    config = config_of(TRAINED.facts, "x")
    assert config == plain(TRAINED.facts) | {"label": "x"}
    assert {type(value) for value in config.values()} <= {str, int, float, type(None)}
    assert (config["optimizer.lr"], config["python"], config["row"]) == (0.5, "3.11", "trained")
