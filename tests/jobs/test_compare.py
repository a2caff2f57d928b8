"""The standard work: its jobs, how two runs are compared, and what is written of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from bitmaps.command.schema import check, conf_dir
from bitmaps.compare import (
    SCORES,
    Job,
    differences,
    draw_sizes,
    jobs_of,
    main,
    markdown,
    run,
    runs_of,
    write_line,
)
from bitmaps.errors import InputError
from bitmaps.runs.folder import RunFolder, read_metrics

Array = NDArray[np.float64]
BUDGETS = {"short": 300, "long": 1500}


# Jobs


@pytest.fixture
def conf() -> Iterator[None]:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


@cache
def composed(job: Job) -> DictConfig:
    # of a trained run the checkpoint says what is binarized
    source = ["binarize=layers"] if job.of is not None else ["model.source=x"]
    return compose(job.command, overrides=[*job.overrides, "data.dir=x", *source])


@pytest.mark.parametrize("budget", BUDGETS)
def test_jobs_have_folders_of_their_own(budget: str) -> None:
    jobs = jobs_of(budget, range(3))
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert [job.seed for job in jobs if job.line == "bitmaps-layers"] == [0, 1, 2]
    one, three = ({job.line for job in jobs_of(budget, range(seeds))} for seeds in (1, 3))
    assert one == three
    assert {job.name for job in jobs_of(budget, [0])} < set(names)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_model_that_is_scored_is_one_that_is_trained(budget: str) -> None:
    jobs = jobs_of(budget, range(2))
    trained = {(job.line, job.seed) for job in jobs if job.command == "train"}
    of_others = [job for job in jobs if job.of is not None]
    assert of_others
    for job in of_others:
        assert job.command == "evaluate"
        assert (job.of, job.seed) in trained


EACH_JOB = [
    pytest.param(budget, job, id=f"{budget}-{job.name}")
    for budget in BUDGETS
    for job in jobs_of(budget, [3])
]


@pytest.mark.parametrize(("budget", "job"), EACH_JOB)
@pytest.mark.usefixtures("conf")
def test_every_job_composes_and_passes_its_check(budget: str, job: Job) -> None:
    config: Any = OmegaConf.to_object(composed(job))
    check(config)
    facts = config.facts()
    assert (facts["data"], facts["split"], facts["mask_sets"]) == ("ptb", "validation", 5)
    assert (config.references, config.measure.repeats) == (False, 0)
    binarized = {"full_precision": "none", "bitmaps-ffnn": "ffnn", "bitmaps-all": "all"}
    assert facts["components"] == binarized.get(job.line, "layers")
    assert facts["values"] == (
        "01" if job.line.endswith("-01") else None if job.line == "full_precision" else "pm1"
    )
    if job.command == "train":
        assert (config.seed, config.model.source, config.data.batch_size) == (3, "x", 32)
        assert config.trainer.max_steps == config.schedule["num_training_steps"] == BUDGETS[budget]
    if job.line.endswith("_loss"):
        recipe, loss = job.line.split("-")
        own = compose("train", overrides=[f"recipe={recipe}"]).loss.name
        assert (facts["recipe"], facts["loss"]) == (
            recipe,
            "common" if loss == "common_loss" else own,
        )


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.usefixtures("conf")
def test_no_two_jobs_are_the_same_run(budget: str) -> None:
    seen: dict[str, str] = {}
    for job in jobs_of(budget, [3]):
        config: Any = OmegaConf.to_container(composed(job))
        for named in ("recipe", "loss"):  # a name changes nothing
            config.get(named, {}).pop("name", None)
        identity = f"{job.of} {job.command} {json.dumps(config, sort_keys=True, default=str)}"
        assert seen.setdefault(identity, job.name) == job.name


# Differences


def sums_of(seed: int, sentences: int = 60, better: float = 0.0) -> Array:
    """Of so many sentences: masked tokens, the same for every ``better``, and sums of scores."""
    generator = np.random.RandomState(seed)
    counts = generator.randint(1, 6, sentences)
    cross_entropy = counts * np.maximum(generator.gamma(3, 1, sentences) - better, 0.01)
    hits = generator.binomial(counts, 0.4 + better / 10)
    return np.stack([counts, cross_entropy, hits, hits + 0.1 * (counts - hits)], 1).astype(
        np.float64
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), better=st.floats(-1, 1))
def test_a_difference_is_that_of_the_means_over_masked_tokens(seed: int, better: float) -> None:
    ours, theirs = sums_of(seed, better=better), sums_of(seed)
    found = differences(ours, theirs, draws=200)
    assert set(found) == {*SCORES, *(f"{name}_ratio" for name in SCORES)}
    for column, name in enumerate(("cross_entropy", "accuracy", "mrr"), 1):
        a, b = (np.average(x[:, column] / x[:, 0], weights=x[:, 0]) for x in (ours, theirs))
        assert found[name]["value"] == pytest.approx(a - b, abs=1e-12)
        assert found[f"{name}_ratio"]["value"] == pytest.approx(a / b)
    for interval in found.values():
        assert interval["low"] - 1e-8 <= interval["value"] <= interval["high"] + 1e-8
        assert all(type(number) is float for number in interval.values())


def test_a_run_does_not_differ_from_itself() -> None:
    for name, interval in differences(sums_of(0), sums_of(0)).items():
        assert set(interval.values()) == {1.0 if name.endswith("_ratio") else 0.0}


def test_swapping_two_runs_turns_the_sign() -> None:
    forth, back = (
        differences(sums_of(1), sums_of(1, better=1)),
        differences(sums_of(1, better=1), sums_of(1)),
    )
    for name in SCORES:
        assert forth[name]["value"] == pytest.approx(-back[name]["value"])
        assert forth[name]["low"] == pytest.approx(-back[name]["high"])
    assert forth["cross_entropy"]["low"] > 0  # it is clearly worse


def test_a_difference_that_all_sentences_share_is_certain() -> None:
    """The bootstrap draws the same sentences for both: with other ones for each, chance would be left in it."""
    theirs = sums_of(2)
    ours = theirs.copy()
    ours[:, 1] += 0.5 * ours[:, 0]
    found = differences(ours, theirs)["cross_entropy"]
    assert list(found.values()) == pytest.approx([0.5] * 3)
    assert found["high"] - found["low"] < 1e-9


def test_the_same_two_runs_have_the_same_interval_every_time() -> None:
    assert differences(sums_of(0), sums_of(0, better=1)) == differences(
        sums_of(0), sums_of(0, better=1)
    )


@pytest.mark.parametrize("changed", ["counts", "order", "shape"])
def test_runs_that_were_not_scored_on_the_same_masked_tokens_are_refused(changed: str) -> None:
    ours, theirs = sums_of(0), sums_of(0)
    if changed == "counts":
        theirs[7, 0] += 1
    theirs = {"counts": theirs, "order": theirs[::-1], "shape": theirs[:-1]}[changed]
    with pytest.raises(InputError, match="same masked sentences"):
        differences(ours, theirs)


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    ours, theirs = sums_of(3, sentences=80, better=0.3), sums_of(3, sentences=80)
    found = differences(ours, theirs, draws=4000)

    def difference(count: Array, mine: Array, other: Array, axis: int) -> Any:
        return (mine.sum(axis) - other.sum(axis)) / count.sum(axis)

    def ratio(count: Array, mine: Array, other: Array, axis: int) -> Any:
        return mine.sum(axis) / other.sum(axis)

    for column, name in enumerate(SCORES, 1):
        for statistic, key in ((difference, name), (ratio, f"{name}_ratio")):
            data = (ours[:, 0], ours[:, column], theirs[:, column])
            expected = stats.bootstrap(
                data,
                statistic,
                paired=True,
                n_resamples=4000,
                method="percentile",
                vectorized=True,
                rng=0,
            ).confidence_interval
            width = expected.high - expected.low
            assert found[key]["low"] == pytest.approx(expected.low, abs=0.1 * width), key
            assert found[key]["high"] == pytest.approx(expected.high, abs=0.1 * width), key


# Running a job


def finished(folder: Path, sums: Array, kind: str = "trained", **facts: Any) -> Path:
    """A run folder as a run that ended well leaves it; a reference row is there as well."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = dict(zip(SCORES, (sums[:, 1:].sum(0) / sums[:, 0].sum()).tolist(), strict=True))
    row = {
        "format": 1,
        "status": "ok",
        "error": None,
        "row": kind,
        "seed": 0,
        "command": f"python train.py experiment=ptb_short 'loss=a b' data.dir={folder} model.source={folder}/teacher",
        "memory_mib": 12.25,
        "settings": {},
    }
    row |= {
        "perplexity": 9.0,
        "known": {"accuracy": None},
        "components": "layers",
        "inference_ms": None,
    }
    rows: dict[str, Any] = {"unbinarized": sums_of(99, len(sums)), kind: sums}
    np.savez_compressed(folder / "sentences.npz", **rows)
    (folder / "metrics.json").write_text(
        json.dumps(row | scores | facts), encoding="utf-8"
    )  # last: now it has ended
    return folder


class Processes:
    """In place of ``subprocess.run``: notes what was started, and leaves what it was told to leave."""

    def __init__(self, then: Callable[[Path], object] | None = None, code: int = 0) -> None:
        self.then, self.code = then, code
        self.arguments: list[list[str]] = []
        self.environments: list[dict[str, str]] = []

    def __call__(self, command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert list(command[:3]) == [sys.executable, "-m", "bitmaps.cli"]
        assert options["check"] is False
        self.arguments.append(list(command[3:]))
        self.environments.append(options["env"])
        options["stdout"].write("what it said")
        (folder,) = (
            word.split("=", 1)[1]
            for word in command
            if word.startswith(("resume=", "hydra.run.dir="))
        )
        if self.then is not None:
            self.then(Path(folder))
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Processes]:
    def replace(*arguments: Any, **options: Any) -> Processes:
        fake = Processes(*arguments, **options)
        monkeypatch.setattr(subprocess, "run", fake)
        return fake

    return replace


JOB = Job("bwn-own_loss", 2, ("experiment=ptb_short", "recipe=bwn"))


def end(folder: Path) -> None:
    seed = folder.name.rpartition("-")[2]
    finished(folder, sums_of(0), seed=int(seed) if seed.isdigit() else 0)


def test_a_job_is_begun_with_its_overrides_in_its_folder(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "77")
    fake, folder = processes(end), tmp_path / "new" / JOB.name
    assert run(JOB, folder, ["data.dir=somewhere"], threads=3) > 0
    ((command, *arguments),) = fake.arguments
    assert command == "--config-name=train"
    assert arguments == [*JOB.overrides, "data.dir=somewhere", f"hydra.run.dir={folder}"]
    assert fake.environments[0]["OMP_NUM_THREADS"] == "3"
    assert "PATH" in fake.environments[0]
    assert (tmp_path / "new" / f"{JOB.name}.log").read_text() == "what it said"


def test_a_job_that_scores_is_an_evaluation(
    tmp_path: Path, processes: Callable[..., Processes]
) -> None:
    fake = processes(end)
    run(Job("naive", 0, ("model=hub",), "evaluate"), tmp_path / "naive-0", [], threads=1)
    assert fake.arguments[0][0] == "--config-name=evaluate"


def test_a_job_that_is_done_is_left_alone(
    tmp_path: Path, processes: Callable[..., Processes]
) -> None:
    fake, folder = processes(), finished(tmp_path / JOB.name, sums_of(0))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(JOB, folder, ["data.dir=x"], threads=1) == 0
    assert fake.arguments == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_job_with_a_checkpoint_goes_on(
    tmp_path: Path, processes: Callable[..., Processes], status: str
) -> None:
    folder = finished(tmp_path / JOB.name, sums_of(0), status=status)
    (folder / "config.yaml").touch()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_text("weights")
    fake = processes(end)
    run(
        JOB,
        folder,
        ["data.dir=x", "trainer=gpu", "model.source=y", "trainer.accumulate_grad_batches=2"],
        threads=1,
    )
    assert fake.arguments == [
        ["--config-name=train", f"resume={folder}", "trainer=gpu"]
    ]  # what a resumed run takes
    assert (folder / "checkpoints" / "last.ckpt").read_text() == "weights"


@pytest.mark.parametrize("status", ["running", "failed"])
def test_a_job_without_a_checkpoint_is_begun_afresh(
    tmp_path: Path, processes: Callable[..., Processes], status: str
) -> None:
    folder = finished(tmp_path / JOB.name, sums_of(0), status=status)
    (folder / "config.yaml").touch()
    there: list[bool] = []

    def begin(path: Path) -> None:
        there.append(path.exists())
        end(path)

    fake = processes(begin)
    run(JOB, folder, [], threads=1)
    assert there == [False]  # a folder that holds a run would be refused
    assert fake.arguments[0][-1] == f"hydra.run.dir={folder}"


@pytest.mark.parametrize(
    ("status", "code"),
    [("ok", 1), ("failed", 1), (None, 1), ("failed", 0), ("running", 0), (None, 0)],
)
def test_a_job_that_fails_names_its_log(
    tmp_path: Path, processes: Callable[..., Processes], status: str | None, code: int
) -> None:
    def leave(folder: Path) -> None:
        if status is not None:
            finished(folder, sums_of(0), status=status)

    processes(leave, code)
    folder = tmp_path / JOB.name
    with pytest.raises(
        InputError, match=r"bwn-own_loss-2 failed: see .*bwn-own_loss-2\.log"
    ) as caught:
        run(JOB, folder, [], threads=1)
    assert Path(str(caught.value).split("see ")[1]).read_text() == "what it said"


# What is written


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A teacher, our own recipe with two seeds, another with three, of which one failed."""
    folder = tmp_path / "runs"
    finished(folder / "teacher", sums_of(0, better=1.5), kind="trained")
    for seed in (0, 1):
        finished(
            folder / "short" / f"bitmaps-layers-{seed}", sums_of(0, better=1 + seed / 10), seed=seed
        )
    for seed in (0, 1, 2):
        status = "failed" if seed == 1 else "ok"
        finished(
            folder / "short" / f"bwn-own_loss-{seed}",
            sums_of(0, better=seed / 10),
            seed=seed,
            status=status,
        )
    return folder


def result_of(runs: Path, line: str) -> dict[str, Any]:
    results = runs.parent / "results"
    write_line(line, runs, "short", results)
    text = (results / "short" / f"{line}.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def means(sums: Array) -> list[float]:
    found: list[float] = (sums[:, 1:].sum(0) / sums[:, 0].sum()).tolist()
    return found


def test_a_line_is_the_mean_of_the_seeds_that_ended(runs: Path) -> None:
    found = result_of(runs, "bwn-own_loss")
    sums = {seed: sums_of(0, better=seed / 10) for seed in (0, 2)}
    assert (found["line"], found["budget"], found["row"], found["components"]) == (
        "bwn-own_loss", "short", "trained", "layers",
    )  # fmt: skip
    assert found["seeds"].keys() == {"0", "2"}
    for seed, scores in found["seeds"].items():
        assert [scores[name] for name in SCORES] == pytest.approx(means(sums[int(seed)]))
        assert scores["versus_full_precision"] == differences(
            sums[int(seed)], sums_of(0, better=1.5)
        )
    mean = (sums[0] + sums[2]) / 2
    assert [found["mean"][name] for name in SCORES] == pytest.approx(means(mean))
    # the interval of the pooled sentences, or a little wider; its middle is the same
    for name, pooled in differences(mean, sums_of(0, better=1.5)).items():
        versus = found["versus_full_precision"][name]
        assert versus["value"] == pytest.approx(pooled["value"])
        width = pooled["high"] - pooled["low"]
        assert 0.99 * width <= versus["high"] - versus["low"] <= 1.2 * width
    # each seed is compared with the same seed of ours, of which there is no third
    against = found["seeds"]["0"]["versus_bitmaps_layers"]
    assert against == differences(sums[0], sums_of(0, better=1))
    assert found["seeds"]["2"]["versus_bitmaps_layers"] is found["versus_bitmaps_layers"] is None
    finished(runs / "short" / "bitmaps-layers-2", sums_of(0, better=1.4), seed=2)
    third = differences(sums[2], sums_of(0, better=1.4))
    assert result_of(runs, "bwn-own_loss")["versus_bitmaps_layers"]["mrr"] == pytest.approx(
        {name: (against["mrr"][name] + third["mrr"][name]) / 2 for name in ("value", "low", "high")}
    )
    # what belongs to one seed is not said of the line
    assert found["command"] == "python train.py experiment=ptb_short 'loss=a b'"
    assert (
        not {"seed", "status", "error", "format", "perplexity", "known", "inference_ms", *SCORES}
        & found.keys()
    )
    assert found["memory_mib"] == 12.25


def test_a_line_is_compared_with_itself_as_no_difference(runs: Path) -> None:
    found = result_of(runs, "bitmaps-layers")["versus_bitmaps_layers"]
    assert {interval["value"] for interval in found.values()} == {0.0, 1.0}


def test_without_our_own_recipe_there_is_nothing_to_compare_a_line_with(runs: Path) -> None:
    for seed in (0, 1):
        (runs / "short" / f"bitmaps-layers-{seed}" / "metrics.json").unlink()
    assert result_of(runs, "bwn-own_loss")["versus_bitmaps_layers"] is None
    results = runs.parent / "results"
    end_of_teacher(runs, results)
    assert "bwn-own_loss" in markdown(results)


def test_a_line_of_which_no_seed_ended_is_not_written(runs: Path) -> None:
    write_line("full_precision", runs, "short", runs.parent / "results")
    assert not (runs.parent / "results").exists()


def test_the_runs_of_a_line_are_no_others(runs: Path) -> None:
    finished(runs / "short" / "bitmaps-layers-01-0", sums_of(0, better=5))  # of another line
    ended = runs_of("bitmaps-layers", runs / "short")
    assert [run.name for run in ended] == ["bitmaps-layers-0", "bitmaps-layers-1"]


def test_seeds_that_were_run_elsewhere_stay(runs: Path) -> None:
    together = result_of(runs, "bwn-own_loss")
    elsewhere = runs.parent / "elsewhere"
    for name in ("bitmaps-layers", "bwn-own_loss"):
        shutil.copytree(runs / "short" / f"{name}-0", elsewhere / "short" / f"{name}-0")
        shutil.rmtree(runs / "short" / f"{name}-0")
    shutil.copytree(runs / "teacher", elsewhere / "teacher")
    shutil.rmtree(runs.parent / "results")
    assert result_of(runs, "bwn-own_loss")["seeds"].keys() == {"2"}
    write_line("bwn-own_loss", elsewhere, "short", runs.parent / "results")
    again = json.loads((runs.parent / "results" / "short" / "bwn-own_loss.json").read_text())
    assert again == together
    # what was run is told by the first seed, wherever the last one written was run
    assert result_of(runs, "bwn-own_loss") == together
    # nor is the comparison with ours lost where ours is not
    shutil.rmtree(elsewhere / "short" / "bitmaps-layers-0")
    write_line("bwn-own_loss", elsewhere, "short", runs.parent / "results")
    kept = json.loads((runs.parent / "results" / "short" / "bwn-own_loss.json").read_text())
    assert kept["seeds"] == together["seeds"]
    assert kept["seeds"]["0"]["versus_bitmaps_layers"] is not None


def end_of_teacher(runs: Path, results: Path) -> None:
    teacher = read_metrics(runs / "teacher")
    results.mkdir(exist_ok=True)
    text = json.dumps({"mean": {name: teacher[name] for name in SCORES}})
    (results / "teacher.json").write_text(text, encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def test_the_table_has_a_line_each_the_lowest_cross_entropy_first(runs: Path) -> None:
    results = runs.parent / "results"
    end_of_teacher(runs, results)
    finished(runs / "short" / "full_precision-0", sums_of(0, better=1.4))
    finished(runs / "short" / "bitmaps-layers-2", sums_of(0, better=1.2), seed=2)
    for name in ("bwn-own_loss", "full_precision", "bitmaps-layers"):
        write_line(name, runs, "short", results)
    text = markdown(results)
    heading, rule, teacher, *lines = (cells(each) for each in text.splitlines() if each)
    assert {len(each) for each in (heading, rule, teacher, *lines)} == {10}
    assert (heading[0], heading[1], heading[-2:]) == (
        "short",
        "seeds",
        ["CE above bitmaps-layers", "MiB (pseudo)"],
    )
    assert teacher[2:5] == [f"{number:.4f}" for number in means(sums_of(0, better=1.5))]
    assert [line[:2] for line in lines] == [
        ["full_precision", "1"],
        ["bitmaps-layers", "3"],
        ["bwn-own_loss", "2"],
    ]
    losses = [float(line[2].split()[0]) for line in lines]
    assert losses == sorted(losses)
    assert [" to " in line[2] for line in lines] == [
        False,
        True,
        True,
    ]  # where there are several seeds
    assert [bool(line[8]) for line in lines] == [
        True,
        False,
        True,
    ]  # ours is not compared with itself
    for line in lines:
        found = json.loads((results / "short" / f"{line[0]}.json").read_text())
        versus = found["versus_full_precision"]
        ce, accuracy, mrr = (
            versus[name] for name in ("cross_entropy", "accuracy_ratio", "mrr_ratio")
        )
        assert [cell.split()[0] for cell in line[2:5]] == [
            f"{found['mean'][name]:.4f}" for name in SCORES
        ]
        if len(seeds := [seed["cross_entropy"] for seed in found["seeds"].values()]) > 1:
            assert line[2].endswith(f" ({min(seeds):.4f} to {max(seeds):.4f})")
        assert line[5] == f"{ce['value']:+.3f} ({ce['low']:+.3f} to {ce['high']:+.3f})"
        assert line[6].startswith(
            f"{100 * accuracy['value']:.1f}% ({100 * accuracy['low']:.1f}% to "
        )
        assert line[7].startswith(f"{100 * mrr['value']:.1f}% (")
        assert line[9] == "12.2"


def test_budgets_have_tables_of_their_own(runs: Path) -> None:
    results = runs.parent / "results"
    end_of_teacher(runs, results)
    assert markdown(results) == ""
    (runs / "long").symlink_to(runs / "short")
    for budget in BUDGETS:
        write_line("bitmaps-layers", runs, budget, results)
    firsts = [cells(line)[0] for line in markdown(results).splitlines() if line]
    of_one = ["---", "the teacher, full precision", "bitmaps-layers"]
    assert firsts == ["short", *of_one, "long", *of_one]


def test_the_documents_have_the_tables_of_what_was_measured() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "recipes.md").read_text(encoding="utf-8")
    tables = markdown(docs / "results" / "ptb").strip()
    assert tables.count("\n") > 10
    assert tables in text, "python -m bitmaps.compare table gives others than docs/recipes.md"


def test_sizes_are_drawn_for_what_is_there(runs: Path) -> None:
    results = runs.parent / "results"
    end_of_teacher(runs, results)
    teacher = json.loads((results / "teacher.json").read_text()) | {"memory_mib": 87.5}
    (results / "teacher.json").write_text(json.dumps(teacher), encoding="utf-8")
    sizes = []
    for lines in ((), ("bitmaps-layers",)):
        for line in lines:
            write_line(line, runs, "short", results)
        draw_sizes(results)
        sizes.append((results / "size.png").read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in sizes)
    assert sizes[0] != sizes[1]


# The command


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *arguments])
    main()


def test_a_comparison_runs_what_is_missing_and_writes_every_line(
    tmp_path: Path,
    processes: Callable[..., Processes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = processes(end)
    folder, results = tmp_path / "runs", tmp_path / "results"
    where = ("--folder", str(folder), "--results", str(results), "--parallel", "2", "--seeds", "1")
    chosen = ("--jobs", "bitmaps-layers*", "data.dir=text", "model=bert_base")
    call(monkeypatch, "short", *where, *chosen)
    jobs = [job for job in jobs_of("short", [0]) if job.line.startswith("bitmaps-layers")]
    started = {Path(words[-1].split("=", 1)[1]).name: words for words in fake.arguments}
    assert started.keys() == {"teacher", *(job.name for job in jobs)}
    assert len(fake.arguments) == len(started)
    assert (
        "experiment=ptb" in fake.arguments[0]
    )  # the teacher comes first, and it alone starts from another model
    assert [name for name, words in started.items() if "model=bert_base" in words] == ["teacher"]
    for job in jobs:
        words = started[job.name]
        source = (
            f"checkpoint={folder}/short/{job.of}-0" if job.of else f"model.source={folder}/teacher"
        )
        assert source in words
        assert "data.dir=text" in words
        assert all(override in words for override in job.overrides)
    order = list(started)
    scored = [order.index(job.name) for job in jobs if job.of]
    assert min(scored) > max(
        order.index(job.name) for job in jobs if not job.of
    )  # not before there is a model
    assert {path.stem for path in (results / "short").iterdir()} == {job.line for job in jobs}
    assert json.loads((results / "teacher.json").read_text())["mean"].keys() == set(SCORES)
    assert f"0 of {len(jobs)} jobs are done" in capsys.readouterr().out

    call(monkeypatch, "short", *where, *chosen)
    assert len(fake.arguments) == len(started)  # nothing was run again
    assert f"{len(jobs)} of {len(jobs)} jobs are done" in capsys.readouterr().out
    call(monkeypatch, "table", "--results", str(results))
    printed = {
        cells(line)[0] for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    }
    assert printed == {"short", "---", "the teacher, full precision", *(job.line for job in jobs)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--seeds", "-3"), "--seeds is too small; valid is 1 or more"),
        (("--jobs", "bitmap-*"), "--jobs bitmap-* is none of bitmaps-layers-0, "),
        (
            ("optimizer.lr=1e-3",),
            "bitmaps-layers-embeddings_fp16-0 cannot be run with optimizer.lr=1e-3 checkpoint=",
        ),
        (("limit=0",), "teacher-0 cannot be run with limit=0: limit=0 is too small"),
        (("values=01",), "values=01: values is what the lines of a comparison differ in"),
        (
            ("binarize.components=[ffnn]",),
            "binarize.components is what the lines of a comparison differ in",
        ),
        (("loss.hidden=1",), "loss.hidden is what the lines of a comparison differ in"),
    ],
)
def test_what_a_job_does_not_take_is_said_before_the_first_one(
    tmp_path: Path,
    processes: Callable[..., Processes],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    fake = processes(end)
    with pytest.raises(SystemExit, match=re.escape(message)):
        call(
            monkeypatch,
            "short",
            "--folder",
            str(tmp_path / "runs"),
            "--results",
            str(tmp_path),
            *arguments,
        )
    assert fake.arguments == []


def test_a_folder_that_is_no_run_is_left_as_it_is(
    tmp_path: Path, processes: Callable[..., Processes]
) -> None:
    folder = tmp_path / JOB.name
    folder.mkdir()
    (folder / "model.safetensors").touch()
    fake = processes(end)
    with pytest.raises(InputError, match="is no run: it stays as it is"):
        run(JOB, folder, ["data.dir=x"], threads=1)
    assert (folder / "model.safetensors").is_file()
    assert fake.arguments == []


def test_two_processes_do_not_work_in_one_folder(
    tmp_path: Path, processes: Callable[..., Processes]
) -> None:
    fake = processes(end)
    with (
        FileLock(tmp_path / f".{JOB.name}.lock"),
        pytest.raises(InputError, match="is being worked on by another process"),
    ):
        run(JOB, tmp_path / JOB.name, ["data.dir=x"], threads=1)
    assert fake.arguments == []


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_run_that_was_started_by_hand_and_goes_on_is_left_alone(
    tmp_path: Path, processes: Callable[..., Processes], checkpoint: bool
) -> None:
    folder, fake = tmp_path / JOB.name, processes(end)
    by_hand = RunFolder(folder)
    by_hand.claim("", {})
    if checkpoint:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match="is being worked on by another process"):
        run(JOB, folder, [], threads=1)
    assert (folder / "metrics.json").is_file()
    assert fake.arguments == []
    by_hand.fail(KeyboardInterrupt(), {})
    run(JOB, folder, [], threads=1)
    assert len(fake.arguments) == 1


def test_seeds_that_are_not_asked_for_stay_in_their_lines(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes(end)
    where = (
        "--folder",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path),
        "--jobs",
        "bwn-own_loss-*",
    )
    for seeds in ("3", "1"):
        call(monkeypatch, "short", *where, "--seeds", seeds)
        assert len(json.loads((tmp_path / "short" / "bwn-own_loss.json").read_text())["seeds"]) == 3


def test_a_model_to_be_scored_is_trained_first(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, folder = processes(end), tmp_path / "runs"
    where = ("--folder", str(folder), "--results", str(tmp_path), "--seeds", "1")
    call(monkeypatch, "short", *where, "--jobs", "*embeddings_int8*", "model.dropout=0.1")
    started = {Path(words[-1].split("=", 1)[1]).name: words for words in fake.arguments}
    assert list(started) == ["teacher", "bitmaps-layers-0", "bitmaps-layers-embeddings_int8-0"]
    # which an evaluation would refuse: it is of the training
    assert ["model.dropout=0.1" in words for words in started.values()] == [True, True, False]


def test_runs_with_other_settings_are_not_mixed(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trained = tmp_path / "runs", {"optimizer.lr": 0.5, "of an older version": 1}
    fake = processes(lambda run: finished(run, sums_of(0), seed=1, settings=trained))
    finished(folder / "teacher", sums_of(0))
    finished(folder / "short" / "bwn-own_loss-0", sums_of(0), settings=trained)
    where = (
        "--folder",
        str(folder),
        "--results",
        str(tmp_path),
        "--seeds",
        "2",
        "--jobs",
        "bwn-own_loss-*",
    )
    with pytest.raises(
        SystemExit,
        match=r"bwn-own_loss-0 was run with optimizer\.lr=0\.5, unlike what is asked for",
    ):
        call(monkeypatch, "short", *where)
    assert fake.arguments == []
    call(monkeypatch, "short", *where, "optimizer.lr=0.5")
    assert len(fake.arguments) == 1
    elsewhere = ("--folder", str(tmp_path / "elsewhere"), *where[2:])
    with pytest.raises(
        SystemExit, match=r"bwn-own_loss\.json was run with optimizer\.lr=0\.5, unlike what is"
    ):
        call(monkeypatch, "short", *elsewhere)
    assert len(fake.arguments) == 1


def test_lines_of_two_full_precision_models_are_not_mixed(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, results = processes(end), tmp_path / "results"
    results.mkdir()
    (results / "teacher.json").write_text(json.dumps({"mean": dict.fromkeys(SCORES, 0.5)}))
    finished(tmp_path / "runs" / "teacher", sums_of(0))
    with pytest.raises(
        SystemExit, match=r"results is of another full-precision model than .*: choose another"
    ):
        call(monkeypatch, "short", "--folder", str(tmp_path / "runs"), "--results", str(results))
    assert fake.arguments == []
    call(
        monkeypatch,
        "short",
        "--folder",
        str(tmp_path / "runs"),
        "--seeds",
        "1",
        "--jobs",
        "naive-0",
    )
    assert (
        tmp_path / "runs" / "results" / "short" / "naive.json"
    ).is_file()  # unless told otherwise, beside the runs


def test_a_file_that_is_no_line_is_said_to_be_none(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, file = processes(end), tmp_path / "results" / "short" / "bwn-own_loss.json"
    file.parent.mkdir(parents=True)
    for text in ('{"seeds": {}}', '{"seeds": {"0": {"mrr": 1}}, "settings": {}}'):
        file.write_text(text)
        with pytest.raises(
            SystemExit, match=r"bwn-own_loss\.json is damaged or of another version: there is no "
        ):
            call(
                monkeypatch,
                "short",
                "--folder",
                str(tmp_path / "runs"),
                "--results",
                str(tmp_path / "results"),
            )
    assert fake.arguments == []


def test_a_comparison_ends_in_one_line_where_a_job_fails(
    tmp_path: Path, processes: Callable[..., Processes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = processes(code=1)
    with pytest.raises(SystemExit) as caught:
        call(
            monkeypatch,
            "long",
            "--folder",
            str(tmp_path / "runs"),
            "--results",
            str(tmp_path / "results"),
        )
    assert str(caught.value) == f"error: teacher-0 failed: see {tmp_path / 'runs' / 'teacher.log'}"
    assert len(fake.arguments) == 1  # without a teacher there is nothing to start from


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "budget"),
        (("medium",), "short"),
        (("short", "--seeds", "many"), "many"),
        (("short", "--parallel", "1.5"), "1.5"),
        (("short", "--steps", "3"), "--steps"),
    ],
)
def test_a_bad_command_line_is_told_what_is_wrong(
    arguments: tuple[str, ...],
    message: str,
    processes: Callable[..., Processes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = processes()
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert fake.arguments == []


def test_a_table_of_nothing_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere.* no teacher\.json"):
        call(monkeypatch, "table", "--results", str(tmp_path / "nowhere"))
