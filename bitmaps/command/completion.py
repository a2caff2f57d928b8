"""The paths that may end a line in a shell. Hydra completes groups, options and other keys."""

from __future__ import annotations

import os
from pathlib import Path

from bitmaps.command.overrides import PATHS, key_of

WRITTEN = ("hydra.run.dir", "hydra.sweep.dir")
QUERY = "query="
"""What the script of a shell asks for, after Hydra's flag."""


def path_matches(line: str) -> list[str] | None:
    """The overrides that complete the last word of a line, if its key takes a path; else ``None``.

    A folder ends in ``/``, so that one goes on inside it. Names with white space, which would need
    quotes, and hidden ones are left out.
    """
    word = "" if line.endswith(" ") else line.split()[-1]
    key, equals, typed = word.partition("=")
    if not equals or key_of(key) not in (*PATHS, *WRITTEN):
        return None
    parent, begin = os.path.split(typed)
    folder = Path(parent or ".").expanduser()
    stem = word[: len(word) - len(begin)]
    return [
        f"{stem}{path.name}{'/' if path.is_dir() else ''}"
        for path in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if path.name.startswith(begin) and len(path.name.split()) == 1
        if begin.startswith(".") or not path.name.startswith(".")
    ]
