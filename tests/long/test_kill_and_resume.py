"""A training that is killed at any moment, and resumed, ends where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command.commands import ALONE, Commands, write_model, write_text
from long.conftest import Cases

from bitmaps.bert import Bert
from bitmaps.runs.folder import has_checkpoint, read_scored, read_state
from bitmaps.vocabulary import Status

LAYERS = ("binarize=layers", "data.batch_size=8")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("binarize=ffnn", "data.batch_size=8"),
    "dropout": (*LAYERS, "model.dropout=0.2"),
    "accumulated": (*LAYERS, "model.dropout=0.2", "trainer.accumulate_grad_batches=2"),
    "stopped": (
        *LAYERS, "callbacks=early_stopping", "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.min_delta=9",
    ),
    "calibrated": (*LAYERS, "calibrate=16", "scale=row"),
    "signs": (*LAYERS, "activations=bit", "embeddings=int8"),
    "bibert": (*LAYERS, "recipe=bibert"),
    "often": (*LAYERS, "+callbacks.last.every_n_train_steps=1", "model.dropout=0.2"),
    "longer": (*LAYERS, "schedule=constant", "loss.more_masked_at_end=null"),
}  # fmt: skip
STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=2", ALONE)
HALF = ("trainer.max_steps=4", "trainer.val_check_interval=2", ALONE)
EVENTS, MOMENTS = 30, 20  # of each kind: times that something is on the disk, and random moments


class Killed:
    """Ends this process by SIGKILL before the ``number``-th call of a function."""

    def __init__(self, function: Callable[..., Any], number: int) -> None:
        self.function, self.left = function, number

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(*arguments, **options)


class Trainings:
    """Trains in processes of their own, which begin as copies of this one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, Commands(folder)
        self.references: dict[str, Path] = {}
        torch.set_num_threads(1)

    def train(self, *overrides: str, event: int = 0, moment: int = 0, counts: str = "") -> int:
        """Run ``train.py``. Returns the exit code, or -9.

        Args:
            event: how often something is on the disk until the process is killed; 0 is never.
            moment: how often a model has computed something until then.
            counts: a file for how often both were done in the end.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        if (child := os.fork()) == 0:
            code = 70
            try:
                events = Killed(os.fsync, event)
                moments = Killed(Bert.forward, moment)
                os.fsync = events
                Bert.forward = lambda *a, **o: moments(*a, **o)  # type: ignore[method-assign]
                code, _, err = self.commands("train", *overrides)
                Path("err").write_text(err, encoding="utf-8")
                if counts:
                    done = [event - events.left, moment - moments.left]
                    Path(counts).write_text(json.dumps(done), encoding="ascii")
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def reference(self, kind: str) -> tuple[Path, list[int]]:
        """The folder of an uninterrupted run, and how many events and moments it has."""
        counts = f"{kind}.json"
        if kind not in self.references:
            folder = Path(f"whole-{kind}")
            code = self.train(*KINDS[kind], *STEPS, f"hydra.run.dir={folder}", counts=counts)
            assert code == 0, Path("err").read_text()
            self.references[kind] = folder
        found: list[int] = json.loads(Path(counts).read_text())
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


def kill_and_resume(trainings: Trainings, kind: str, case: int, moment_share: float) -> None:
    whole, (events, moments) = trainings.reference(kind)
    run = Path(f"{kind}-{case}")
    go_on = [f"resume={run}", STEPS[0]] if kind == "longer" else [f"resume={run}"]
    begin = [*KINDS[kind], *STEPS, f"hydra.run.dir={run}"]
    if kind == "longer":
        assert trainings.train(*KINDS[kind], *HALF, f"hydra.run.dir={run}") == 0
        begin = go_on
    if case < EVENTS:  # spread over all of them if there are more
        event, moment = 1 + case * max(events, EVENTS) // EVENTS, 0
    else:
        event, moment = 0, 1 + int(moment_share * moments)
    code = trainings.train(*begin, event=event, moment=moment)
    assert code in (0, -signal.SIGKILL)  # a resumed run has fewer events
    if (run / "metrics.json").is_file():
        assert_whole(run)
    if not has_checkpoint(run):
        assert trainings.train(*go_on) == 2
        return
    if code != 0:
        assert trainings.train(*go_on) == 0, Path("err").read_text()
    assert_same(run, whole)
    left = [path.name for path in run.rglob("*.draft*")]
    assert not left
    assert not list(Path("temporary").iterdir())


@pytest.mark.slow
def test_a_killed_training_that_is_resumed_ends_where_a_whole_one_does(
    trainings: Trainings, cases: Cases
) -> None:
    kinds = list(KINDS)
    for number, random in cases(total=len(kinds) * (EVENTS + MOMENTS), sample=4):
        kind, case = kinds[number % len(kinds)], number // len(kinds)
        kill_and_resume(trainings, kind, case, random.random())
