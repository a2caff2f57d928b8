"""The one error that a user's input can raise, and the end that a signal brings."""

from __future__ import annotations

import signal


class InputError(ValueError):
    """A wrong or missing input. The message names the bad value and the valid ones.

    The commands print the message without a traceback. Every other exception is a defect of the
    package, and keeps its traceback.
    """


class Stopped(SystemExit):
    """SIGTERM, or Ctrl-C, has stopped a command. The exit code is 128 plus the signal's number, as
    shells have it: 143 and 130."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"
