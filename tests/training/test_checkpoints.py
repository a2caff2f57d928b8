"""Checkpoints that a killed process cannot spoil, and damaged ones that are found."""

from __future__ import annotations

import errno
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from bitmaps.errors import InputError
from bitmaps.training.checkpoints import CheckpointFiles, read_checkpoint

STATE: dict[str, Any] = {
    "global_step": 3,
    "state_dict": {f"w{i}": torch.arange(90.0).view(9, 10) * i for i in range(4)},
    "optimizer_states": [],
}


def write(path: Path) -> Path:
    CheckpointFiles().save_checkpoint(STATE, path)
    return path


def assert_equal(found: dict[str, Any]) -> None:
    assert found["global_step"] == 3
    for name, weight in STATE["state_dict"].items():
        assert torch.equal(found["state_dict"][name], weight)


def test_it_is_written_beside_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = write(tmp_path / "checkpoints" / "last.ckpt")
    assert_equal(torch.load(path, weights_only=True))
    assert_equal(read_checkpoint(path))
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]
    assert not list(temporary.iterdir())


def test_a_full_disk_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "last.ckpt")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CheckpointFiles().save_checkpoint(STATE | {"global_step": 4}, path)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [before]


def test_a_bit_that_flipped_is_found_or_changes_nothing(tmp_path: Path) -> None:
    content, draws = write(tmp_path / "last.ckpt").read_bytes(), random.Random(0)
    path, found, harmless = tmp_path / "flipped.ckpt", 0, 0
    for _ in range(300):
        flipped = bytearray(content)
        flipped[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(flipped)
        try:
            checkpoint = read_checkpoint(path)
        except InputError as error:
            lines = str(error).splitlines()
            found += len(lines) == 1 and "flipped.ckpt is missing or damaged: " in lines[0]
        else:
            assert_equal(checkpoint)  # between the records is padding
            harmless += 1
    assert found + harmless == 300
    assert found > 150


@pytest.mark.parametrize("content", [b"", b"weights", None])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "last.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"last\.ckpt is missing or damaged"):
        read_checkpoint(path)


def test_a_checkpoint_that_is_cut_off_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "last.ckpt")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"last\.ckpt is missing or damaged"):
        read_checkpoint(path)
