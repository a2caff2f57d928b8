"""A user's mistake in one line, whoever finds it: this package, Hydra, OmegaConf or YAML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from bitmaps.errors import InputError, as_text

MISTAKES = (InputError, HydraException, OmegaConfBaseException, yaml.YAMLError)
"""The errors that tell of a user's mistake. Every other one is a defect."""

MOST_MEANT = 3  # keys that a message proposes
LONGEST = 1000  # characters of a message; a list of every key has about 400
# what Hydra and OmegaConf add for those who know their insides
INSIDES = re.compile(
    r"^\s*(Config search path:|provider=|object_type=|reference_type=|See https:|\^).*$"
    r"|,? ?set env var HYDRA_FULL_ERROR=1 to see chained exception",
    re.M,
)
LEXER = "LexerNoViableAltException: "
FULL_KEY = re.compile(r"^\s*full_key: *(\S.*)$", re.M)


def one_line(error: Exception) -> InputError:
    """The mistake that an error of ``MISTAKES`` tells, in one line: what, where, valid values."""
    text = as_text(folded(words_of(error)) or type(error).__name__)
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return InputError(text)


@contextmanager
def found_in(path: Path) -> Iterator[None]:
    """Names the file whose content OmegaConf does not accept.

    Raises:
        InputError: in place of OmegaConf's errors.
    """
    try:
        yield
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path} is damaged or of another version: {one_line(error)}") from error


def words_of(error: BaseException) -> str:
    cause = error.__cause__
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name} is unknown; valid are {', '.join(error.options)}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read: {reason(error.message)}; valid is key=value, with "
            "special characters in quotes: 'key=\"value\"'"
        )
    if isinstance(error, HydraException) and isinstance(cause, OmegaConfBaseException):
        return words_of(cause)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return unknown_key(error)
    return str(error)


def reason(message: str) -> str:
    """What Hydra's parser says of an override, without the list of its own tokens."""
    lines = [line for line in message.splitlines() if not line.startswith("Error parsing")]
    first, *more = lines or [""]
    if first.startswith(LEXER) and more and "^" in more[0]:
        at = more[0].index("^")
        return f"unexpected {first[at : at + 1]!r}"
    return re.sub(r" expecting \{.*", "", first)


def unknown_key(error: OmegaConfBaseException) -> str:
    """There is no such key; which one was probably meant, and which there are beside it."""
    parent, key = error.parent_node, error.full_key
    if not isinstance(parent, DictConfig) or not key:
        return str(error)
    path, dot, name = key.rpartition(".")
    valid = ", ".join(f"{path}{dot}{one!s}" for one in parent)
    meant = " or ".join(similar_keys(name, parent._get_root()))
    hint = f"did you mean {meant}? " if meant else ""
    return f"there is no {key}; {hint}valid are {valid or 'none'}"


def similar_keys(name: str, config: Any) -> list[str]:
    """The keys anywhere in a configuration that have this last name, or else one much like it."""
    by_name: dict[str, list[str]] = {}
    for key in keys_of(config):
        by_name.setdefault(key.rpartition(".")[2], []).append(key)
    near = [name] if name in by_name else get_close_matches(name, by_name, n=2, cutoff=0.75)
    return [key for one in near for key in by_name[one]][:MOST_MEANT]


def keys_of(config: Any, path: str = "") -> Iterator[str]:
    """The keys below a node, Hydra's own left out."""
    if not isinstance(config, DictConfig) or config._is_none() or config._is_missing():
        return
    for name in config:
        key = f"{path}{name!s}"
        if key != "hydra":
            yield key
            yield from keys_of(config._get_node(name), f"{key}.")


def folded(text: str) -> str:
    """The lines of a message as one, with the key that it is about in front."""
    key = FULL_KEY.search(text)
    joined = " ".join(INSIDES.sub("", FULL_KEY.sub("", text)).split())
    return f"{key[1]}: {joined}" if key else joined
