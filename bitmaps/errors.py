"""The one error that a user's input can raise."""

from __future__ import annotations


class InputError(ValueError):
    """A wrong or missing input. The message names the bad value and the valid ones.

    The commands print the message without a traceback. Every other exception is a defect of the
    package, and keeps its traceback.
    """
