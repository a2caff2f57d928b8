"""Which kernels run on this machine, and for what: ``bitmaps info``."""

from __future__ import annotations

import argparse
from itertools import pairwise

import torch

from bitmaps.calling import called
from bitmaps.errors import InputError, refuse
from bitmaps.packed import kernels as native
from bitmaps.vocabulary import Act

MOST_TOKENS = 256  # beyond, the same kernel is used for any number


def info() -> None:
    """Print it.

    Raises:
        InputError: when ``BITMAPS_KERNELS`` names kernels that do not exist or do not run here.
    """
    path, found, left_out = native.library_file(), native.kernels(), native.left_out()
    reason = left_out.pop("library", "bitmaps was installed without building it")
    from_c = left_out.pop("python", "Python's headers were missing when bitmaps was installed")
    here = native.instruction_sets()
    print(f"library       {path.name if path else f'none: {reason}'}")
    print(f"runs here     {', '.join([*here, native.REFERENCE])}   ({native.VARIABLE} chooses)")
    if elsewhere := [name for name in native.compiled_sets() if name not in here]:
        print(f"other CPUs    {', '.join(elsewhere)}")
    for name, why in left_out.items():
        print(f"left out      {name}: {why}")
    print(f"in use        {found.name if found else native.REFERENCE}")
    if found is not None and found.name == native.AUTO:
        for act in Act:
            chosen = choices(act, found.reads_tiles(act))
            print(f"  {act:<4}        {', '.join(chosen)}")
    if found is not None:
        print(f"calls         {'from C' if found.linear else f'through ctypes, slower: {from_c}'}")
    print(f"threads       {torch.get_num_threads()}")


def choices(act: Act, tiled: bool) -> list[str]:
    """Which kernel is used from how many tokens on. Tiles are read by one, for any number."""
    if tiled:
        return [native.choice(act, MOST_TOKENS)]
    kernels = [native.choice(act, tokens) for tokens in range(1, MOST_TOKENS)]
    changes = [
        (tokens, name)
        for tokens, (before, name) in enumerate(pairwise(["", *kernels]), 1)
        if name != before
    ]
    return [name if tokens == 1 else f"from {tokens} tokens on {name}" for tokens, name in changes]


def main() -> None:
    argparse.ArgumentParser(prog=called("info"), description=__doc__).parse_args()
    try:
        info()
    except InputError as error:
        refuse(error)
