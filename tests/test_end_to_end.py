"""The README's commands as a person types them, on the embedded model and text."""

from __future__ import annotations

import csv
import html
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))
TWO_PROCESSES = (
    "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true",
)  # fmt: skip


def run(*command: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in read(folder / "rows.json")}


@pytest.fixture(scope="session")
def treebank() -> str:
    if "BITMAPS_PTB" not in os.environ:
        pytest.skip("BITMAPS_PTB is not set: a folder with ptb.{train,valid,test}.txt")
    return os.environ["BITMAPS_PTB"]


def test_the_default_training_keeps_nine_tenths_of_the_accuracy_in_one_bit(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train.py", "binarize=ffnn", "values=pm1", "measure=none", f"hydra.run.dir={folder}")
    table = rows(folder)
    before, naive, trained = table["unbinarized"], table["naive"], table["trained"]
    assert before["masked_tokens"] >= 10_000
    assert before["accuracy"] > 0.3
    assert trained["accuracy"] >= 0.9 * before["accuracy"]
    assert naive["accuracy"] < 0.1 * before["accuracy"]
    assert trained["memory_mib"] < 0.75 * before["memory_mib"]
    assert table["packed"]["accuracy"] == pytest.approx(trained["accuracy"], abs=0.01)
    size = (folder / "packed" / "model.safetensors").stat().st_size / 2**20
    assert size == pytest.approx(
        table["packed"]["memory_mib"], abs=0.05
    )  # its size is no pseudo one
    assert size < 0.35 * before["memory_mib"]


def test_the_naive_sweep_prints_its_table(tmp_path: Path) -> None:
    out = run(
        "evaluate.py", "-m", "binarize=none,all,layers", "measure=none", "limit=300",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert (tmp_path / "results.md").read_text(encoding="utf-8").count("\n") == 5
    assert "layers" in out
    jobs = {name: tmp_path / f"binarize-{name}+limit-300" for name in ("none", "layers", "all")}
    none, layers, everything = (read(folder / "metrics.json") for folder in jobs.values())
    assert none["cross_entropy"] < layers["cross_entropy"] < everything["cross_entropy"]
    assert everything["memory_mib"] < none["memory_mib"] / 30
    page = (tmp_path / "results.html").read_text(encoding="utf-8")
    for name, folder in jobs.items():
        (analysis,) = read(folder / "analysis.json").values()
        assert html.escape(analysis["verdict"]).replace("&#x27;", "&#39;") in page
        assert analysis["verdict"].endswith("collapsed") == (name != "none")
        assert (analysis["predicted"][0]["share"] > 0.5) == (name != "none")


def test_ptb_is_scored_whole(tmp_path: Path, treebank: str) -> None:
    run(
        "evaluate.py", "data=ptb", f"data.dir={treebank}", "measure=none",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    row = rows(tmp_path)["unbinarized"]
    assert 10_000 < row["masked_tokens"] < 15_000
    assert row["known"]["masked_tokens"] < row["masked_tokens"]
    assert row["accuracy"] > 0.15


def test_the_blog_posts_model_is_measured_without_its_weights(tmp_path: Path) -> None:
    run(
        "evaluate.py", "model=bert_base", "model.weights=random", "binarize=all",
        "measure.batch_size=2", "measure.repeats=1", "limit=20", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    row = rows(tmp_path)["naive"]
    assert int(row["memory_mib"]) == 13
    assert row["inference_ms"] > 0
    assert row["inference_masked_ms"] > 0


def test_the_blog_posts_model_is_trained_in_one_command(tmp_path: Path) -> None:
    """With random weights, on the default text, for ten steps."""
    run(
        "train.py", "experiment=blog_post_trained", "model.weights=random", "data=wiki",
        "data.batch_size=2", "data.length=16", "limit=20", "mask_sets=1", "measure=none",
        "trainer.max_steps=10", "trainer.val_check_interval=10", "values=pm1", "packed=false",
        f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    with (tmp_path / "results.csv").open(newline="") as file:
        results = list(csv.DictReader(file))
    trained = {row["components"]: row for row in results if row["row"] == "trained"}
    assert set(trained) == {"all", "layers", "layers_except_attention", "layers_except_ffnn"}
    assert {row["steps"] for row in trained.values()} == {"10"}
    assert int(float(trained["all"]["memory_mib"])) == 14  # 13 of bits


def test_two_processes_train_and_score_as_one(tmp_path: Path) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    run("train.py", "debug=fast", "measure=none", *TWO_PROCESSES, f"hydra.run.dir={two}")
    run("evaluate.py", "measure=none", "limit=256", f"hydra.run.dir={one}")
    table, alone = rows(two), rows(one)["unbinarized"]
    assert table["unbinarized"]["masked_tokens"] == alone["masked_tokens"]
    assert table["unbinarized"]["cross_entropy"] == pytest.approx(alone["cross_entropy"], abs=1e-4)
    assert table["trained"]["steps"] == 4
    two_found, one_found = (read(path / "analysis.json")["unbinarized"] for path in (two, one))
    for name in ("masked_tokens", "by_input", "by_frequency", "distinct"):
        assert two_found[name] == one_found[name]


def test_the_quick_bench_measures_every_row(tmp_path: Path) -> None:
    run("-m", "bitmaps.bench", "--quick", "--rounds", "1", "--output", tmp_path / "bench.json")
    content = read(tmp_path / "bench.json")
    wanted = {"A/A", "our step", "our step, layers binarized", "torch int8 dynamic"}
    wanted |= {f"one bit, {act}" for act in ("f32", "a16", "a8", "a1")}
    assert {row["contender"] for row in content["rows"]} >= wanted
    assert all(row["median"] > 0 for row in content["rows"])
    measured = {row["deployment"] for row in content["footprints"]}
    assert measured >= {"import torch", "transformers, fused attention", "one bit, a8"}


def test_every_recipe_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))  # for tidy
    run(
        "train.py", "-m", "debug=fast", f"recipe={','.join(RECIPES)}", "binarize=layers",
        "references=false", "measure=none", "limit=64", f"hydra.sweep.dir={tmp_path}",
        "+hydra.callbacks.tidy._target_=tidy.Tidy",
    )  # fmt: skip
    for recipe in RECIPES:
        (folder,) = tmp_path.glob(f"*recipe-{recipe}+*")
        assert not (folder / "checkpoints").exists()  # the disk need not hold them all
        row = rows(folder)["trained"]
        assert (row["recipe"], row["steps"]) == (recipe, 4)
        assert row["memory_mib"] < 50  # of 86.8: the layers are in one bit
        assert row["cross_entropy"] < 10.4  # nats: better than a guess among 30,522


def test_calibration_needs_no_training_to_predict(tmp_path: Path) -> None:
    run(
        "evaluate.py", "-m", "binarize=layers", "scale=row", "binarize.scope=matrices",
        "calibrate=0,256", "references=false", "measure=none", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    before, after = (
        read(folder / "rows.json")[0]["accuracy"]
        for sentences in (0, 256)
        for folder in tmp_path.glob(f"*calibrate-{sentences}*")
    )
    assert after > 1.5 * before


def test_the_standard_comparison_runs_and_goes_on_where_it_was(
    tmp_path: Path, treebank: str
) -> None:
    """The commands of ``make recipes``, with few steps and sentences."""
    teacher, sweep, results = tmp_path / "teacher", tmp_path / "short", tmp_path / "short.json"
    small = (
        f"data.dir={treebank}", "limit=64", "mask_sets=2", "trainer.max_steps=2",
        "trainer.val_check_interval=2", "measure=none",
    )  # fmt: skip
    run("train.py", "experiment=ptb", *small, f"hydra.run.dir={teacher}")
    shutil.rmtree(teacher / "checkpoints")  # half a gigabyte, which nothing reads from here on
    jobs = (
        "train.py", "-m", "experiment=ptb_short", f"model.source={teacher}", *small,
        f"hydra.sweep.dir={sweep}",
    )  # fmt: skip
    run(*jobs, "seed=0")
    done = {path: path.stat().st_mtime_ns for path in sweep.glob("*seed-0*/metrics.json")}
    (first,) = (path.parent for path in done)
    shutil.rmtree(first / "checkpoints")
    run(*jobs, "seed=0,1")
    assert len(list(sweep.glob("*/metrics.json"))) == 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    report = (
        "-m", "bitmaps.report", teacher, sweep, "--output", tmp_path / "report",
        "--against", "teacher", "--json", results,
    )  # fmt: skip
    assert "accuracy kept" in run(*report)
    (line,) = [line for line in read(results)["lines"] if len(line["seeds"]) == 2]
    assert [seed["seed"] for seed in line["seeds"]] == [0, 1]
    (differences,) = line["against"].values()
    assert differences["cross_entropy"]["value"] > 0
