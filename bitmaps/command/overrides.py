"""What is typed on the command line: ``key=value``, ``+key=value`` and ``~key``."""

from __future__ import annotations

import re
import zlib

from bitmaps.command.schema import conf_dir
from bitmaps.errors import InputError

LONGEST = 200  # characters of a folder's name; file systems take 255
# an override whose folder's name shows where its key ends, and where the override ends
PLAIN = re.compile(r"\+?[\w.]+=[\w.-]*\w", re.ASCII)
WITHOUT_EFFECT = ("logger", "measure", "analysis", "objective")
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
    name = "+".join(sorted(o.lstrip("+").replace("=", "-", 1) for o in counts))
    if all(PLAIN.fullmatch(override) for override in counts) and len(name) <= LONGEST:
        return name or "job"
    readable = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII)[:LONGEST].strip("-.")
    # different overrides must never share a folder
    return f"{readable}-{zlib.crc32(chr(10).join(sorted(counts)).encode()):08x}"
