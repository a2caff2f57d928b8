"""What is typed on the command line: ``key=value``, ``+key=value`` and ``~key``."""

from __future__ import annotations

import re
import zlib

from bitmaps.command.schema import conf_dir
from bitmaps.errors import InputError

LONGEST = 200  # characters of a folder's name; file systems take 255


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
    """The name of the folder of a sweep's job: its overrides, in characters that a later override
    such as ``checkpoint=<folder>`` takes without quotes.

    >>> job_folder(["values=pm1", "binarize=ffnn"])
    'binarize-ffnn+values-pm1'
    """
    name = "+".join(sorted(override.lstrip("+~").replace("=", "-") for override in overrides))
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "job"
    if (plain == name and len(name) <= LONGEST) or plain == "job":
        return plain
    # different overrides must never share a folder
    return f"{plain[:LONGEST]}-{zlib.crc32(name.encode()):08x}"
