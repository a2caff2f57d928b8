"""The one error that a user's input can raise, how a command ends with it, and names as text."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


def as_text(value: object) -> str:
    """A name on one line, as a terminal, a file or a message may show it.

    White space becomes a space. Control characters, which a terminal would obey, and characters
    that no encoding has become their escapes.

    >>> as_text("red" + chr(27) + "[31m")
    'red\\\\x1b[31m'
    """
    return "".join(map(shown, str(value)))


def shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    return character.encode("unicode_escape").decode("ascii")


class InputError(ValueError):
    """A wrong or missing input. The message names the bad value and the valid ones, on one line.

    The commands print the message without a traceback. Every other exception is a defect of the
    package, and keeps its traceback.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(as_text(message))


class Stopped(SystemExit):
    """SIGTERM, or Ctrl-C, has stopped a command. The exit code is 128 plus the signal's number, as
    shells have it: 143 and 130."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


NOBODY_READS = 128 + 13
"""The exit code of a command whose output nobody reads any more, as shells have it for SIGPIPE."""


@contextmanager
def while_somebody_reads() -> Iterator[None]:
    """End a command in silence when its output is closed, as by ``| head``."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(NOBODY_READS)


def refuse(error: Exception) -> NoReturn:
    """End a command with what a user got wrong, and exit code 2."""
    print(f"error: {as_text(error)}", file=sys.stderr)
    sys.exit(2)
