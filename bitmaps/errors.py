"""The one error that a user's input can raise, and names as text."""

from __future__ import annotations


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
