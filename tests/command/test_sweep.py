"""Sweeps: their table, and what becomes of a sweep that is started again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command.commands import (
    ALONE,
    LEVEL,
    SHORT,
    SMALL,
    TIMED,
    Commands,
    assert_sums_give,
    composed,
    contents,
    metrics,
    read,
    rows_of,
    sums_of,
)
from filelock import FileLock
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from bitmaps.command.overrides import job_folder
from bitmaps.command.sweep import digest, jobs_of
from bitmaps.jobs.evaluate import Evaluation
from bitmaps.scoring import display
from bitmaps.training.module import MaskedLanguageModel

TWO = ("evaluate", "-m", "binarize=none,all", "limit=20")
TRAINED = ("train", "-m", "binarize=ffnn", ALONE, LEVEL, *SHORT)
INTO = "hydra.sweep.dir=s"


def job(*overrides: str, usual: tuple[str, ...] = SMALL) -> Path:
    """The folder of a job in the sweep ``s``. Hydra writes false as False."""
    found = [one.replace("=false", "=False") for one in (*overrides, *usual)]
    return Path("s") / job_folder(found)


def results() -> str:
    return Path("s/results.md").read_text(encoding="utf-8")


def files(folder: Path) -> dict[Path, Any]:
    """What a run wrote, and when. Its log says each time that it was done already."""
    return {path: found for path, found in contents(folder).items() if path.suffix != ".log"}


def table(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith(("┃", "│"))]


def test_a_line_of_progress_says_how_far_the_sweep_is(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display.Lines, "every_s", 0.0)
    out = command.ok(*TWO, INTO)
    lines = [line for line in out.splitlines() if "scoring " in line and "batch" in line]
    found = [re.search(r"; (\d) of 2 jobs done", line) for line in lines]
    assert [one and one[1] for one in found] == sorted(one[1] for one in found if one)
    assert {one[1] for one in found if one} == {"0", "1"}
    out = command.ok("evaluate", "limit=20", "hydra.run.dir=alone")
    assert "batch" in out
    assert "jobs done" not in out


@pytest.mark.parametrize(
    ("sweeper", "overrides", "jobs"),
    [
        ("BasicSweeper", ["binarize=none,all", "seed=1"], 2),
        ("BasicSweeper", ["binarize=none,all", "values=01,pm1", "seed=range(5)"], 20),
        ("BasicSweeper", ["seed=choice(1,2,3)"], 3),
        ("OptunaSweeper", ["seed=1,2"], 7),
        ("AnotherSweeper", ["seed=1,2"], None),
    ],
)
def test_the_jobs_of_a_sweep_are_counted(
    sweeper: str, overrides: list[str], jobs: int | None
) -> None:
    trials = {"n_trials": 7} if sweeper == "OptunaSweeper" else {}
    hydra = {"sweeper": {"_target_": f"a.{sweeper}", **trials}, "overrides": {"task": overrides}}
    assert jobs_of(OmegaConf.create(hydra)) == jobs


def test_it_ends_with_nine_rows_in_the_order_of_the_blog_post(command: Commands) -> None:
    groups = "layers,layers_except_ffnn,none,all,layers_except_attention"
    sweep = ("-m", f"binarize={groups}", "values=pm1,01", "limit=20")
    out = command.ok("evaluate", *sweep, INTO)
    lines = results().splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in lines]
    ordered = ("all", "layers", "layers_except_attention", "layers_except_ffnn")
    assert rows == [
        ["none", ""],
        *([group, values] for group in ordered for values in ("{0,1}", "{-1,1}")),
    ]
    assert Path("s/results.png").stat().st_size > 0
    assert len(Path("s/results.csv").read_text(encoding="utf-8").splitlines()) == 10
    assert "layers_except_ffnn" in out
    assert out.endswith("s: results.html, results.csv, results.md, results.png\n")
    page = Path("s/results.html").read_text(encoding="utf-8")
    for folder in (path.parent for path in Path("s").glob("*/metrics.json")):
        (analysis,) = read(folder, "analysis").values()
        assert analysis["verdict"].replace("'", "&#39;") in page


def test_a_job_lies_in_a_folder_named_by_its_overrides(command: Commands) -> None:
    command.made("s", *TWO)
    folders = {path.name for path in Path("s").iterdir() if path.is_dir()}
    assert folders == {
        f"binarize-{group}+data-text+data.dir-text+data.eval_batch_size-16+limit-20"
        "+model-hub+model.source-model"
        for group in ("none", "all")
    }


def test_jobs_in_folders_of_folders_are_one_sweep(command: Commands) -> None:
    into = (INTO, "hydra.sweep.subdir='${binarize.name}/${values}/job'")
    sweep = ("evaluate", "-m", "binarize=none", "limit=20", "values=01,pm1", *into)
    command.ok(*sweep)
    found = sorted(path.parent for path in Path("s").rglob("metrics.json"))
    assert found == [Path("s/none") / values / "job" for values in ("01", "pm1")]
    assert len(results().splitlines()) == 2 + 1  # both are the same row, which is scored once
    assert command.ok(*sweep).count("is done already") == 2
    err = command.refused("evaluate", "-m", "binarize=ffnn", "limit=30", *into)
    assert "limit=30 is not comparable with limit=20 of s/none" in err
    assert not Path("s/ffnn").exists()


@pytest.mark.slow
def test_parameters_of_the_sweeper_are_as_if_they_were_typed(command: Commands) -> None:
    for name, params in (
        ("ours", {"binarize": "none,all", "limit": 20, "measure": "none"}),
        ("none", {"binarize": "none,all", "logger": "csv,wandb"}),
    ):
        file = Path("conf/experiment") / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        yaml = OmegaConf.to_yaml(OmegaConf.create({"hydra": {"sweeper": {"params": params}}}))
        file.write_text(f"# @package _global_\n{yaml}", encoding="utf-8")
    sweep = ("evaluate", "-m", "--config-dir=conf", INTO)
    command.ok(*sweep, "experiment=ours")
    assert len(list(Path("s").glob("*/metrics.json"))) == 2
    assert command.ok(*sweep, "experiment=ours").count("is done already") == 2
    assert "logger changes no score" in command.refused(*sweep, "experiment=none")


def test_every_trained_run_has_a_row(command: Commands) -> None:
    out = command.ok("train", "-m", "optimizer.lr=1e-3,5e-4", INTO, *SHORT)
    table = "".join(line for line in out.splitlines() if line.startswith("│"))
    assert table.count("trained") == 2
    assert table.count("unbinarized") == 1


# Duplicates


def test_jobs_of_one_row_are_scored_once(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored, run = [], Evaluation.run

    def counted(self: Evaluation, *arguments: Any) -> Any:
        scored.append(self.config.values)
        return run(self, *arguments)

    monkeypatch.setattr(Evaluation, "run", counted)
    command.ok("evaluate", "-m", "binarize=none", "values=01,pm1", "scale=none,row", INTO)
    assert scored == ["01"]
    options = [(values, scale) for values in ("01", "pm1") for scale in ("none", "row")]
    folders = [job("binarize=none", f"values={v}", f"scale={s}") for v, s in options]
    first = folders[0]
    for folder in folders:
        assert metrics(folder)["status"] == "ok"
        assert rows_of(folder).keys() == {"unbinarized"}
        assert read(folder, "analysis") == read(first, "analysis")
        assert_sums_give(sums_of(folder)["unbinarized"], metrics(folder))
        assert metrics(folder)["cross_entropy"] == metrics(first)["cross_entropy"]
    commands = [metrics(folder)["command"] for folder in folders]
    assert "values=pm1 scale=row" in commands[-1]
    assert len(set(commands)) == 4
    assert len(results().splitlines()) == 3


def test_a_word_table_in_one_bit_has_a_row_for_each_value_set(command: Commands) -> None:
    options = ("binarize=none", "embeddings=bit")
    command.ok("evaluate", "-m", *options, "values=01,pm1", INTO)
    command.ok("evaluate", *options, "values=pm1", "hydra.run.dir=r")
    zeros, signs = (metrics(job(*options, f"values={v}"))["cross_entropy"] for v in ("01", "pm1"))
    assert signs == metrics("r")["cross_entropy"]
    assert zeros != signs


# Started again


def test_a_finished_sweep_is_left_alone(command: Commands) -> None:
    out = command.ok(*TWO, INTO)
    before, shown = (
        [files(job(f"binarize={name}", "limit=20")) for name in ("none", "all")],
        table(out),
    )
    assert len(shown) == 3
    again = command.ok(*TWO, INTO)
    assert before == [files(job(f"binarize={name}", "limit=20")) for name in ("none", "all")]
    assert table(again) == shown
    assert again.count("is done already") == 2


@pytest.mark.parametrize("other", [TIMED, ["logger=tensorboard"], ["analysis=true"]])
def test_what_changes_no_score_makes_no_other_job(
    command: Commands, other: tuple[str, ...]
) -> None:
    command.made("s", *TWO)
    before = files(job("binarize=all", "limit=20"))
    command.ok(*TWO, *other, INTO)
    assert files(job("binarize=all", "limit=20")) == before
    assert len(list(Path("s").glob("*/metrics.json"))) == 2


def test_jobs_may_be_added(command: Commands) -> None:
    command.made("s", *TWO)
    before = files(job("binarize=all", "limit=20"))
    command.ok("evaluate", "-m", "binarize=none,all,layers", "limit=20", INTO)
    assert files(job("binarize=all", "limit=20")) == before
    assert len(results().splitlines()) == 5
    command.ok("evaluate", "-m", "binarize=ffnn", "limit=20", INTO)  # beside those that are there
    assert len(results().splitlines()) == 6


@pytest.fixture
def snapshots(command: Commands, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int]]:
    """A finished training of the sweep ``whole``; beside it ``stopped0`` and ``stopped3``, with the
    folder as a kill before step 0 or 3 would leave it. And the steps that were trained since."""
    steps, step = list[int](), MaskedLanguageModel.training_step
    folder = job("binarize=ffnn", ALONE, LEVEL, *SHORT).name

    def observed(self: MaskedLanguageModel, *arguments: Any) -> Any:
        done = self.trainer.global_step
        if done in (0, 3) and not Path(f"stopped{done}").exists():
            shutil.copytree(f"whole/{folder}", f"stopped{done}/{folder}")
        steps.append(done)
        return step(self, *arguments)

    monkeypatch.setattr(MaskedLanguageModel, "training_step", observed)
    command.ok(*TRAINED, "hydra.sweep.dir=whole")
    assert steps == [0, 1, 2, 3]
    steps.clear()
    return Path("whole") / folder, steps


def test_a_stopped_job_goes_on_from_its_checkpoint_or_starts_again(
    command: Commands, snapshots: tuple[Path, list[int]]
) -> None:
    whole, steps = snapshots
    for stopped, expected in (("stopped3", [2, 3]), ("stopped0", [0, 1, 2, 3])):
        folder = Path(stopped) / whole.name
        assert metrics(folder)["status"] == "running"
        assert (folder / "checkpoints/last.ckpt").exists() is (stopped == "stopped3")
        command.ok(*TRAINED, f"hydra.sweep.dir={stopped}")
        assert steps == expected
        steps.clear()
        after, before = metrics(folder), metrics(whole)
        names = ("cross_entropy", "accuracy", "mrr", "steps", "best_step", "status", "command")
        assert {n: after[n] for n in names} == {n: before[n] for n in names}
        command.ok(*TRAINED, f"hydra.sweep.dir={stopped}")
        assert not steps  # it is done


def test_a_job_that_was_killed_before_it_had_a_state_starts_again(command: Commands) -> None:
    command.made("s", *TWO)
    folder = job("binarize=all", "limit=20")
    scored = metrics(folder)["cross_entropy"]
    (folder / "metrics.json").unlink()
    command.ok(*TWO, INTO)
    assert metrics(folder)["cross_entropy"] == scored


def test_a_stopped_job_under_the_old_name_of_a_class_goes_on(
    command: Commands, snapshots: tuple[Path, list[int]]
) -> None:
    path = Path("stopped3") / snapshots[0].name / "config.yaml"
    text, present = path.read_text(encoding="utf-8"), "bitmaps.training.sign_watch.SignWatch"
    assert present in text
    path.write_text(text.replace(present, "bitmaps.diagnostics.SignWatch"), encoding="utf-8")
    command.ok(*TRAINED, "hydra.sweep.dir=stopped3")
    assert snapshots[1] == [2, 3]
    assert OmegaConf.load(path).callbacks.signs._target_ == present


@pytest.fixture
def broken(command: Commands) -> Callable[[], None]:
    """Models that cannot be scored: ``broken``, and ``nowhere`` which is not there. Call to repair
    both."""
    shutil.copytree("model", "broken")
    tensors = load_file("broken/model.safetensors")
    tensors["bert.encoder.layer.1.intermediate.dense.weight"][0, 0] = float("nan")
    save_file(tensors, "broken/model.safetensors", metadata={"format": "pt"})

    def repair() -> None:
        for name in ("broken", "nowhere"):
            shutil.rmtree(name, ignore_errors=True)
            shutil.copytree("model", name)

    return repair


def test_a_failed_job_is_a_row_and_is_retried_alone(
    command: Commands, broken: Callable[[], None]
) -> None:
    here = Path.cwd()
    sweep = ("evaluate", "-m", f"model.source=model,{here}/broken,{here}/nowhere", INTO)
    code, out, err = command(*sweep)
    assert code == 1
    assert "failed" in out
    assert "nowhere" in err
    assert results().count("| failed |") == 2
    usual = tuple(one for one in SMALL if not one.startswith("model.source"))
    names = ("model", f"{here}/broken", f"{here}/nowhere")
    jobs = [job(f"model.source={name}", usual=usual) for name in names]
    assert [metrics(folder)["status"] for folder in jobs] == ["ok", "failed", "failed"]
    assert "intermediate.dense.weight holds NaN" in metrics(jobs[1])["error"]
    assert "nowhere" in metrics(jobs[2])["error"]
    before = files(jobs[0])
    broken()
    command.ok(*sweep)
    assert [metrics(folder)["status"] for folder in jobs] == ["ok"] * 3
    assert files(jobs[0]) == before
    assert "| failed |" not in results()


def test_a_job_whose_checkpoint_was_not_there_is_retried(trained: Commands) -> None:
    sweep = ("evaluate", "-m", "checkpoint=r,later", ALONE, INTO)
    assert trained(*sweep)[0] == 1
    folders = [job(f"checkpoint={name}", ALONE, usual=()) for name in ("r", "later")]
    assert [metrics(folder)["status"] for folder in folders] == ["ok", "failed"]
    before = files(folders[0])
    shutil.copytree("r", "later")
    trained.ok(*sweep)
    assert files(folders[0]) == before
    assert metrics(folders[1])["cross_entropy"] == metrics(folders[0])["cross_entropy"]


def test_a_job_that_another_process_works_on_is_left_to_it(command: Commands) -> None:
    command.made("s", *TWO)
    folder = job("binarize=all", "limit=20")
    with FileLock(folder / ".lock"):
        *_, err = command("evaluate", "-m", "binarize=all,layers", "limit=20", INTO)
    assert f"{folder} is in use by another process" in err
    assert metrics(job("binarize=layers", "limit=20"))["status"] == "ok"
    assert metrics(folder)["status"] == "ok"


# What does not belong into a sweep


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("limit=30",), "limit=30 is not comparable with limit=20 of "),
        (("limit=20", "mask_seed=7"), "mask_seed=7 is not comparable with mask_seed=481 of "),
        (("limit=20", "data.split=test"), "split=test is not comparable with split=validation"),
        (("limit=20", "data.dir=new"), "data=new is not comparable with data=text of "),
    ],
)
def test_another_text_is_refused_and_leaves_nothing(
    command: Commands, other: tuple[str, ...], message: str
) -> None:
    command.made("s", *TWO)
    shutil.copytree("text", "new")
    there, shown = set(Path("s").iterdir()), results()
    err = command.refused("evaluate", "-m", "binarize=none,all", *other, INTO)
    assert message in err
    assert " of s/binarize-" in err
    assert set(Path("s").iterdir()) == there
    assert results() == shown
    command.ok("evaluate", "-m", "binarize=ffnn", "limit=20", INTO)  # is still possible


def test_a_sweep_may_go_over_several_texts(command: Commands) -> None:
    command.made("s", *TWO)
    out = command.ok("evaluate", "-m", "binarize=none", "limit=20,30", INTO)
    assert metrics(job("binarize=none", "limit=30"))["status"] == "ok"
    assert "not comparable: scored on limit 30" in " ".join(out.split())


def test_another_configuration_under_the_same_name_is_refused(command: Commands) -> None:
    command.made("s", *TWO)
    folder = job("binarize=all", "limit=20")
    config = OmegaConf.load(folder / "config.yaml")
    config.seed = 3
    OmegaConf.save(config, folder / "config.yaml")
    before = files(folder)
    err = command.refused(*TWO, INTO)
    assert f"{folder} holds a job with another configuration: choose another" in err
    assert files(folder) == before


@pytest.mark.parametrize("swept", ["measure=none,default", "logger=csv,tensorboard"])
def test_going_over_what_changes_no_score_is_refused(command: Commands, swept: str) -> None:
    err = command.refused("evaluate", "-m", swept, INTO)
    assert f"{swept.split('=')[0]} changes no score: a sweep over it would repeat one job" in err
    assert not Path("s").exists()


def test_a_number_that_hydra_writes_otherwise_is_no_sweep_over_it(command: Commands) -> None:
    command.ok("evaluate", "-m", "binarize=none", "measure.budget_s=1e1", "limit=20", INTO)


def test_a_run_is_not_resumed_as_a_job(trained: Commands) -> None:
    code, _, err = trained("train", "-m", "resume=r", INTO)
    assert code == 1
    assert "a run is resumed in its own folder, r: leave out hydra.run.dir, and -m" in err


def test_a_table_that_cannot_be_made_ends_the_command_with_1(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.made("s", *TWO)

    def fail(folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("bitmaps.launch.show_sweep", fail)
    code, out, _ = command(*TWO, INTO)
    assert code == 1
    assert "the table of the sweep could not be made" in out


@pytest.mark.slow
def test_jobs_side_by_side_give_the_same_rows(command: Commands) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command.made("s", *TWO)
    command.ok(*TWO, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=p")
    shown = Path("p/results.md").read_text(encoding="utf-8")
    assert shown == results()
    command.ok(*TWO, "hydra/launcher=joblib", "hydra.sweep.dir=p")
    assert Path("p/results.md").read_text(encoding="utf-8") == shown
    there = set(Path("p").iterdir())
    another = ("evaluate", "-m", "binarize=none,all", "limit=30", "hydra.sweep.dir=p")
    assert "limit=30 is not" in command.refused(*another, "hydra/launcher=joblib")
    assert set(Path("p").iterdir()) == there


# The same job


def same(command: str, one: str, other: str) -> bool:
    """Whether two choices, each beside the same others, are one job."""
    first, second = (digest(composed(command, *(choice.split()))) for choice in (one, other))
    return first == second


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("measure=none", "measure=default"),
        ("logger=csv", "logger=wandb"),
        ("analysis=true", "analysis=false"),
        ("data=ptb data.dir=/a", "data=ptb data.dir=/b"),
        ("model=hub model.source=/a/b/c", "model=hub model.source=/d/e/f"),
    ],
)
def test_it_is_the_same_job(one: str, other: str) -> None:
    assert same("train", one, other)
    assert same("evaluate", one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("data=text data.dir=/a", "data=text data.dir=/b"),
        ("model=hub model.source=me/bert", "model=hub model.source=you/bert"),
        ("seed=0", "seed=1"),
        ("scale=row", "scale=none"),
        ("trainer.precision=32-true", "trainer.precision=bf16-mixed"),
    ],
)
def test_it_is_another_job(one: str, other: str) -> None:
    assert not same("train", one, other)
    assert not same("evaluate", one, other)
