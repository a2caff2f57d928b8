"""``calibrate=`` and ``tune=``, with and without a training afterwards."""

from __future__ import annotations

import pytest
from command.commands import (
    ALONE,
    HALF,
    LEVEL,
    SHORT,
    Commands,
    assert_sums_give,
    metrics,
    rows_of,
    sums_of,
)

from bitmaps.bert import Bert
from bitmaps.quantize.rotate import rotate_heads

MATRICES = ("binarize=layers", "binarize.scope=matrices")
CALIBRATED = ("calibrate=8", "binarize=layers")  # of a training


@pytest.mark.parametrize("scale", ["row", "rank_one"])
def test_a_calibrated_model_has_a_row_beside_its_references(command: Commands, scale: str) -> None:
    options = (*MATRICES, f"scale={scale}")
    command.ok("evaluate", "calibrate=8", "data.batch_size=8", *options, "hydra.run.dir=r")
    rows = rows_of("r")
    assert list(rows) == list(sums_of("r")) == ["unbinarized", "naive", "calibrated"]
    assert [row["calibrated_on"] for row in rows.values()] == [0, 0, 8]
    assert [(row["components"], row["scale"], row["scope"]) for row in rows.values()] == [
        ("none", None, None),
        ("layers", "none", "all"),
        ("layers", scale, "matrices"),
    ]
    assert (metrics("r")["row"], metrics("r")["steps"]) == ("calibrated", 0)
    for kind, row in rows.items():
        assert_sums_give(sums_of("r")[kind], row)
    command.ok("evaluate", *options, "hydra.run.dir=scaled")
    scaled, calibrated = metrics("scaled"), rows["calibrated"]
    assert (scaled["row"], scaled["calibrated_on"], scaled["scope"]) == ("naive", 0, "matrices")
    assert calibrated["cross_entropy"] != scaled["cross_entropy"] != rows["naive"]["cross_entropy"]
    assert calibrated["memory_mib"] < rows["unbinarized"]["memory_mib"]
    # the reference is the model as it was, not rotated
    command.made("naive", "evaluate", "binarize=layers")
    assert rows["naive"]["cross_entropy"] == metrics("naive")["cross_entropy"]


@pytest.mark.parametrize(
    ("components", "values", "scale", "rotated"),
    [
        ("layers", "pm1", "row", True),
        ("attention", "pm1", "rank_one", True),
        ("ffnn", "pm1", "row", False),
        ("layers", "01", "row", False),
    ],
)
def test_heads_are_rotated_where_attention_has_two_opposite_values(
    command: Commands,
    monkeypatch: pytest.MonkeyPatch,
    components: str,
    values: str,
    scale: str,
    rotated: bool,
) -> None:
    found: list[str] = []

    def rotate(model: Bert, scale: object) -> None:
        rotate_heads(model, scale)  # type: ignore[arg-type]
        found.append(str(scale))

    monkeypatch.setattr("bitmaps.jobs.setup.rotate_heads", rotate)
    options = (f"binarize={components}", f"values={values}", "binarize.scope=matrices")
    options += (f"scale={scale}", ALONE)
    if rotated:
        command.ok("evaluate", *options, "hydra.run.dir=scaled")
        assert not found  # without calibration
    command.ok("evaluate", "calibrate=8", *options, "hydra.run.dir=r")
    assert found == [scale] * 2 * rotated  # the model that is binarized, and its target


def test_it_takes_whole_batches_and_at_most_all_sentences(command: Commands) -> None:
    options = ("binarize=ffnn", "binarize.scope=matrices", "scale=row", ALONE, "data.batch_size=8")
    for asked, found in ((9, 16), (1000, 200)):
        command.ok("evaluate", f"calibrate={asked}", *options, f"hydra.run.dir={asked}")
        assert metrics(str(asked))["calibrated_on"] == found
    assert metrics("9")["cross_entropy"] != metrics("1000")["cross_entropy"]


@pytest.mark.slow
def test_a_training_may_begin_where_calibration_ends(command: Commands) -> None:
    still = ("optimizer.lr=0", "optimizer.weight_decay=0", *SHORT)
    command.ok("train", *CALIBRATED[1:], *still, ALONE, "hydra.run.dir=plain")
    command.ok("train", *CALIBRATED, *still, "hydra.run.dir=r")
    rows = rows_of("r")
    calibrated_on = {kind: row["calibrated_on"] for kind, row in rows.items()}
    assert calibrated_on == {"unbinarized": 0, "naive": 0, "packed": 8, "trained": 8}
    assert metrics("plain")["calibrated_on"] == 0
    assert (rows["trained"]["steps"], rows["trained"]["recipe"]) == (4, "bitmaps")
    options = ("scale=rank_one", "data.batch_size=8", ALONE)
    command.ok("evaluate", "calibrate=8", *MATRICES, *options, "hydra.run.dir=e")
    found, calibrated, plain = (metrics(name)["cross_entropy"] for name in ("r", "e", "plain"))
    assert found == pytest.approx(calibrated, rel=1e-5)
    assert found != pytest.approx(plain, rel=1e-3)


@pytest.mark.slow
def test_a_calibrated_training_is_resumed_without_calibrating_again(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.made("whole", "train", *CALIBRATED, LEVEL, *SHORT, ALONE)
    command.made("parts", "train", *CALIBRATED, LEVEL, *HALF, ALONE)
    monkeypatch.setattr("bitmaps.jobs.setup.calibrate", lambda *_: pytest.fail("calibrated again"))
    command.ok("train", "resume=parts", "trainer.max_steps=4")
    assert (metrics("parts")["steps"], metrics("parts")["calibrated_on"]) == (4, 8)
    assert metrics("parts")["cross_entropy"] == metrics("whole")["cross_entropy"]
    assert "calibrate cannot change" in command.refused("train", "resume=parts", "calibrate=0")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["masked_lm", "sentence_embedding"])
def test_a_tuned_model_has_a_row_of_its_own(command: Commands, task: str) -> None:
    options = (*MATRICES, "scale=rank_one", "calibrate=64", "data.batch_size=8", f"task={task}")
    command.ok("evaluate", *options, ALONE, "hydra.run.dir=calibrated")
    command.ok("evaluate", *options, "tune=32", "hydra.run.dir=tuned")
    rows = rows_of("tuned")
    assert list(rows) == ["unbinarized", "naive", "tuned"]
    assert [row["tuned_on"] for row in rows.values()] == [0, 0, 32]
    assert [row["calibrated_on"] for row in rows.values()] == [0, 0, 64]
    assert (metrics("tuned")["steps"], metrics("calibrated")["tuned_on"]) == (0, 0)
    # tests/training/test_tune.py says how much nearer to the original it is
    score = "cosine" if task == "sentence_embedding" else "cross_entropy"
    assert rows["tuned"][score] != metrics("calibrated")[score]


@pytest.mark.slow
def test_a_tuned_training_is_resumed_without_tuning_again(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = (*CALIBRATED, "tune=8", LEVEL, ALONE)
    command.made("whole", "train", *tuned, *SHORT)
    command.made("parts", "train", *tuned, *HALF)
    monkeypatch.setattr("bitmaps.jobs.setup.tune", lambda *_: pytest.fail("tuned again"))
    command.ok("train", "resume=parts", "trainer.max_steps=4")
    assert {row["tuned_on"] for row in rows_of("parts").values()} == {8}
    assert metrics("parts")["cross_entropy"] == metrics("whole")["cross_entropy"]
    assert "tune cannot change" in command.refused("train", "resume=parts", "tune=0")
