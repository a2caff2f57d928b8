"""What is shown while a training or a scoring runs, in a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning import Callback
from scoring.examples import Sentences, of_lightning, tiny, trainer

from bitmaps.scoring import display
from bitmaps.scoring.display import Bars, Lines, Work
from bitmaps.scoring.module import ScoredModel
from bitmaps.scoring.progress import ShowsProgress
from bitmaps.training.module import MaskedLanguageModel

pytestmark = of_lightning


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Breaks(Callback):
    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, number: int) -> None:
        if number == 1:
            raise FloatingPointError("broken")


@contextmanager
def terminal() -> Iterator[Terminal]:
    """What is written to a terminal, with a log on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        patch.setattr(sys, "stdout", Terminal())
        patch.setattr(Bars, "every_s", 0.0)
        handler = logging.StreamHandler(sys.stdout)
        logging.getLogger().addHandler(handler)
        yield sys.stdout  # type: ignore[misc]
        logging.getLogger().removeHandler(handler)
        assert handler.stream is sys.stdout  # rich's proxy writes nowhere when the bars are gone


def train(*callbacks: Callback, steps: int = 3) -> None:
    module = MaskedLanguageModel(
        tiny().train(), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01)
    )
    trainer(max_steps=steps, val_check_interval=2, callbacks=list(callbacks)).fit(
        module, datamodule=Sentences()
    )


def test_the_time_that_is_left_follows_from_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    work = Work("training", "step", total=50, done=10)  # of a run that was resumed
    assert work.left() == ""
    work.done, now = 20, 130.0
    assert work.left() == "1 min 30 s left"
    work.done = 60
    assert work.left() == "0 s left"


def lines_of_a_training(caplog: pytest.LogCaptureFixture) -> list[str]:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO, display.__name__):
        patch.setattr(Lines, "every_s", 0.0)
        train(ShowsProgress())
    return [record.getMessage() for record in caplog.records if record.name == display.__name__]


def test_lines_say_the_step_the_loss_and_the_time_left(caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of_a_training(caplog)
    assert [line.partition(",")[0] for line in lines] == [
        "training: step 1 of 3", "training: step 2 of 3",
        "validation: batch 1 of 2", "validation: batch 2 of 2", "training: step 3 of 3",
    ]  # fmt: skip
    assert all(", loss " in line and line.endswith(" left") for line in lines if "step" in line)


def test_lines_are_rare(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, display.__name__):
        train(ShowsProgress())
    assert not [record for record in caplog.records if record.name == display.__name__]


@pytest.fixture
def sweep() -> Iterator[Work]:
    """Two of six jobs are done."""
    display.set_sweep(work := Work("sweep", "job", total=6))
    display.job_is_done()
    display.job_is_done()
    yield work
    display.set_sweep(None)
    display.job_is_done()
    assert work.done == 2


@pytest.mark.usefixtures("sweep")
def test_lines_say_how_far_the_sweep_is(caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of_a_training(caplog)
    assert len(lines) == 5
    assert all("; 2 of 6 jobs done, " in line and line.endswith(" left") for line in lines)


@pytest.mark.usefixtures("sweep")
def test_a_sweep_has_a_bar_above_those_of_its_job() -> None:
    with terminal() as screen:
        train(ShowsProgress())
        shown = screen.getvalue()
    assert "2 of 6 jobs done, " in shown
    assert shown.index("sweep") < shown.index("training")


@pytest.mark.parametrize("name", ["validate", "test"])
def test_a_scoring_names_its_model(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Lines, "every_s", 0.0)
    run = getattr(trainer(callbacks=[ShowsProgress("naive")]), name)
    with caplog.at_level(logging.INFO, display.__name__):
        run(ScoredModel(tiny()), datamodule=Sentences(), verbose=False)
    assert "scoring naive: batch 1 of 2" in caplog.text


def test_bars_go_when_they_are_done_and_the_log_stays_above() -> None:
    with terminal() as screen:
        train(ShowsProgress())
        shown = screen.getvalue()
        logging.getLogger().warning("after")
        assert screen.getvalue().endswith("after\n")
    for text in ("training", "step 3/3, loss ", "validation", "batch 2/2", " left"):
        assert text in shown
    assert "Epoch" not in shown
    assert "v_num" not in shown


def test_bars_go_when_a_training_fails() -> None:
    with terminal():
        shows = ShowsProgress()
        with pytest.raises(FloatingPointError):
            train(shows, Breaks())
    assert isinstance(shows.display, Bars)
    assert shows.display.progress is None


def test_only_the_first_process_shows_anything(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Lines, "every_s", 0.0)
    shows = ShowsProgress()
    second: Any = type("Second", (), {"is_global_zero": False, "max_steps": 3, "global_step": 0})
    with caplog.at_level(logging.INFO, display.__name__):
        shows.on_train_start(second, None)  # type: ignore[arg-type]
        shows.on_train_batch_end(second, None, {"loss": torch.zeros(())})  # type: ignore[arg-type]
        shows.on_train_end()
    assert not caplog.records
