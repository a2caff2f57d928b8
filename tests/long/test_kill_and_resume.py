"""A training that is killed at any moment, and resumed, ends where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from command.commands import ALONE, Commands, write_model, write_text
from long.conftest import Cases

from bitmaps import launch
from bitmaps.bert import Bert
from bitmaps.report import page
from bitmaps.runs.folder import has_checkpoint, read_scored, read_state
from bitmaps.training import checkpoints
from bitmaps.vocabulary import Status

LAYERS = ("binarize=layers", "data.batch_size=8")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("binarize=ffnn", "data.batch_size=8"),
    "dropout": (*LAYERS, "recipe=bibert", "model.dropout=0.2"),
    "accumulated": (*LAYERS, "model.dropout=0.2", "trainer.accumulate_grad_batches=2"),
    "stopped": (
        *LAYERS, "callbacks=early_stopping", "callbacks.early_stopping.patience=1",
        "+callbacks.early_stopping.min_delta=9",
    ),
    "calibrated": (*LAYERS, "calibrate=16", "scale=row"),
    "signs": (*LAYERS, "activations=bit", "activations_from=0.5", "embeddings=int8"),
    "longer": (*LAYERS, "schedule=constant", "loss.more_masked_at_end=null"),
}  # fmt: skip
IMPORTED = (launch, page)  # before a process is copied: otherwise each copy takes seconds for it
STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=2", ALONE)
HALF = ("trainer.max_steps=4", "trainer.val_check_interval=2", ALONE)
CHECKPOINTS, OUTCOME, MOMENTS = 12, 8, 20
SAMPLE = 3
"""Cases of each kind: every time that part of a checkpoint is on the disk, some times that part of
the outcome is, and some computations of a model."""


class Killer:
    """Ends this process by SIGKILL when it has done something often enough.

    Args:
        at: how often each of "checkpoint", "outcome" and "moment" is done until then.
    """

    def __init__(self, at: dict[str, int]) -> None:
        self.at, self.done = at, Counter[str]()
        self.in_checkpoint = False

    def count(self, what: str) -> None:
        self.done[what] += 1
        if self.done[what] == self.at.get(what):
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Count in this process from now on."""
        sync, forward, replace = os.fsync, Bert.forward, checkpoints.replace_bytes

        def replaced(*arguments: Any) -> None:
            self.in_checkpoint = True
            replace(*arguments)
            self.in_checkpoint = False

        def synced(handle: int) -> None:
            self.count("checkpoint" if self.in_checkpoint else "outcome")
            sync(handle)

        def computed(*arguments: Any, **options: Any) -> Any:
            self.count("moment")
            return forward(*arguments, **options)

        os.fsync, checkpoints.replace_bytes = synced, replaced
        Bert.forward = computed  # type: ignore[method-assign]


class Trainings:
    """Trains in processes of their own, which begin as copies of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, Commands(folder)
        self.references: dict[str, Path] = {}
        torch.set_num_threads(1)

    def train(self, *overrides: str, counts: str = "", **at: int) -> int:
        """Run ``train.py``. Returns the exit code, or -9.

        Args:
            counts: a file for how often everything was done in the end.
            at: as for ``Killer``.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            code = 70
            try:
                killer = Killer(at)
                killer.watch()
                launch.write_page = lambda folder: None  # takes longer than all the rest
                code, _, err = self.commands("train", *overrides)
                Path("err").write_text(err, encoding="utf-8")
                if counts:
                    Path(counts).write_text(json.dumps(killer.done), encoding="ascii")
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def reference(self, kind: str) -> tuple[Path, dict[str, int]]:
        """The folder of an uninterrupted run, and how often everything is done in it."""
        counts = f"{kind}.json"
        if kind not in self.references:
            folder = Path(f"whole-{kind}")
            code = self.train(*KINDS[kind], *STEPS, f"hydra.run.dir={folder}", counts=counts)
            assert code == 0, Path("err").read_text()
            self.references[kind] = folder
        found: dict[str, int] = json.loads(Path(counts).read_text())
        return self.references[kind], found


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    for name, write in (("model", write_model), ("text", write_text)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    return Trainings(tmp_path)


def assert_same(run: Path, whole: Path) -> None:
    """Both have the same scores, sums, weights and bits, to the last digit."""
    for one, other in zip(read_scored(run), read_scored(whole), strict=True):
        assert (one.row.scores, one.row.known) == (other.row.scores, other.row.known)
        assert (one.row.facts.steps, one.row.facts.best_step) == (
            other.row.facts.steps, other.row.facts.best_step,
        )  # fmt: skip
        assert (one.sentence_sums == other.sentence_sums).all()
        assert one.analysis == other.analysis
    for name in ("last", "best"):
        ours, theirs = (
            torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for folder in (run, whole)
        )
        assert ours["global_step"] == theirs["global_step"]
        assert all(torch.equal(ours["state_dict"][n], w) for n, w in theirs["state_dict"].items())
    weights = "model/model.safetensors"
    assert (run / weights).read_bytes() == (whole / weights).read_bytes()


def assert_whole(run: Path) -> None:
    """What a killed process leaves agrees, or says that it does not."""
    if read_state(run).status is not Status.ok:
        return
    stored = json.loads((run / "model" / "config.json").read_text())["bitmaps"]
    facts = read_scored(run)[-1].row.facts
    assert (stored["steps"], stored["best_step"]) == (facts.steps, facts.best_step)


def chosen(case: int, counts: dict[str, int], random: Random) -> dict[str, int]:
    """When a case ends the process: nothing where there are fewer checkpoints than cases."""
    if case < CHECKPOINTS:
        return {"checkpoint": case + 1} if case < counts["checkpoint"] else {}
    what = "outcome" if case < CHECKPOINTS + OUTCOME else "moment"
    return {what: random.randint(1, counts[what])}


def kill_and_resume(trainings: Trainings, kind: str, case: int, random: Random) -> None:
    whole, counts = trainings.reference(kind)
    at, run = chosen(case, counts, random), Path(f"{kind}-{case}")
    if not at:
        return
    begin = [*KINDS[kind], *STEPS, f"hydra.run.dir={run}"]
    go_on = [f"resume={run}", STEPS[0]]
    if kind == "longer":  # a run that ended well is resumed, and that is killed
        assert trainings.train(*KINDS[kind], *HALF, f"hydra.run.dir={run}") == 0
        begin = go_on
    code = trainings.train(*begin, **at)
    # a resumed run does less
    assert code == -signal.SIGKILL or (kind == "longer" and code == 0), Path("err").read_text()
    if (run / "metrics.json").is_file():
        assert_whole(run)
    if not has_checkpoint(run):
        assert trainings.train(*go_on) == 2
        shutil.rmtree(run)
        go_on = begin
    assert trainings.train(*go_on) == 0, Path("err").read_text()
    assert_same(run, whole)
    assert not list(run.rglob("*.draft*"))
    assert not list(Path("temporary").iterdir())
    shutil.rmtree(run)


@pytest.mark.slow
def test_a_killed_training_that_is_resumed_ends_where_a_whole_one_does(
    trainings: Trainings, cases: Cases
) -> None:
    kinds = list(KINDS)
    for number, random in cases(
        total=len(kinds) * (CHECKPOINTS + OUTCOME + MOMENTS), sample=SAMPLE
    ):
        kill_and_resume(trainings, kinds[number % len(kinds)], number // len(kinds), random)
