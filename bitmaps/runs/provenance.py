"""What the numbers of a run depend on: the versions of the packages, the commit, the processor."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

from bitmaps import __version__

PACKAGES = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "hydra-core")


def versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that the numbers depend on."""
    ours = {"python": platform.python_version(), "bitmaps": __version__}
    return ours | {package: version(package) for package in PACKAGES}


def commit() -> str | None:
    """The commit of the checkout that this package is in, with ``-dirty`` if files have changed
    since; ``None`` outside of a checkout, or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


@cache
def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the CPU, as the system has it; its architecture where it has no name.

    Args:
        cpuinfo: where Linux describes it.
    """
    if cpuinfo.is_file():
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
        name = re.search(r"^model name\s*: *(.+)$", text, re.M)
        return name[1].strip() if name else platform.machine()
    if (sysctl := shutil.which("sysctl")) is not None:  # macOS
        asked = [sysctl, "-n", "machdep.cpu.brand_string"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        return found or platform.machine()
    return platform.processor() or platform.machine()
