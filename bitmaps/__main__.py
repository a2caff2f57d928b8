"""All commands as one: ``bitmaps <command> …``, or ``python -m bitmaps <command> …``."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from bitmaps import __version__
from bitmaps.calling import COMPLETION
from bitmaps.errors import InputError, refuse, while_somebody_reads


@dataclass(frozen=True)
class Command:
    """A function that reads its arguments from ``sys.argv``.

    Attributes:
        purpose: what ``--help`` says.
        module, function: where it is; imported only when it is called.
        extra: of the package, with which the command is installed; empty if it needs none.
    """

    purpose: str
    module: str
    function: str = "main"
    extra: str = "train"


COMMANDS = {
    "train": Command("binarize a BERT, train it and score it", "bitmaps.cli", "train"),
    "evaluate": Command("score a BERT as it is, binarized or trained", "bitmaps.cli", "evaluate"),
    "report": Command("show runs and sweeps as one page", "bitmaps.report.__main__"),
    "show": Command("try models on a local page", "bitmaps.show.__main__", extra="show"),
    "pack": Command("store a run in real bits, or turn it back", "bitmaps.packed.__main__"),
    "info": Command("list the kernels that run here", "bitmaps.packed.info", extra=""),
    "embed": Command("make vectors of all texts in a file", "bitmaps.embedding.__main__"),
    "bench": Command("time packed models beside others", "bitmaps.bench.__main__"),
    "dashboard": Command("save a comparison as a workspace of W&B", "bitmaps.dashboard"),
}
BROUGHT = {"train": "lightning", "show": "streamlit"}
"""A module that each extra brings, and nothing else does."""
HYDRA = ("train", "evaluate")
"""The commands whose arguments Hydra reads, and completes."""


def main() -> None:
    """Call the command that the first argument names, with the others.

    The second word of a line is completed here, and Hydra completes the rest of it.
    """
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        print(help_text())
    elif given[0] == "--version":
        print(f"bitmaps {__version__}")
    elif given[0] in COMPLETION:
        complete(given)
    else:
        call(given[0], given[1:])


def train() -> None:
    """``python train.py``."""
    call("train", sys.argv[1:])


def evaluate() -> None:
    """``python evaluate.py``."""
    call("evaluate", sys.argv[1:])


def call(name: str, arguments: list[str]) -> None:
    """Run a command with these arguments. A name that no command has ends in one line, and so does
    a command that needs an extra of the package."""
    try:
        function = function_of(name)
    except InputError as error:
        refuse(error)
    sys.argv[1:] = arguments
    function()


def function_of(name: str) -> Callable[[], None]:
    """What a command calls.

    Raises:
        InputError: for a name that no command has, and where its extra is not installed.
    """
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"; probably {near[0]} is meant" if near else ""
        raise InputError(f"there is no command {name}{meant}; valid are {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    if command.extra and find_spec(BROUGHT[command.extra]) is None:
        raise InputError(
            f"bitmaps {name} needs the extra {command.extra}: "
            f"pip install 'bitmaps[{command.extra}]'"
        )
    found: Callable[[], None] = getattr(import_module(command.module), command.function)
    return found


def complete(given: list[str]) -> None:
    """What a shell asks for: a script to install, or the words that may end a line."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()[1:] + [""] * line.endswith(" ")
    if len(words) == 1:
        print("\n".join(name for name in COMMANDS if name.startswith(words[0])))
        return
    name = words[0] if words else "train"  # without a line, the script is asked for
    if name in HYDRA:
        os.environ["COMP_LINE"] = " ".join(words)
        call(name, given)


def help_text() -> str:
    indent = max(map(len, COMMANDS)) + 4
    lines = [f"  {name:<{indent - 2}}{one.purpose}" for name, one in COMMANDS.items()]
    return "\n".join(
        [
            "bitmaps: binarized transformers for making fast predictions.",
            "",
            "  bitmaps <command> --help",
            "",
            *lines,
            "",
            'Shell completion: eval "$(bitmaps -sc install=bash)"',
        ]
    )


if __name__ == "__main__":
    with while_somebody_reads():
        main()
