"""The two commands on a tiny model, in an empty folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from command.commands import ONE_BIT, Commands, write_model, write_text


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    shared = tmp_path_factory.mktemp("shared")
    for name, write in (("model", write_model), ("text", write_text)):
        (shared / name).mkdir()
        write(shared / name)
    return Commands(shared)


@pytest.fixture
def command(commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Runs a command in an empty folder with the model in ``model`` and the text in ``text``."""
    for name in ("model", "text"):
        (tmp_path / name).symlink_to(commands.shared / name)
    monkeypatch.chdir(tmp_path)
    return commands


@pytest.fixture
def trained(command: Commands) -> Commands:
    """A run with its layers in one bit, in the folder ``r``."""
    command.made("r", "train", *ONE_BIT)
    return command
