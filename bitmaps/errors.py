"""The one error that a user's input can raise, and how a command ends with it."""

from __future__ import annotations

import sys
from typing import NoReturn


class InputError(ValueError):
    """A wrong or missing input. The message names the bad value and the valid ones.

    The commands print the message without a traceback. Every other exception is a defect of the
    package, and keeps its traceback.
    """


def refuse(error: Exception) -> NoReturn:
    """End a command with what a user got wrong, and exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
