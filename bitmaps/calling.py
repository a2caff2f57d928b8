"""How commands are called here, so that a user can type what a message says.

A checkout has ``python train.py`` and ``python evaluate.py``, and Python has ``python -m``. Whoever
typed ``bitmaps …`` reads ``bitmaps …``.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

FILES = {"train": "python train.py", "evaluate": "python evaluate.py"}
COMPLETION = ("-sc", "--shell-completion")
"""Hydra's flag, with which the script of a shell asks for what it needs."""
MODULES = {"pack": "packed", "info": "packed info", "embed": "embedding"}
"""Subcommands of ``bitmaps`` whose module has another name."""


def called(command: str, *arguments: str) -> str:
    """A subcommand of ``bitmaps`` as the user of this process types it, with arguments quoted for a
    shell.

    >>> called("train", "a=b c"), called("report"), called("pack")
    ("python train.py 'a=b c'", 'python -m bitmaps.report', 'python -m bitmaps.packed')
    """
    return shlex.join([*name_of(command).split(), *arguments])


def name_of(command: str) -> str:
    program = Path(sys.argv[0])
    in_package = program.name == "__main__.py" and program.parent == Path(__file__).parent
    if in_package or program.name in ("bitmaps", "bitmaps-train", "bitmaps-evaluate"):
        return f"bitmaps {command}"
    return plain_name(command)


def plain_name(command: str) -> str:
    return FILES.get(command, f"python -m bitmaps.{MODULES.get(command, command)}")


def from_here(path: Path) -> str:
    """A path as it is typed in the current folder: relative, if it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def as_called(text: str, *commands: str) -> str:
    """A text with the commands of a checkout as the user of this process types them."""
    for command in commands:
        text = text.replace(plain_name(command), name_of(command))
    return text
