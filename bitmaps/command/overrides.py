"""What is typed on the command line: ``key=value``, ``+key=value`` and ``~key``."""

from __future__ import annotations

import re
import zlib

from bitmaps.command.schema import conf_dir
from bitmaps.errors import InputError

LONGEST = 200  # characters of a folder's name; file systems take 255
WITHOUT_EFFECT = ("logger", "measure", "analysis")
"""Groups and keys that change neither a model nor its scores."""


def key_of(override: str) -> str:
    """The key that an override sets: ``+a.b=c`` sets ``a.b``."""
    return override.lstrip("+~").split("=")[0]


def check_lists(overrides: list[str]) -> None:
    """Raises:
    InputError: for several options of one group. Hydra would merge them silently."""
    for override in overrides:
        group, _, value = override.partition("=")
        is_group = group != "experiment" and (conf_dir() / group).is_dir()
        if value.startswith("[") and is_group:
            instead = ""
            if group == "binarize":
                instead = f"; for several components: 'binarize.components={value}'"
            raise InputError(f"{override} names several options where one is valid{instead}")


def job_folder(overrides: list[str]) -> str:
    """The name of the folder of a sweep's job: its overrides, without those that have no effect on
    the scores, and in characters that ``checkpoint=<folder>`` takes without quotes.

    >>> job_folder(["values=pm1", "binarize=ffnn", "measure=none"])
    'binarize-ffnn+values-pm1'
    """
    counts = [o for o in overrides if key_of(o).split(".")[0] not in WITHOUT_EFFECT]
    if "data=text" not in counts:  # otherwise the folder is a location, and no choice of text
        counts = [override for override in counts if key_of(override) != "data.dir"]
    name = "+".join(sorted(override.lstrip("+~").replace("=", "-", 1) for override in counts))
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "job"
    if (plain == name and len(name) <= LONGEST) or not name:
        return plain
    # different overrides must never share a folder
    return f"{plain[:LONGEST]}-{zlib.crc32(name.encode()):08x}"
