"""A training of an adapter that is stopped continues where it was."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from bitmaps.adapters.training import SOURCE, Settings, Training
from bitmaps.bert.finding import locate
from bitmaps.data.module import MaskedSentences
from bitmaps.data.sources import Source


def begin(settings: Settings) -> Training:
    torch.manual_seed(settings.seed)
    return Training(settings)


@pytest.mark.slow
def test_a_restored_training_takes_the_same_steps(tmp_path: Path) -> None:
    settings = Settings(steps=40, batch_size=2, lr=1e-2, seed=0)
    data = MaskedSentences(
        Source("wiki"), str(locate(SOURCE)), batch_size=2, eval_batch_size=2, length=12, limit=60
    )
    batches = list(islice(data.train_dataloader(), 4))
    file = tmp_path / "state.ckpt"
    unbroken = begin(settings)
    assert unbroken.restore(file) == 0
    losses = [unbroken.step(batch) for batch in batches[:2]]
    unbroken.save(file, 2)
    losses += [unbroken.step(batch) for batch in batches[2:]]
    resumed = begin(Settings(steps=40, batch_size=2, lr=1e-2, seed=1))
    assert resumed.restore(file) == 2
    assert [resumed.step(batch) for batch in batches[2:]] == losses[2:]
    for name, parameter in unbroken.trained.items():
        assert torch.equal(parameter, resumed.trained[name]), name
    assert [path.name for path in tmp_path.iterdir()] == ["state.ckpt"]
