"""What the numbers of a run depend on: the versions of the packages, and the commit."""

from __future__ import annotations

import platform
import shutil
import subprocess
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
