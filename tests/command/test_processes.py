"""Several processes that train one model: on the CPU, so without a GPU."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from command.commands import ALONE, SCORES, SMALL, STEPS, Commands, metrics
from safetensors.torch import load_file

import bitmaps

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
OPTIONS = (
    *SMALL, *STEPS, ALONE, "binarize=all", "scale=row", "loss.more_masked=0", "loss.more_masked_at_end=null",
    "trainer.log_every_n_steps=1", "packed_embeddings=fp32",
)  # fmt: skip
TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
LONG = 120  # seconds on a busy machine


def started(*overrides: str) -> subprocess.Popen[str]:
    """``python train.py`` in the current folder, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(*overrides: str) -> None:
    process = started(*overrides)
    out, _ = process.communicate(timeout=LONG)
    assert process.returncode == 0, out[-3000:]


def test_two_processes_with_parts_of_a_model_train_as_one(command: Commands) -> None:
    both = ("trainer.max_steps=4", "trainer.accumulate_grad_batches=2", "hydra.run.dir=one")
    command.ok("train", *OPTIONS, *both)
    run("trainer=fsdp", *TWO, *OPTIONS, "trainer.max_steps=2", "hydra.run.dir=two")
    run("resume=two", "trainer.max_steps=4")
    one, two = metrics("one"), metrics("two")
    for name in (*SCORES, "masked_tokens", "steps", "best_step"):
        assert two[name] == pytest.approx(one[name], rel=1e-6), name
    # one file, with the names and the whole tensors of any other checkpoint
    state = torch.load("two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    expected = torch.load("one/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state.keys() == expected.keys()
    for name, weight in state.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-5, rtol=0)
    bits = {n: w for n, w in load_file("two/packed/model.safetensors").items() if "bits" in n}
    packed = load_file("one/packed/model.safetensors")
    assert all(torch.equal(packed[name], weight) for name, weight in bits.items())
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    plain, real = bitmaps.load("two"), bitmaps.load("two/packed", act="f32")
    torch.testing.assert_close(real(ids), plain(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 0), ("ddp", 1), ("fsdp", 0)])
@pytest.mark.usefixtures("command")
def test_a_rank_that_is_killed_at_its_start_leaves_none_behind(strategy: str, rank: int) -> None:
    with started(f"trainer={strategy}", *TWO, *OPTIONS, "hydra.run.dir=r") as first:
        launcher, further = psutil.Process(first.pid), list[psutil.Process]()
        while not further:
            assert first.poll() is None
            time.sleep(0.05)
            with contextlib.suppress(psutil.Error):  # another child that is gone by now
                found = launcher.children()
                further = [one for one in found if one.environ().get("LOCAL_RANK") == "1"]
        ranks = [launcher, *further]
        ranks[rank].kill()
        _, alive = psutil.wait_procs(ranks, timeout=LONG)
        for one in alive:
            one.kill()
        assert not alive
