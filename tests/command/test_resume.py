"""``train.py resume=<run>``: a run goes on as the run that it was."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import shutil
import signal
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from command.commands import (
    ALONE,
    HALF,
    LEVEL,
    ONE_BIT,
    SHORT,
    STEPS,
    Commands,
    contents,
    metrics,
    scores,
)
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

import bitmaps
from bitmaps.runs.folder import RunFolder
from bitmaps.training.module import MaskedLanguageModel

BEGUN = ("binarize=ffnn", ALONE, LEVEL)  # with HALF the first half, with SHORT all of it
GO_ON = ("train", "resume=r", "trainer.max_steps=4")


def test_it_ends_where_an_uninterrupted_run_does(command: Commands) -> None:
    command.made("whole", "train", *BEGUN, *SHORT)
    command.made("r", "train", *BEGUN, *HALF)
    command.ok(*GO_ON)
    assert metrics("r")["steps"] == 4
    whole, parts = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in ("whole", "r")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert metrics("whole")["cross_entropy"] == metrics("r")["cross_entropy"]


@pytest.mark.slow
def test_every_draw_of_a_step_is_made_again(command: Commands) -> None:
    drops = (
        "binarize=ffnn",
        ALONE,
        LEVEL,
        "model.dropout=0.3",
        "trainer.accumulate_grad_batches=2",
    )
    command.ok("train", *drops, *SHORT, "hydra.run.dir=whole")
    command.ok("train", *drops, *HALF, "hydra.run.dir=r")
    command.ok(*GO_ON)
    assert scores(metrics("whole")) == scores(metrics("r"))
    whole, parts = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in ("whole", "r")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_inputs_are_rounded_from_the_same_step_on(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("binarize=layers", "activations=int6", ALONE, *STEPS, "trainer.max_steps=6")
    middle = (*options, "activations_from=0.5")
    command.ok("train", *middle, "hydra.run.dir=whole")
    with monkeypatch.context() as patched:
        stop_at(4, signal.SIGTERM, patched)  # the first batch that is rounded
        assert command("train", *middle, "hydra.run.dir=r")[0] == 143
    assert torch.load("r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    command.ok("train", "resume=r")
    command.ok("train", *options, "hydra.run.dir=start")
    assert scores(metrics("whole")) == scores(metrics("r")) != scores(metrics("start"))
    whole, parts, start = (
        torch.load(f"{folder}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for folder in ("whole", "r", "start")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], start[name]) for name in whole)


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(command: Commands) -> None:
    stops = (
        "callbacks=early_stopping", "callbacks.early_stopping.patience=1",
        "+callbacks.early_stopping.min_delta=9", "trainer.max_steps=8", *STEPS,
    )  # fmt: skip
    command.ok("train", "binarize=ffnn", ALONE, *stops, "hydra.run.dir=r")
    before = metrics("r")
    assert before["steps"] == 4
    command.ok("train", "resume=r")
    assert scores(metrics("r")) == scores(before)
    assert metrics("r")["steps"] == 4
    command.ok("train", "resume=r", "+callbacks.early_stopping.patience=2")
    assert metrics("r")["steps"] == 6
    command.ok("train", "resume=r", "callbacks=default")
    assert metrics("r")["steps"] == 8


def flip(path: Path) -> None:
    """Flip one bit in the first weights of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    content[record.header_offset + record.file_size // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_last_checkpoint_gives_way_to_the_best(command: Commands) -> None:
    command.made("whole", "train", *BEGUN, *SHORT)
    command.made("r", "train", *BEGUN, *HALF)
    flip(Path("r/checkpoints/last.ckpt"))
    command.ok(*GO_ON)
    (warning,) = (line for line in Path("r/train.log").read_text().splitlines() if "CRC" in line)
    assert "last.ckpt is missing or damaged: bad CRC-32" in warning
    assert warning.endswith("checkpoints/best.ckpt, of step 2")
    assert scores(metrics("whole")) == scores(metrics("r"))
    for name in ("last", "best"):
        flip(Path(f"r/checkpoints/{name}.ckpt"))
    before = contents("r/model") | contents("r/packed")
    err = command.refused("train", "resume=r", "trainer.max_steps=6")
    assert "last.ckpt is missing or damaged" in err
    assert "best.ckpt is missing or damaged" in err
    assert metrics("r")["status"] == "ok"
    assert contents("r/model") | contents("r/packed") == before


def test_a_resumed_run_that_fails_keeps_its_outcome(
    trained: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = ("model", "packed", "metrics.json", "rows.json", "config.yaml", "sentences.npz")
    before = [contents(f"r/{name}") or Path(f"r/{name}").read_bytes() for name in kept]
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "begin", fail)
        code, _, err = trained("train", "resume=r", "trainer.max_steps=6")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "No space left on device; to go on from its last checkpoint: python train.py" in err
    assert before == [contents(f"r/{name}") or Path(f"r/{name}").read_bytes() for name in kept]
    err = trained.refused("train", "resume=r")  # six steps are trained: type them again
    assert "trainer.max_steps=4 is too small" in err
    trained.ok("train", "resume=r", "trainer.max_steps=6")
    assert metrics("r")["steps"] == 6


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_ends_a_training_with_the_command_that_goes_on(
    command: Commands, number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.made("whole", "train", *BEGUN, *SHORT)
    with monkeypatch.context() as patched:
        stop_at(3, number, patched)
        found, out, err = command("train", *BEGUN, *SHORT, "hydra.run.dir=r")
    assert found == code, err
    name = signal.Signals(number).name
    assert out.splitlines()[-1] == (
        f"stopped by {name}; to go on from its last checkpoint: python train.py resume=r"
    )
    assert (metrics("r")["status"], metrics("r")["error"]) == ("failed", f"stopped by {name}")
    command.ok("train", "resume=r")
    assert scores(metrics("whole")) == scores(metrics("r"))


def stop_at(batch: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a signal to this process at the start of a training batch."""
    left, start = itertools.count(1), MaskedLanguageModel.on_train_batch_start

    def stopped(module: MaskedLanguageModel, *arguments: Any) -> None:
        if next(left) == batch:
            os.kill(os.getpid(), number)
        start(module, *arguments)

    monkeypatch.setattr(MaskedLanguageModel, "on_train_batch_start", stopped)


@pytest.mark.slow
def test_a_signal_ends_a_sweep_with_the_table_of_what_is_done(
    command: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ("train", "-m", "seed=0,1,2", "packed=false", *BEGUN, *SHORT, "hydra.sweep.dir=s")
    with monkeypatch.context() as patched:
        stop_at(4 + 3, signal.SIGTERM, patched)
        code, out, _ = command(*sweep)
    assert code == 143
    assert out.splitlines()[-1] == (
        "stopped by SIGTERM: to go on, repeat the command with hydra.sweep.dir=s"
    )
    with Path("s/results.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok", "failed"]
    command.ok(*sweep)
    assert [metrics(job)["status"] for job in sorted(Path("s").glob("*seed-*"))] == ["ok"] * 3


def test_it_has_the_later_model_in_real_bits(command: Commands) -> None:
    command.ok("train", *BEGUN, *HALF, "packed_embeddings=fp32", "hydra.run.dir=r")
    before = Path("r/packed/model.safetensors").read_bytes()
    command.ok(*GO_ON)
    assert Path("r/packed/model.safetensors").read_bytes() != before
    packed, plain = bitmaps.load("r/packed", act="f32"), bitmaps.load("r")
    assert packed.config.bitmaps is not None
    assert packed.config.bitmaps["steps"] == 4
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    torch.testing.assert_close(packed(ids), plain(ids), atol=1e-4, rtol=0)


def test_it_stays_the_run_that_it_was(trained: Commands) -> None:
    for override in (
        "values=01", "loss=tokens", "loss.hidden=3", "embeddings=int8", "mask_sets=2", "references=false", "calibrate=0",
    ):  # fmt: skip
        err = trained.refused("train", "resume=r", override)
        assert f"{override.split('=')[0]} cannot change" in err
    assert metrics("r")["status"] == "ok"


@pytest.mark.parametrize("copied", [False, True])
def test_a_run_that_was_moved_keeps_its_best_model(command: Commands, copied: bool) -> None:
    command.made("old", "train", *BEGUN, *HALF)
    last = Path("old/checkpoints/last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    for state in checkpoint["callbacks"].values():
        if state.get("monitor"):  # so good that no later validation is better
            best, path = torch.tensor(0.0), str(Path("old/checkpoints/best.ckpt").resolve())
            state |= {
                "best_model_score": best,
                "kth_value": best,
                "best_model_path": path,
                "kth_best_model_path": path,
                "best_k_models": {path: best},
                "dirpath": str(Path("old/checkpoints").resolve()),
            }
    torch.save(checkpoint, last)
    if copied:
        shutil.copytree("old", "r")
        Path("old/checkpoints/best.ckpt").write_bytes(b"another model by now")
    else:
        shutil.move("old", "r")
    best_model = Path("r/checkpoints/best.ckpt").read_bytes()
    command.ok(*GO_ON)
    assert (metrics("r")["steps"], metrics("r")["best_step"]) == (4, 2)
    assert Path("r/checkpoints/best.ckpt").read_bytes() == best_model
    assert torch.load("r/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_it_may_go_on_without_one_of_its_callbacks(command: Commands) -> None:
    command.made("r", "train", *BEGUN, *HALF)
    command.ok(*GO_ON, "~callbacks.signs")
    assert "signs" not in OmegaConf.load("r/config.yaml").callbacks
    assert metrics("r")["steps"] == 4


def test_a_configuration_of_earlier_goes_on(command: Commands) -> None:
    """With the old name of a callback, and without a key that came later."""
    command.made("r", "train", *BEGUN, *HALF)
    path = Path("r/config.yaml")
    text, present = path.read_text(encoding="utf-8"), "bitmaps.training.sign_watch.SignWatch"
    later = "activations_from: 0.0\n"
    assert present in text
    assert later in text
    text = text.replace(present, "bitmaps.diagnostics.SignWatch").replace(later, "")
    path.write_text(text, encoding="utf-8")
    command.ok(*GO_ON)
    assert metrics("r")["steps"] == 4
    assert OmegaConf.load(path).callbacks.signs._target_ == present


def test_a_logger_that_does_not_start_costs_a_finished_run_nothing(
    trained: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*arguments: Any, **options: Any) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    before = contents("r")
    monkeypatch.setattr(WandbLogger, "log_hyperparams", nobody)
    err = trained.refused("train", "resume=r", "trainer.max_steps=8", "logger=wandb")
    assert "logger: No API key configured." in err
    assert "choose logger=wandb_offline" in err
    assert {file: found for file, found in contents("r").items() if file in before} == before


def test_other_devices_keep_the_number_of_steps(trained: Commands) -> None:
    began = metrics("r")["command"]
    trained.ok("train", "resume=r", "trainer=cpu")
    assert OmegaConf.load("r/config.yaml").trainer.max_steps == 4
    assert began.startswith("python train.py ")
    assert metrics("r")["command"] == f"{began} trainer=cpu"  # which makes the same run
    trained.ok("train", "resume=r", "trainer=cpu")
    assert metrics("r")["command"] == f"{began} trainer=cpu"  # and can be typed: no group twice


def test_fewer_steps_than_there_are_are_refused(trained: Commands) -> None:
    err = trained.refused("train", "resume=r", "trainer.max_steps=2")
    assert "trainer.max_steps=2 is too small: r has 4 steps already" in err


def test_it_goes_on_in_its_own_folder_alone(trained: Commands) -> None:
    trained.made("other", "train", *ONE_BIT)
    before = contents("other")
    err = trained.refused("train", "resume=r", "hydra.run.dir=other")
    assert "a run is resumed in its own folder, r" in err
    assert contents("other") == before


def test_a_run_without_a_checkpoint_is_nothing_to_go_on_with(command: Commands) -> None:
    command.made("r", "evaluate", "binarize=none")
    err = command.refused("train", "resume=r")
    assert "resume=r holds no run to go on with: it has no checkpoints/last.ckpt" in err
