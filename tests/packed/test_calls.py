"""Packed matrices as the kernels see them: pointers, plans, and calls from Python's C interface."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from packed.building import SOURCES, compiled
from packed.matrices import KERNELS, normal, random_matrix
from torch import Tensor

from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import Packed, Part
from bitmaps.packed.operations import linears

needs_library = pytest.mark.skipif(not KERNELS, reason="bitmaps was installed without a C compiler")


def part(n: int, k: int, seed: int = 0) -> Part:
    return random_matrix(n, k, column=True, seed=seed).part()


# -- pointers --


def pointers(packed: Packed) -> list[int | None]:
    return [
        getattr(m, name)
        for m in packed.given.array
        for name in ("weight", "high", "low", "bias", "column")
    ]


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda packed: pickle.loads(pickle.dumps(packed))]
)
def test_a_copy_points_to_its_own_tensors(again: Callable[[Packed], Packed]) -> None:
    x = normal(7, 20)
    plain = (*part(5, 20, 3)[:2], None, None, None)
    packed = Packed([part(33, 20), plain], 20)
    expected = linears(x, packed, "a8")
    copied = again(packed)
    assert (copied.k, copied.sizes) == (20, [33, 5])
    for one in (packed, copied):
        assert pointers(one) == [
            None if t is None else t.data_ptr() for tensors in one.tensors for t in tensors
        ]
    assert not {p for p in pointers(packed) if p} & {p for p in pointers(copied) if p}
    for tensors in packed.tensors:
        for tensor in tensors:
            if tensor is not None:
                tensor.zero_()
    del packed
    gc.collect()
    assert all(map(torch.equal, linears(x, copied, "a8"), expected))


def test_tensors_of_any_layout_are_kept_alive() -> None:
    x = normal(7, 20)
    expected = linears(x, Packed([part(33, 20)], 20), "a8")[0]
    packed = Packed(
        [tuple(torch.stack([t, t], -1)[..., 0] for t in part(33, 20) if t is not None)], 20
    )  # type: ignore[list-item]
    gc.collect()
    overwriting = [torch.full((n,), torch.nan) for n in range(200)]
    assert torch.equal(linears(x, packed, "a8")[0], expected)
    del overwriting


@needs_library
def test_an_output_of_many_megabytes_is_that_of_its_rows() -> None:
    x, packed = normal(5000, 64), Packed([part(300, 64)], 64)
    expected = torch.cat([linears(rows, packed, "a8")[0] for rows in x.split(1000)])
    assert torch.equal(linears(x, packed, "a8")[0], expected)


# -- the call from Python --


def call_of(packed: Packed) -> tuple[Any, dict[str, Tensor | None], dict[str, Tensor | None]]:
    """``linear`` of native/python.c for one matrix, and the buffers of its weight and its layer."""
    found = native.kernels()
    if found is None or found.linear is None:
        pytest.skip("the kernels were built without Python's headers")
    packed.plan(found, "a8")
    weight, high, low, bias, column = packed.parts[0]
    return (
        packed.calls["a8"],
        {"data": weight, "high": high, "low": low, "column": column},
        {"bias": bias},
    )


@needs_library
def test_a_call_keeps_no_reference() -> None:
    packed, x = Packed([part(33, 20)], 20), normal(3, 20)
    call, of_weight, of_layer = call_of(packed)
    others = [torch.float32, torch.get_num_threads, torch.Tensor, True, None, 33, 20, 3]
    counted = [x, *packed.parts[0], of_weight, of_layer, call, *others]

    def count() -> list[int]:
        return [sys.getrefcount(each) for each in counted]

    def run() -> None:
        for _ in range(1000):
            assert isinstance(call(x, of_weight, of_layer), Tensor)
            for plain in (
                call(x.double(), of_weight, of_layer),
                call(x, of_layer, of_layer),
                call(x.T, of_weight, of_layer),
            ):
                assert plain is None
            with pytest.raises(TypeError, match="takes x and"):
                call(x, of_weight, None)

    run()
    before = count()
    run()
    assert all(abs(b - a) < 100 for a, b in zip(before, count(), strict=True))


@needs_library
@pytest.mark.parametrize(
    "wrong",
    [
        (),
        (1,),
        (None, 1, 1, 1, 1),
        ((), 1, 1, 1, 1),
        ((1,) * 5, "", 1, 1, 1),
        ((1,) * 5, 0, 1, 1, 1),
    ],
)
def test_a_call_of_something_else_is_refused(wrong: tuple[Any, ...]) -> None:
    packed = Packed([part(33, 20)], 20)
    call, of_weight, _ = call_of(packed)
    for arguments in ((), (1,), (normal(1, 20), of_weight, None)):
        with pytest.raises(TypeError, match="takes x and two dictionaries"):
            call(*arguments)
    found = native.kernels()
    assert found is not None
    assert found.linear is not None
    with pytest.raises((TypeError, ValueError)):
        found.linear(*wrong)


@needs_library
def test_a_call_keeps_alive_what_it_points_to() -> None:
    packed, x = Packed([part(33, 20)], 20), normal(3, 20)
    call, of_weight, of_layer = call_of(packed)
    expected, lost = call(x, of_weight, of_layer), weakref.ref(packed)
    del packed
    gc.collect()
    assert lost() is None
    for _ in range(10):
        torch.randn(1000)
        assert torch.equal(call(x, of_weight, of_layer), expected)


@needs_library
def test_threads_that_make_the_first_call_have_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, found, both = Packed([part(33, 20)], 20), native.kernels(), threading.Barrier(2)
    assert found is not None
    plan = native.Plan

    def slow(*arguments: Any) -> native.Plan:
        both.wait()
        return plan(*arguments)

    monkeypatch.setattr(native, "Plan", slow)
    with ThreadPoolExecutor(2) as pool:
        addresses = list(pool.map(lambda _: packed.plan(found, "a8"), range(2)))
    assert addresses[0] == addresses[1]


@needs_library
def test_tensors_without_numbers_are_refused() -> None:
    packed, x = Packed([part(33, 20)], 20), normal(3, 20)
    with pytest.raises(ValueError, match="without numbers"):
        torch.func.functionalize(lambda x: linears(x, packed, "a8"))(x)


@needs_library
def test_a_call_without_memory_raises(tmp_path: Path) -> None:
    packed, x = Packed([part(33, 20)], 20), normal(3, 20)
    call, of_weight, of_layer = call_of(packed)
    (tmp_path / "none.c").write_text("int bitmaps_linears(void) { return 1; }", encoding="utf-8")
    path, headers = tmp_path / "_kernels.so", sysconfig.get_paths()["include"]
    compiled(
        "-shared",
        "-fPIC",
        f"-I{SOURCES}",
        f"-I{headers}",
        SOURCES / "python.c",
        tmp_path / "none.c",
        "-o",
        path,
    )
    with pytest.raises(MemoryError, match="could not get memory"):
        native.module(str(path)).linear(*call.__self__)(x, of_weight, of_layer)
