"""The part that compares kernels: all compute the same, and there is something to compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bitmaps.bench import kernels
from bitmaps.bench.timing import Request
from bitmaps.errors import InputError
from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import Packed
from bitmaps.packed.operations import linears, pack

NAMES = [name for name in native.instruction_sets() if name != kernels.PLAIN]
needs_several = pytest.mark.skipif(len(NAMES) < 2, reason="one kernel runs here")


@needs_several
def test_every_kernel_is_timed_beside_the_chosen_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MATRICES", ((8, 16),))
    monkeypatch.setattr(kernels, "QUICK_TOKENS", (1, 6))
    request = Request(1, True, tmp_path)
    rows = list(kernels.ratios(request))
    whats = {f"{act}, 16 to 8, {t}" for act in kernels.ROUNDED for t in ("1 token", "6 tokens")}
    assert {(row.what, row.peer, row.contender) for row in rows} == {
        (what, "auto", name) for what in whats for name in ("A/A", *NAMES)
    }
    assert list(kernels.ratios(replace(request, rows=tuple(rows)))) == []


@needs_several
@pytest.mark.parametrize("name", ["auto", *NAMES])
def test_what_is_timed_is_the_product(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.rand(20, 70, generator=generator) < 0.5
    matrix = Packed([(pack(bits), torch.rand(20, generator=generator), None, None, None)], 70)
    found, x = native.chosen(name), torch.randn(7, 70, generator=generator)
    assert found is not None
    for act in kernels.ROUNDED:
        assert torch.equal(kernels.product(found, matrix, act, x), linears(x, matrix, act)[0])


def test_one_kernel_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "instruction_sets", lambda: {"generic": 0})
    with pytest.raises(InputError, match="here is only generic"):
        next(kernels.ratios(Request(1, True, tmp_path)))
