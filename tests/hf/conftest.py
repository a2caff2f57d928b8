from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hf.folders import Folders, folders_of
from transformers import PreTrainedTokenizerBase

from bitmaps.vocabulary import Task

Make = Callable[..., Folders]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Make:
    """Folders of an architecture for a task, which every test of a session shares."""
    made: dict[str, Folders] = {}

    def write(name: str, task: Task, **changes: Any) -> Folders:
        key = f"{name} {task} {changes}"
        if key not in made:
            made[key] = folders_of(name, task, tmp_path_factory.mktemp(name), tokenizer, **changes)
        return made[key]

    return write


@pytest.fixture
def masked(make: Make) -> Folders:
    return make("bert", Task.masked_lm)
