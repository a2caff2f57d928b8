"""How a command ends: its errors, its exit code, and the folder that it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command.commands import HALF, Commands, contents, metrics, read

from bitmaps import __version__, load
from bitmaps.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("evaluate", ["binarize=fnn"], "layers_except_attention"),
        ("evaluate", ["seed=abc"], "abc"),
        ("evaluate", ["seed=-1"], "seed=-1"),
        ("evaluate", ["data.dir=/no/such/folder"], "/no/such/folder"),
        ("evaluate", ["data=wiki", "data.dir=/x"], "only data=text and data=ptb read it"),
        ("evaluate", ["data.path=me/text"], "only data=hub reads it"),
        ("evaluate", ["binarize=[embeddings,ffnn]"], "'binarize.components=[embeddings,ffnn]'"),
        ("evaluate", ["model.source=/no/such/model"], "/no/such/model"),
        ("evaluate", ["model.adapter=nosuch"], "nosuch"),
        ("evaluate", [f"model.sha256={'0' * 64}"], "SHA-256"),
        ("evaluate", ["trainer.accelerator=abacus"], "abacus"),
        ("evaluate", ["data.length=65"], "64 positions"),
        ("evaluate", ["checkpoint=nowhere"], "nowhere"),
        ("evaluate", ["text=''"], "text='' is empty"),
        ("evaluate", ["text='the cat sat'"], "put [MASK] where"),
        ("train", [f"text='{'the ' * 70}[MASK]'"], "the model's 64 positions"),
        ("train", ["loss=best"], "common"),
        ("train", ["binarize.scope=all"], "matrices"),
        ("train", ["optimizer.lr=-1"], "-1"),
        ("train", ["optimizer._target_=torch.optim.Adamw"], "Adamw"),
        ("train", ["resume=nowhere"], "nowhere"),
        (
            "train",
            ["trainer.strategy=ddp_spawn", "trainer.devices=2"],
            "trainer.strategy=ddp_spawn is not supported",
        ),
        ("evaluate", ["trainer.strategy=ddp_fork", "trainer.devices=2"], "valid are auto, ddp"),
        (
            "train",
            ["binarize=1"],
            "binarize=1 names no option of binarize; valid are all, attention",
        ),
        ("train", ["-m", "values=1,2"], "values=1,2 names no option of values; valid are 01, pm1"),
        (
            "train",
            ["data.lenght=3"],
            "there is no data.lenght; did you mean data.length or measure.length? valid are data.name",
        ),
        ("train", ["binarize"], "binarize cannot be read: missing EQUAL"),
        ("train", ["optimizer.lr=${nope}"], "optimizer.lr: Interpolation key 'nope' not found"),
        ("train", ["optimizer.lr=inf"], "optimizer.lr=inf is no finite number"),
        ("train", ["callbacks.signs.every={a:{b:1}}"], "SignWatch"),
        ("train", ["callbacks.best.monitor=nope", *HALF], "nope"),
        ("train", ["optimizer.weight_decay=1e308", *HALF], "training diverged: at step "),
        ("train", ["hydra.run.dir="], "hydra.run.dir is empty"),
        ("evaluate", ["logger._target_=1"], "logger._target_=1 is no class"),
        ("evaluate", ["logger.name=../x"], "logger.name=../x is no name"),
        ("evaluate", ["checkpoint="], "checkpoint is empty"),
        ("evaluate", ["--nope"], "unrecognized arguments: --nope"),
        ("train", ["trainer=fsdp", "trainer.compile=true"], "fsdp takes only false"),
        ("train", ["-m", "trainer.devices=2", "seed=0,1"], "multirun"),
        ("train", ["-m", "trainer=ddp", "trainer.accelerator=cpu", "seed=0,1"], "multirun"),
    ],
)
def test_bad_input_ends_in_one_clear_error(
    command: Commands, name: str, overrides: list[str], message: str
) -> None:
    assert message in command.refused(name, *overrides)
    assert not list(Path().rglob("rows.json"))
    assert not list(Path().rglob("seed-*"))  # nor a folder for a job of a sweep
    assert not list(Path().glob("*.log"))


def test_a_user_may_see_the_traceback_of_hydra(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, _, err = command("evaluate", "seed=abc")
    assert code == 1
    assert "Traceback" in err
    assert "Value 'abc' of type 'str' could not be converted to Integer" in err


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_version_is_that_of_the_package(command: Commands, name: str) -> None:
    assert command(name, "--version") == (0, f"bitmaps {__version__}\n", "")


def test_a_command_names_its_own_options_for_a_model_that_is_not_there(command: Commands) -> None:
    found = command.refused("evaluate", "model=hub", "model.source=no_such/model")
    assert "Without the Hub use model=minilm" in found
    with pytest.raises(InputError, match=r"'no_such/model' is not a folder here.*Error\)$"):
        load("no_such/model")


def test_a_home_is_a_tilde(trained: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    message = trained.refused("train", "resume=~/r", "seed=3")  # which run that is has been found
    assert "seed cannot change when a run is resumed" in message
    message = trained.refused("evaluate", "checkpoint='~/r'", "values=01")
    assert f"checkpoint={Path.cwd()}/r was trained with" in message


def test_a_runs_model_is_the_run(trained: Commands) -> None:
    trained.ok("evaluate", "checkpoint=r/model", "references=false", "hydra.run.dir=e")
    assert metrics("e")["row"] == "trained"
    assert metrics("e")["components"] == "layers"
    message = trained.refused("evaluate", "checkpoint=model")
    assert "score it with model=hub model.source=model" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "model: 3", "r/config.yaml is no configuration: it has no model"),
        ("config.yaml", "a: [", "r/config.yaml is no configuration: while parsing"),
        ("config.yaml", "model: {source: []}", "r/config.yaml is damaged or of another version: "),
        ("metrics.json", "[" * 100_000, "r/metrics.json is not JSON"),
        ("metrics.json", '{"format": 1, "status": 3}', "r/metrics.json is damaged"),
    ],
)
def test_a_mistyped_file_of_a_run_is_named(
    trained: Commands, name: str, content: str, message: str
) -> None:
    Path("r", name).write_text(content, encoding="utf-8")
    assert message in trained.refused("evaluate", "checkpoint=r")


def test_a_run_folder_is_never_overwritten(command: Commands) -> None:
    command.made("r", "evaluate", "binarize=none")
    before = contents("r")
    assert "already holds a run" in command.refused("evaluate", "hydra.run.dir=r", "binarize=all")
    assert {path: found for path, found in contents("r").items() if path in before} == before


def test_a_defect_keeps_its_traceback_and_is_written_down(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*arguments: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("bitmaps.jobs.setup.score", crash)
    code, _, err = command("evaluate", "hydra.run.dir=r")
    assert code == 1
    assert "out of memory" in err
    assert (metrics("r")["status"], metrics("r")["error"]) == (
        "failed",
        "RuntimeError: out of memory",
    )
    assert metrics("r")["components"] == "none"  # a failed run keeps its facts


@pytest.mark.parametrize("observer", ["tracker", "model card", "page"])
def test_an_observer_that_fails_costs_a_warning(
    command: Commands, monkeypatch: pytest.MonkeyPatch, observer: str
) -> None:
    def fail(*arguments: object) -> None:
        assert metrics("r")["status"] == "ok"  # the results are there before anybody looks at them
        raise OSError("no space left")

    place = {
        "tracker": "bitmaps.tracking.tracking.Tracking.summarize",
        "model card": "bitmaps.launch.write_card",
        "page": "bitmaps.launch.write_page",
    }[observer]
    monkeypatch.setattr(place, fail)
    out = command.ok("train", "binarize=ffnn", *HALF, "hydra.run.dir=r")
    warning = f"the results are in r, but its {observer} failed: OSError: no space left"
    assert warning in out.replace(f"{Path.cwd()}/", "")
    assert metrics("r")["status"] == "ok"
    assert [row["row"] for row in read("r", "rows")] == [
        "unbinarized", "naive", "packed", "trained"
    ]  # fmt: skip


@pytest.mark.slow
def test_a_table_needs_nothing_that_draws() -> None:
    code = (
        "import sys, bitmaps.cli, bitmaps.jobs.train, bitmaps.jobs.evaluate, bitmaps.report.comparison;"
        "assert not {'altair', 'vl_convert'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
