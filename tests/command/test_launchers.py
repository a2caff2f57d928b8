"""The sweeper and the launchers that others wrote, as users install them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command.commands import ALONE, HALF, LEVEL, Commands, metrics
from omegaconf import OmegaConf

from bitmaps.jobs.train import Training
from bitmaps.runs.search import runs_below

# SQLAlchemy 1.4 tells optuna 2.10 about 2.0, and optuna hands a list to numpy
pytestmark = pytest.mark.filterwarnings("default")

INTO = "hydra.sweep.dir=s"
OPTUNA = ("train", "-m", "hydra/sweeper=optuna", INTO)
STUDY = (
    *OPTUNA, "hydra.sweeper.n_jobs=1", "hydra.sweeper.storage=sqlite:///s/study.db", "hydra.sweeper.study_name=tiny",
    "hydra.sweeper.sampler.n_startup_trials=4", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "binarize=ffnn", ALONE,
    "packed=false", LEVEL, *HALF,
)  # fmt: skip


@pytest.fixture
def optuna() -> None:
    pytest.importorskip("optuna", reason="hydra-optuna-sweeper is in the extra `launchers`")


def trials() -> list[tuple[str, float | None]]:
    """The state and the value of each trial in the storage."""
    with sqlite3.connect("s/study.db") as storage:
        found = storage.execute(
            "select state, value from trials left join trial_values using (trial_id) order by trial_id"
        )
        return list(found)


def rows() -> list[str]:
    return Path("s/results.md").read_text(encoding="utf-8").splitlines()[2:]


def scores(name: str = "cross_entropy") -> list[float]:
    return [metrics(run)[name] for run in runs_below(Path("s"))]


def best() -> Any:
    return OmegaConf.load("s/optimization_results.yaml").best_value


@pytest.mark.slow
@pytest.mark.usefixtures("optuna")
def test_optuna_finds_the_best_row_and_goes_on_where_it_was(command: Commands) -> None:
    command.ok(*STUDY, "hydra.sweeper.n_trials=10")
    assert len(rows()) == len(scores()) == 10
    assert [state for state, _ in trials()] == ["COMPLETE"] * 10
    assert sorted(value for _, value in trials()) == pytest.approx(sorted(scores()), rel=1e-12)
    assert best() == pytest.approx(min(scores()), rel=1e-12)

    command.ok(*STUDY, "hydra.sweeper.n_trials=2")  # the storage remembers the first ten
    assert len(trials()) == 12
    assert best() == pytest.approx(min(value for _, value in trials()), rel=1e-12)
    assert len(rows()) == len(set(scores())) == 12


@pytest.mark.slow
@pytest.mark.usefixtures("optuna")
def test_a_failed_job_is_a_failed_trial(command: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training.run

    def fail_once(self: Training, *arguments: Any) -> Any:
        if len(list(Path("s").glob("*/metrics.json"))) == 2:
            raise RuntimeError("out of memory")
        return run(self, *arguments)

    monkeypatch.setattr(Training, "run", fail_once)
    more = ("objective=accuracy", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=3")
    code, _, _ = command(*STUDY, *more)
    assert code == 1  # as in any sweep with a failed job
    assert [state for state, _ in trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert best() == max(value for _, value in trials() if value is not None)
    assert (
        sum("out of memory" in row for row in Path("s/results.csv").read_text().splitlines()) == 1
    )


@pytest.mark.slow
@pytest.mark.usefixtures("optuna")
def test_a_study_without_a_finished_trial_has_its_table(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Training, "run", fail)
    code, _, err = command(*STUDY, "hydra.sweeper.n_trials=2")
    assert code == 2
    assert err.splitlines()[-1].startswith("error: ")  # in the words of optuna
    assert sum("| failed |" in row for row in rows()) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("optuna")
def test_a_trial_that_was_done_before_is_not_done_again(command: Commands) -> None:
    choice = (
        "values=choice(pm1)",
        "hydra.sweeper.n_trials=2",
        "hydra.sweeper.n_jobs=2",
        "packed=false",
        ALONE,
        *HALF,
    )
    out = command.ok(*OPTUNA, *choice)
    assert out.count("is done already") == 1
    assert len(rows()) == 1
    assert best() == pytest.approx(scores()[0])


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["hydra.sweeper.direction=maximize"],
            "hydra.sweeper.direction=maximize contradicts objective=cross_entropy, of which less is better; valid is minimize",
        ),
        (["objective=mrr"], "direction=minimize contradicts objective=mrr, of which more is better; valid is maximize"),
        (["hydra.sweeper.direction=[minimize,minimize]"], "direction=minimize,minimize contradicts"),
        (["objective=loss"], "objective=loss is no column of numbers; valid are cross_entropy, accuracy, mrr,"),
        (["objective=inference_ms"], "measure.repeats=0 times nothing"),
    ],
)  # fmt: skip
def test_an_objective_that_cannot_be_is_refused_before_the_first_job(
    command: Commands, options: list[str], message: str
) -> None:
    assert message in command.refused(*OPTUNA, "optimizer.lr=interval(1e-4,1e-2)", *options)
    assert not Path("s").exists()


@pytest.mark.usefixtures("optuna")
def test_a_study_keeps_its_objective(command: Commands) -> None:
    Path("s").mkdir()
    before = {"hydra": {"sweeper": {"study_name": "tiny"}}, "objective": "cross_entropy"}
    OmegaConf.save(OmegaConf.create(before), "s/multirun.yaml")
    err = command.refused(*STUDY, "objective=memory_mib")
    assert "objective=memory_mib is not objective=cross_entropy of the study tiny in s" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "package", "extra", "options"),
    [
        ("submitit_local", "hydra_plugins.hydra_submitit_launcher", "launchers", ()),
        (
            "ray",
            "hydra_plugins.hydra_ray_launcher",
            "ray",
            ("+hydra.launcher.ray.init.num_cpus=1",),
        ),
    ],
)
def test_a_launcher_gives_the_rows_that_jobs_in_turn_give(
    command: Commands,
    monkeypatch: pytest.MonkeyPatch,
    launcher: str,
    package: str,
    extra: str,
    options: tuple[str, ...],
) -> None:
    pytest.importorskip(package, reason=f"{package} is in the extra `{extra}`")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # of the processes to come
    sweep = ("evaluate", "-m", "binarize=none,all", "limit=20")
    command.made("turns", *sweep)
    command.ok(*sweep, INTO, f"hydra/launcher={launcher}", *options)
    written = Path("turns/results.md").read_text(encoding="utf-8")
    assert Path("s/results.md").read_text(encoding="utf-8") == written


def test_a_single_run_refuses_it_too(command: Commands) -> None:
    assert "valid are cross_entropy" in command.refused("evaluate", "objective=loss")
