"""What the numbers of a run depend on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitmaps.runs import provenance
from bitmaps.runs.provenance import commit, processor, versions


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


# The name of the processor


@pytest.fixture
def unknown_processor() -> Iterator[None]:
    processor.cache_clear()
    yield
    processor.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 17\nmodel name\t: Abacus 9 \n\nmodel name\t: other\n", "Abacus 9"),
        ("processor\t: 0\nCPU part\t: 0xd0c\n", platform.machine()),  # as on Arm
    ],
)  # fmt: skip
def test_linux_names_the_processor(
    unknown_processor: None, tmp_path: Path, cpuinfo: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo, encoding="utf-8")
    assert processor(tmp_path / "cpuinfo") == name


@pytest.mark.parametrize("said", ["Apple M9\n", ""])
def test_macos_names_the_processor(
    unknown_processor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    tool = tmp_path / "sysctl"
    tool.write_text(f"#!/bin/sh\n[ \"$*\" = '-n machdep.cpu.brand_string' ] && printf '{said}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert processor(tmp_path / "absent") == (said.strip() or platform.machine())


def test_another_system_has_at_least_an_architecture(
    unknown_processor: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("platform.processor", lambda: "")
    assert processor(tmp_path / "absent") == platform.machine()
