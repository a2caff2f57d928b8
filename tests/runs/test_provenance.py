"""What the numbers of a run depend on."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bitmaps.runs import provenance
from bitmaps.runs.provenance import commit, versions


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert {"python", "torch", "transformers", "bitmaps"} <= set(versions())
    assert all(isinstance(version, str) and version for version in versions().values())


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        assert commit() is None
        return
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    assert commit() in (head.strip(), f"{head.strip()}-dirty")


def test_there_is_no_commit_outside_of_a_checkout_or_without_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bitmaps" / "runs" / "x.py"))
    assert commit() is None
    (tmp_path / ".git").mkdir()  # no repository
    assert commit() is None
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("subprocess.run", lambda *args: pytest.fail("git was run"))
    assert commit() is None
