"""What is typed on the command line: ``key=value``, ``+key=value`` and ``~key``."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from omegaconf import DictConfig, ListConfig, OmegaConf

from bitmaps.command.schema import conf_dir
from bitmaps.errors import InputError

LONGEST = 200  # characters of a folder's name; file systems take 255
# an override whose folder's name shows where its key ends, and where the override ends
PLAIN = re.compile(r"\+?[\w.]+=[\w.-]*\w", re.ASCII)
# an override whose value begins with the user's home
HOME = re.compile(r"[\w.@/+]+=~(/|,|$)")
PATHS = (
    "checkpoint",
    "resume",
    "teacher",
    "similarity",
    "fine_tuning.folder",
    "data.dir",
    "model.source",
    "model.adapter",
    "model.random_tokenizer",
)
WITHOUT_EFFECT = ("logger", "measure", "analysis", "objective")
"""Groups and keys that change neither a model nor its scores."""


def key_of(override: str) -> str:
    """The key that an override sets: ``+a.b=c`` sets ``a.b``."""
    return override.lstrip("+~").split("=")[0]


def as_typed(overrides: list[str]) -> list[str]:
    """The overrides that Hydra lists, with references such as ``${seed}`` as they were typed."""
    return cast(list[str], OmegaConf.to_container(cast(ListConfig, overrides), resolve=False))


def expand_home(word: str) -> str:
    """A word of the command line of which ``~/`` after ``=`` is the user's home, as shells have it
    for some words. Hydra accepts no ``~`` there.

    Raises:
        InputError: when there is no home.
    """
    if not HOME.match(word):
        return word
    try:
        home = str(Path.home())
    except RuntimeError as error:
        raise InputError(f"{word}: there is no home folder; write the whole path") from error
    escaped = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", home)  # as in Hydra's grammar
    return re.sub(r"(?<=[=,])~(?=[/,]|$)", lambda _: escaped, word)


def expand_paths(cfg: DictConfig) -> None:
    """Replace ``~`` by the user's home in every path of a configuration.

    Raises:
        InputError: when there is no such home, or a path is empty.
    """
    for key in PATHS:
        path = OmegaConf.select(cfg, key)
        if path == "":  # of a variable of a shell that is not set
            raise InputError(f"{key} is empty; valid are a path and null")
        if isinstance(path, str) and path.startswith("~"):
            try:
                OmegaConf.update(cfg, key, str(Path(path).expanduser()))
            except RuntimeError as error:
                raise InputError(
                    f"{key}={path}: there is no such home folder; write the whole path"
                ) from error


def check_options(overrides: list[str]) -> None:
    """Raises:
    InputError: for an override without a key, and for what names no single option of a group.
        Hydra would silently merge several options."""
    groups = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    for parsed in OverridesParser.create().parse_overrides(overrides):
        group = parsed.key_or_group
        if not group:
            raise InputError(f"{parsed.input_line} has no key; valid is key=value")
        if group in groups:
            options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
            check_option(parsed, f"; valid are {', '.join(options)}")
        elif group.startswith("hydra/"):
            check_option(parsed, "; an option is a name")


def check_option(parsed: Override, valid: str) -> None:
    group, value, override = parsed.key_or_group, parsed.value(), parsed.input_line
    if parsed.is_choice_sweep():  # the sweeper tells what it does not know
        value = "" if not any(isinstance(v, int | float) for v in parsed.sweep_iterator()) else None
    if isinstance(value, str) or parsed.is_delete() or isinstance(value, Sweep):
        return
    if not isinstance(value, list):
        raise InputError(f"{override} names no option of {group}{valid}")
    if group == "experiment" and all(isinstance(name, str) for name in value):
        return  # what one sets, another may add to
    if group == "binarize":
        components = str(override).partition("=")[2]
        valid = f"; for several components: 'binarize.components={components}'"
    raise InputError(f"{override} names several options where one is valid{valid}")


def job_folder(overrides: list[str]) -> str:
    """The name of the folder of a sweep's job: its overrides, without those that have no effect on
    the scores, and in characters that ``checkpoint=<folder>`` takes without quotes.

    >>> job_folder(["values=pm1", "binarize=ffnn", "measure=none"])
    'binarize-ffnn+values-pm1'
    """
    counts = [o for o in overrides if key_of(o).split(".")[0] not in WITHOUT_EFFECT]
    if "data=text" not in counts:  # otherwise the folder is a location, and no choice of text
        counts = [override for override in counts if key_of(override) != "data.dir"]
    name = "+".join(sorted(o.lstrip("+").replace("=", "-", 1) for o in counts))
    if all(PLAIN.fullmatch(override) for override in counts) and len(name) <= LONGEST:
        return name or "job"
    readable = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII)[:LONGEST].strip("-.")
    # different overrides must never share a folder
    return f"{readable}-{zlib.crc32(chr(10).join(sorted(counts)).encode()):08x}"
