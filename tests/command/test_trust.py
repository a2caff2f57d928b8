"""A run folder that somebody else made: its configuration runs no code and reads no environment."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command.commands import HALF, SMALL, Commands, composed, metrics
from lightning import Callback
from omegaconf import OmegaConf

from bitmaps.command.saved import (
    check_offered,
    is_offered,
    load_config,
    read_config,
    resolved,
    without_resolvers,
)
from bitmaps.command.schema import Train
from bitmaps.data.tokenizing import tokenizer_of
from bitmaps.errors import InputError
from bitmaps.packed.__main__ import main as pack_main

BEGUN = ("binarize=ffnn", "references=false", *HALF)
GO_ON = ("train", "resume=r", "trainer.max_steps=4")
WRITES = {"_target_": "pathlib.Path.write_text", "_args_": ["harm", "harm"]}


class Mine(Callback):
    """A user's own."""

    made = 0

    def __init__(self) -> None:
        Mine.made += 1


MINE = f"{__name__}.Mine"


@pytest.fixture
def run(command: Commands) -> Commands:
    """A training of two steps in the folder ``r``."""
    command.made("r", "train", *BEGUN)
    return command


def edit(change: Callable[[Any], None], run: Path = Path("r")) -> None:
    """Change the configuration in a run folder, as a stranger would."""
    saved = OmegaConf.load(run / "config.yaml")
    change(saved)
    OmegaConf.save(saved, run / "config.yaml")


def setter(key: str, value: Any) -> Callable[[Any], None]:
    return lambda saved: OmegaConf.update(saved, key, value, merge=False)


@pytest.fixture(scope="module")
def usual() -> str:
    """The configuration of a run, as its folder keeps it."""
    return OmegaConf.to_yaml(composed("train", *SMALL, *BEGUN))


def checked(run: Path, typed: tuple[str, ...] = ()) -> None:
    check_offered(load_config(run, Train, unread=typed), typed, run / "config.yaml")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("callbacks.harm", {"_target_": "torch.load", "f": "harm", "weights_only": False}, None),
        ("callbacks.harm", WRITES, None),
        ("callbacks.best.extra", WRITES, None),  # at every depth
        ("callbacks.best.extra", [{"a": [WRITES]}], "callbacks.best.extra.0"),
        ("callbacks.signs._args_", [WRITES], "callbacks.signs._args_.0._target_"),
        ("callbacks.signs", {"_recursive_": False, "a": WRITES}, "callbacks.signs.a._target_"),
        ("logger", {"_target_": "os.system", "command": "touch harm", "_partial_": True}, None),
        ("logger.settings", {"git_root": "r"}, "logger.settings"),  # which is made into a class
        ("optimizer._target_", "builtins.exec", None),
        ("schedule._target_", "transformers.AutoModel.from_pretrained", None),
        ("schedule._target_", "hydra.utils.instantiate", None),
        ("callbacks.best._target_", "lightning.pytorch.callbacks.model_checkpoint.os.system", None),
        ("callbacks.best._target_", "${text}", "callbacks.best._target_=torch.load"),
        ("callbacks.best._target_", ["torch.load"], None),
    ],
)
def test_code_from_a_folder_is_refused(
    tmp_path: Path, usual: str, key: str, value: Any, named: str | None
) -> None:
    (tmp_path / "config.yaml").write_text(usual, encoding="utf-8")
    checked(tmp_path)
    edit(setter("text", "torch.load"), tmp_path)
    edit(setter(key, value), tmp_path)
    with pytest.raises(InputError, match="is code from outside") as error:
        checked(tmp_path)
    assert (named or key) in str(error.value)


@pytest.mark.slow
def test_a_command_that_goes_on_with_a_run_does_not_run_its_code(run: Commands) -> None:
    edit(setter("callbacks.harm", WRITES))
    err = run.refused(*GO_ON)
    assert "callbacks.harm._target_=pathlib.Path.write_text is code from outside" in err
    assert not Path("harm").exists()
    assert metrics("r")["status"] == "ok"


@pytest.mark.slow
def test_what_the_command_line_repeats_or_removes_is_allowed(run: Commands) -> None:
    edit(setter("callbacks.mine", {"_target_": MINE}))
    err = run.refused(*GO_ON)
    assert f"repeat it: '++callbacks.mine._target_={MINE}'" in err
    made = Mine.made
    run.ok(*GO_ON, f"++callbacks.mine._target_={MINE}")
    assert Mine.made == made + 1
    assert OmegaConf.load("r/config.yaml").callbacks.mine._target_ == MINE
    edit(setter("callbacks.signs._target_", "torch.load"))
    edit(lambda saved: saved.callbacks.pop("mine"))
    run.ok("train", "resume=r", "trainer.max_steps=6", "~callbacks.signs")
    assert Mine.made == made + 1


def test_a_target_that_is_repeated_lets_no_other_in(tmp_path: Path, usual: str) -> None:
    (tmp_path / "config.yaml").write_text(usual, encoding="utf-8")
    edit(setter("callbacks.mine", {"_target_": MINE}), tmp_path)
    typed = ("callbacks.mine._target_",)
    checked(tmp_path, typed)
    edit(setter("callbacks.mine_too", {"_target_": MINE}), tmp_path)
    with pytest.raises(InputError, match=r"callbacks\.mine_too\._target_"):
        checked(tmp_path, typed)


@pytest.mark.parametrize(
    "target",
    [
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
        "lightning.pytorch.loggers.WandbLogger",
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.ReduceLROnPlateau",
        "transformers.get_linear_schedule_with_warmup",
        "transformers.optimization.get_cosine_schedule_with_warmup",
        "bitmaps.training.sign_watch.SignWatch",
    ],
)
def test_what_the_framework_offers_is_allowed(target: str) -> None:
    assert is_offered(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.swa_utils.update_bn",  # a function
        "torch.optim.adamw.Tensor",
        "torch.optim.torch.hub.load",
        "lightning.pytorch.callbacks.lambda_function.Callable",
        "lightning.pytorch.callbacks",
        "lightning.pytorch.callbacks.ModelCheckpoint.__init__",
        "lightning.pytorch.callbacks:ModelCheckpoint",
        "bitmaps.loading.load",
        "bitmaps.training.sign_watch.torch.load",
        "transformers.get_nothing",
        "transformers.optimization.math.exp",
        "bitmaps.",
        "torch.optim..AdamW",
        "",
    ],
)
def test_what_only_looks_like_it_is_not(target: str) -> None:
    assert not is_offered(target)


def test_a_name_elsewhere_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "harm_module.py").write_text("class Harm: pass", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_offered("harm_module.Harm")
    assert "harm_module" not in sys.modules


RESOLVERS = {
    "${oc.env:HOME}": "the resolver oc.env",
    "a ${oc.decode:${oc.env:HOME}}": "the resolver oc.decode",
    "${ hydra:runtime.cwd}": "the resolver hydra",
    "${${seed}:x}": "${${seed}:x}",
    "${seed}$${oc.env:HOME}": "the resolver oc.env",
}


@pytest.mark.parametrize(("value", "resolver"), RESOLVERS.items())
def test_a_resolver_in_a_folder_is_refused_and_named(
    tmp_path: Path, usual: str, value: str, resolver: str
) -> None:
    (tmp_path / "config.yaml").write_text(usual, encoding="utf-8")
    edit(setter("callbacks.best.a", [value]), tmp_path)
    with pytest.raises(InputError) as error:
        load_config(tmp_path, Train)
    assert f"callbacks.best.a.0 uses {resolver}, and" in str(error.value)


@pytest.mark.slow
def test_no_command_reads_the_environment_for_a_folder(
    run: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BITMAPS_SECRET", "hunter2")
    edit(setter("model.name", "${oc.env:BITMAPS_SECRET}"))
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "r", "p"])
    with pytest.raises(SystemExit, match="2"):
        pack_main()
    assert not Path("p").exists()
    packing = capsys.readouterr().err
    for err in (packing, run.refused(*GO_ON), run.refused("evaluate", "checkpoint=r")):
        assert "model.name uses the resolver oc.env" in err
        assert "hunter2" not in err


def test_values_that_make_a_resolver_together_are_refused(tmp_path: Path, usual: str) -> None:
    """``instantiate`` would resolve its arguments once more."""
    (tmp_path / "config.yaml").write_text(usual, encoding="utf-8")
    edit(setter("text", "$"), tmp_path)
    edit(setter("callbacks.best.filename", "${text}{oc.env:HOME}"), tmp_path)
    with pytest.raises(InputError) as error:
        checked(tmp_path)
    assert "callbacks.best.filename resolves to '${oc.env:HOME}', which is no value" in str(
        error.value
    )


@pytest.mark.slow
def test_references_within_the_file_resolve(run: Commands) -> None:
    edit(setter("schedule", {
        "_target_": "transformers.get_linear_schedule_with_warmup", "num_warmup_steps": 0,
        "num_training_steps": "${trainer.max_steps}",
    }))  # fmt: skip
    edit(setter("data.length", "${measure.length}"))
    edit(setter("measure.length", 9))
    run.ok(*GO_ON)
    assert metrics("r")["settings"]["data.length"] == 9
    assert OmegaConf.load("r/config.yaml").schedule.num_training_steps == 4
    run.ok("evaluate", "checkpoint=r", "hydra.run.dir=e", "references=false")
    assert metrics("e")["settings"]["data.length"] == 9


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff", b"${oc.env:HOME}", b"model: 1"])
def test_what_is_no_configuration_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml is no configuration: ") as error:
        load_config(tmp_path, Train)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "references", ["model: {name: '${seed}'}\nseed: '${model.name}'", "model: {name: '${nope}'}"]
)
def test_a_reference_to_nothing_is_named(tmp_path: Path, references: str) -> None:
    (tmp_path / "config.yaml").write_text(references, encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.yaml does not resolve: "):
        resolved(read_config(tmp_path, ()), tmp_path / "config.yaml")


@pytest.mark.slow
def test_a_users_own_resolver_is_kept_as_its_value(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITMAPS_TEXT", "text")
    command.ok("train", *BEGUN, "data.dir='${oc.env:BITMAPS_TEXT}'", "hydra.run.dir=r")
    assert OmegaConf.load("r/config.yaml").data.dir == "text"
    monkeypatch.delenv("BITMAPS_TEXT")
    command.ok(*GO_ON)


def test_a_secret_of_the_logger_stays_out_of_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITMAPS_SECRET", "hunter2")
    own = {
        "logger": {"api_key": "${oc.env:BITMAPS_SECRET}"},
        "a": ["${b}", "${oc.env:BITMAPS_SECRET}"],
        "b": 1,
    }
    kept = OmegaConf.to_container(without_resolvers(OmegaConf.create(own)))
    assert kept == own | {"a": ["${b}", "hunter2"]}


@pytest.mark.slow
def test_a_stopped_job_of_a_sweep_goes_on_from_what_is_typed(command: Commands) -> None:
    """Its folder decides nothing but whether it is the same job."""
    sweep = ("train", "-m", "seed=0", *BEGUN, "hydra.sweep.dir=s")
    command.made("s", *sweep[:-1])
    (job,) = (path.parent for path in Path("s").glob("*/metrics.json"))
    state = job / "metrics.json"
    state.write_text(state.read_text().replace('"ok"', '"failed"'), encoding="utf-8")
    edit(setter("callbacks.best.extra", "${oc.env:HOME}"), job)
    code, _, err = command(*sweep)
    assert code == 1
    assert "callbacks.best.extra uses the resolver oc.env" in err


@pytest.mark.slow
def test_every_command_names_a_tokenizer_that_is_not_there(command: Commands) -> None:
    """A BERT without ``model_type`` is one nevertheless."""
    shutil.copytree("model", "m")
    config = Path("m/config.json")
    values = json.loads(config.read_text(encoding="utf-8"))
    del values["model_type"]
    config.write_text(json.dumps(values), encoding="utf-8")
    command.ok("evaluate", "model.source=m", "binarize=none", "hydra.run.dir=e")
    tokenizer_of.cache_clear()
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (Path("m") / name).unlink()
    for name in ("train", "evaluate"):
        err = command.refused(name, "model.source=m", "binarize=ffnn")
        assert "m holds no tokenizer" in err
