"""The README's commands as a person types them, on the embedded model and text."""

import html
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(*command, timeout=1800):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows(folder):
    return {
        row["row"]: row for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    }


def test_the_default_training_keeps_nine_tenths_of_the_accuracy_in_one_bit(tmp_path):
    folder = tmp_path / "run"
    run("train.py", "binarize=ffnn", "values=pm1", "measure=none", f"hydra.run.dir={folder}")
    table = rows(folder)
    before, naive, trained = table["unbinarized"], table["naive"], table["trained"]
    assert before["masked_tokens"] >= 10_000
    assert before["accuracy"] > 0.3
    assert trained["accuracy"] >= 0.9 * before["accuracy"]
    assert naive["accuracy"] < 0.1 * before["accuracy"]
    assert trained["memory_mib"] < 0.75 * before["memory_mib"]
    packed = tmp_path / "packed"
    run(
        "evaluate.py",
        f"checkpoint={folder}/packed",
        "measure=none",
        "references=false",
        f"hydra.run.dir={packed}",
    )
    assert rows(packed)["packed"]["accuracy"] == pytest.approx(trained["accuracy"], abs=0.01)
    assert (folder / "packed" / "model.safetensors").stat().st_size < 0.75 * before[
        "memory_mib"
    ] * 2**20


def test_the_naive_sweep_prints_its_table(tmp_path):
    sweep = tmp_path / "sweep"
    out = run(
        "evaluate.py",
        "-m",
        "binarize=none,all,layers",
        "measure=none",
        "limit=300",
        f"hydra.sweep.dir={sweep}",
    )
    assert (sweep / "results.md").read_text(encoding="utf-8").count("\n") == 5
    assert "layers" in out
    # the overrides that are typed, but for those that change no score
    jobs = [f"binarize-{group}+limit-300" for group in ("none", "all", "layers")]
    none, everything, layers = (
        json.loads((sweep / job / "metrics.json").read_text(encoding="utf-8")) for job in jobs
    )
    assert none["cross_entropy"] < layers["cross_entropy"] < everything["cross_entropy"]
    assert everything["memory_mib"] < none["memory_mib"] / 30
    page = (sweep / "results.html").read_text(encoding="utf-8")
    for job, collapsed in zip(jobs, (False, True, True), strict=True):
        (analysis,) = json.loads(
            (sweep / job / "analysis.json").read_text(encoding="utf-8")
        ).values()
        assert html.escape(analysis["verdict"]).replace("&#x27;", "&#39;") in page
        assert analysis["verdict"].endswith("collapsed") == collapsed
        assert (analysis["predicted"][0]["share"] > 0.5) == collapsed


def test_ptb_is_scored_whole(tmp_path):
    if "BITMAPS_PTB" not in os.environ:
        pytest.skip(
            "BITMAPS_PTB is not set: the folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt"
        )
    folder = tmp_path / "run"
    run(
        "evaluate.py",
        "data=ptb",
        f"data.dir={os.environ['BITMAPS_PTB']}",
        "measure=none",
        f"hydra.run.dir={folder}",
    )
    row = rows(folder)["unbinarized"]
    assert 10_000 < row["masked_tokens"] < 15_000
    assert row["known"]["masked_tokens"] < row["masked_tokens"]
    assert row["accuracy"] > 0.15


def test_the_blog_posts_model_is_measured_without_its_weights(tmp_path):
    folder = tmp_path / "run"
    measure = ("measure.batch_size=2", "measure.repeats=1", "limit=20")
    run(
        "evaluate.py",
        "model=bert_base",
        "model.weights=random",
        "binarize=all",
        *measure,
        f"hydra.run.dir={folder}",
    )
    row = rows(folder)["naive"]
    assert int(row["memory_mib"]) == 13
    assert row["inference_ms"] > 0
    assert row["inference_masked_ms"] > 0


def test_two_processes_train_and_score_as_one(tmp_path):
    folder = tmp_path / "run"
    two = (
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "trainer.precision=32-true",
    )
    run("train.py", "debug=fast", "measure=none", *two, f"hydra.run.dir={folder}")
    table = rows(folder)
    run("evaluate.py", "measure=none", "limit=256", f"hydra.run.dir={tmp_path / 'one'}")
    alone = rows(tmp_path / "one")["unbinarized"]
    assert table["unbinarized"]["masked_tokens"] == alone["masked_tokens"]
    assert table["unbinarized"]["cross_entropy"] == pytest.approx(alone["cross_entropy"], abs=1e-4)
    assert table["trained"]["steps"] == 4
    two_found, one_found = (
        json.loads((path / "analysis.json").read_text(encoding="utf-8"))["unbinarized"]
        for path in (folder, tmp_path / "one")
    )
    for name in ("masked_tokens", "by_input", "by_frequency", "distinct"):
        assert two_found[name] == one_found[name]


def test_a_wheel_carries_the_configuration_and_the_adapter(tmp_path):
    run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ".")
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        f"bitmaps/conf/{path.relative_to(ROOT / 'conf')}"
        for path in (ROOT / "conf").rglob("*.yaml")
    }
    assert names >= shipped | {
        "bitmaps/py.typed",
        "bitmaps/adapters/minilm_mlm.safetensors",
        "bitmaps/bert/model.py",
    }
    assert names >= {"bitmaps/report/page.py", "bitmaps/report/page.html"}


def test_the_quick_bench_measures_every_row(tmp_path):
    run("-m", "bitmaps.bench", "--quick", "--rounds", "1", "--output", tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    wanted = {"A/A", "our step", "our step, layers binarized", "torch int8 dynamic", "fair fp32"}
    wanted |= {f"one bit, {act}" for act in ("f32", "a16", "a8", "a1")}
    assert {row["contender"] for row in content["rows"]} >= wanted
    assert all(row["median"] > 0 for row in content["rows"])


RECIPES = sorted(path.stem for path in (ROOT / "conf" / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains(recipe, tmp_path):
    folder = tmp_path / "run"
    run(
        "train.py", "debug=fast", f"recipe={recipe}", "binarize=layers", "references=false", "measure=none",
        f"hydra.run.dir={folder}",
    )  # fmt: skip
    row = rows(folder)["trained"]
    assert (row["recipe"], row["steps"]) == (recipe, 4)
    assert row["memory_mib"] < 50  # of 86.8: the layers are in one bit
    assert row["cross_entropy"] < 10.4  # nats: better than a guess among 30,522


def test_calibration_needs_no_training_to_predict(tmp_path):
    scores = {}
    for sentences in (0, 256):
        folder = tmp_path / str(sentences)
        run(
            "evaluate.py", "binarize=layers", "scale=row", "binarize.scope=matrices", f"calibrate={sentences}",
            "references=false", "measure=none", f"hydra.run.dir={folder}",
        )  # fmt: skip
        (row,) = rows(folder).values()
        scores[sentences] = row["accuracy"]
    assert scores[256] > 1.5 * scores[0]


def test_the_standard_comparison_runs_and_goes_on_where_it_was(tmp_path):
    if "BITMAPS_PTB" not in os.environ:
        pytest.skip(
            "BITMAPS_PTB is not set: the folder with ptb.train.txt, ptb.valid.txt and ptb.test.txt"
        )
    small = ("limit=64", "mask_sets=2", "trainer.max_steps=2", "trainer.val_check_interval=2")
    data = f"data.dir={os.environ['BITMAPS_PTB']}"
    teacher, sweep, results = (tmp_path / name for name in ("teacher", "short", "short.json"))
    run("train.py", "experiment=ptb", data, *small, f"hydra.run.dir={teacher}")
    jobs = (
        *("train.py", "-m", "experiment=ptb_short", "seed=0,1", "binarize=layers", data, *small),
        *(f"model.source={teacher}", f"hydra.sweep.dir={sweep}"),
    )
    assert "done already" not in run(*jobs)
    assert run(*jobs).count("is done already") == 2
    out = run(
        *("-m", "bitmaps.report", teacher, sweep, "--output", tmp_path / "report"),
        *("--against", "teacher", "--json", results),
    )
    assert "accuracy kept" in out
    (line,) = (
        line
        for line in json.loads(results.read_text(encoding="utf-8"))["lines"]
        if line["facts"]["components"] == "layers"
    )
    assert [seed["seed"] for seed in line["seeds"]] == [0, 1]
    (against,) = line["against"].values()
    assert against["cross_entropy"]["low"] > 0
