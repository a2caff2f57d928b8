"""How a command ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bitmaps.errors import NOBODY_READS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_a_command_ends_in_silence_when_nobody_reads_its_output(unbuffered: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, *unbuffered, "-m", "bitmaps.packed", "info"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == NOBODY_READS
