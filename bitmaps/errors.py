"""The one error that a user's input can raise."""

from __future__ import annotations


class InputError(ValueError):
    """Something that a user named is wrong or missing. The message names the bad value and the valid ones.

    The commands print it without a traceback; anything else that is raised is a defect of ours and keeps its traceback.
    """
