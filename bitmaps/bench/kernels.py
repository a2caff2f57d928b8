"""Each kernel against the one that is chosen, for every rounding of the activations.

A ratio above 1 that is no noise says that ``native/dispatch.c`` should choose otherwise here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from bitmaps.bench.linear import MATRICES, packed_layer, two_valued, work
from bitmaps.bench.timing import Ratio, Request, Run, compare
from bitmaps.errors import InputError
from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import AUTO, Kernels, Packed
from bitmaps.packed.operations import OUT_OF_MEMORY
from bitmaps.vocabulary import Act

PART = "kernels"
TOKENS = (1, 2, 4, 8, 16, 32, 64, 512)
QUICK_TOKENS = (1, 8, 64)
ROUNDED = tuple(act for act in Act if act is not Act.f32)
PLAIN = "generic"  # as slow as it is portable: left out


def ratios(request: Request) -> Iterator[Ratio]:
    """Every rounding, number of tokens and matrix.

    Raises:
        InputError: where there is nothing to choose from.
    """
    names = [name for name in native.instruction_sets() if name != PLAIN]
    if len(names) < 2:
        raise InputError(f"{PART} compares kernels, and here is only {(names or [PLAIN])[0]}")
    generator = torch.Generator().manual_seed(0)
    for act in ROUNDED:
        for tokens in QUICK_TOKENS if request.quick else TOKENS:
            for outputs, inputs in MATRICES:
                what = f"{act}, {work(outputs, inputs, tokens)}"
                if what in request.done:
                    continue
                x = torch.randn(tokens, inputs, generator=generator)
                matrix = packed_layer(two_valued(outputs, inputs, generator), act).packed()
                runs: dict[str, Run] = {}
                for name in (AUTO, *names):
                    found = native.chosen(name)
                    assert found is not None, "it runs here"
                    runs[name] = partial(product, found, matrix, act, x)
                yield from compare(PART, what, AUTO, runs, request.rounds)


def product(found: Kernels, matrix: Packed, act: Act, x: Tensor) -> Tensor:
    """x (tokens, inputs) times a matrix, by these kernels."""
    y = x.new_empty(len(x), matrix.sizes[0])
    address = (ctypes.c_void_p * 1)(y.data_ptr())
    if found.library.bitmaps_linears(
        matrix.plan(found, act), torch.get_num_threads(), x.data_ptr(), len(x), address
    ):
        raise MemoryError(OUT_OF_MEMORY)
    return y
