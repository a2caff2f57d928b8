"""The C kernels of ``native/``, which are built with the package where there is a C compiler.

``BITMAPS_KERNELS`` chooses among them: ``auto`` (for every shape, the fastest that the processor
runs), ``amx``, ``avx512_lookup``, ``avx512``, ``avx2_lookup``, ``avx2`` and ``generic``; or
``reference``, plain PyTorch (``operations.py``). All give the same bits, except for ``act="f32"``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.packed import tiles
from bitmaps.vocabulary import Act

Part = tuple[
    Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None
]  # weight, high, low, bias, column
Buffers = Mapping[str, Tensor | None]
Call = Callable[
    [Tensor, Buffers, Buffers], Tensor | None
]  # x, the buffers of the weight and of the layer
ACTS = tuple(Act)  # in the order of `enum act` in native/kernels.h
# A sum of k products must fit into 32 bits: of a bit and an a16 number, up to 32,639, or of an int8
# weight and a byte, up to 127 * 255.
LARGEST_K = 2**31 // 2**15
VARIABLE, REFERENCE, AUTO = "BITMAPS_KERNELS", "reference", "auto"
AUTO_NUMBER = -1  # native/kernels.h


class Matrix(ctypes.Structure):
    """``struct matrix`` of native/kernels.h."""

    _fields_ = [
        ("weight", ctypes.c_void_p), ("high", ctypes.c_void_p), ("low", ctypes.c_void_p),
        ("bias", ctypes.c_void_p), ("column", ctypes.c_void_p), ("n", ctypes.c_int64),
        ("k", ctypes.c_int64), ("kind", ctypes.c_int32), ("tiled", ctypes.c_int32),
    ]  # fmt: skip


class Plan(ctypes.Structure):
    """``struct plan`` of native/kernels.h."""

    _fields_ = [
        ("w", ctypes.POINTER(Matrix)), ("count", ctypes.c_int32), ("isa", ctypes.c_int32),
        ("act", ctypes.c_int32),
    ]  # fmt: skip


class Norm(ctypes.Structure):
    """``struct norm`` of native/stages.h."""

    _fields_ = [
        ("gain", ctypes.c_void_p), ("shift", ctypes.c_void_p), ("epsilon", ctypes.c_float),
    ]  # fmt: skip


class Layer(ctypes.Structure):
    """``struct layer`` of native/operations.c."""

    _fields_ = [
        ("project", ctypes.c_void_p), ("output", ctypes.c_void_p), ("expand", ctypes.c_void_p),
        ("contract", ctypes.c_void_p), ("attention", Norm), ("ffnn", Norm),
    ]  # fmt: skip


@dataclass(frozen=True)
class Kernels:
    """The library and the kernel that is used.

    Attributes:
        number, name: the kernel's; ``auto`` chooses one for every shape.
        attends: whether it has an attention block.
        linear: the function of native/python.c; ``None`` if the package was built without Python's
            headers.
    """

    library: ctypes.CDLL
    number: int
    name: str
    attends: bool
    linear: Callable[[Part, int, int, int, object], Call] | None

    def reads_tiles(self, act: Act) -> bool:
        """Whether products with this rounding are fastest with bits in tiles."""
        return bool(self.library.bitmaps_reads_tiles(self.number, ACTS.index(act)))


def library_file() -> Path | None:
    """The library that was built with the package; ``None`` if it was not (``left_out``)."""
    file = Path(__file__).parent / f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    return file if file.is_file() else None


def left_out() -> dict[str, str]:
    """What was not built with the package, and the compiler's reason.

    The names are instruction sets, ``python`` for the call from C, and ``library`` for everything.
    """
    log = Path(__file__).parent / "_kernels.json"
    return json.loads(log.read_text(encoding="utf-8")) if log.is_file() else {}


@cache
def library() -> ctypes.CDLL | None:
    """The library, opened; ``None`` if there is none.

    Raises:
        InputError: when it was built for another system, or from older sources and lacks a
            function.
    """
    path = library_file()
    if path is None:
        return None
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(f"{path} does not open ({error}): install bitmaps again") from error
    pointer = ctypes.c_void_p
    inputs: list[Any] = [ctypes.c_int, pointer, ctypes.c_int64]  # threads, x, m
    norm: list[Any] = [pointer, pointer, ctypes.c_float]
    try:
        loaded.bitmaps_isa_name.restype = ctypes.c_char_p
        loaded.bitmaps_use_openmp.argtypes = [pointer] * 3
        loaded.bitmaps_linears.argtypes = [pointer, *inputs, pointer]
        loaded.bitmaps_linear_norm.argtypes = [pointer, *inputs, pointer, pointer, *norm]
        loaded.bitmaps_ffnn.argtypes = [pointer, pointer, *inputs, pointer, *norm]
        loaded.bitmaps_attends.argtypes = [ctypes.c_int]
        loaded.bitmaps_choice.argtypes = [ctypes.c_int, ctypes.c_int64]
        loaded.bitmaps_reads_tiles.argtypes = [ctypes.c_int, ctypes.c_int]
        sizes: list[Any] = [ctypes.c_int64, ctypes.c_int64]  # length, heads
        attention: list[Any] = [pointer, pointer, *inputs, pointer, pointer, *sizes, *norm]
        loaded.bitmaps_attention.argtypes = attention
        loaded.bitmaps_encoder.argtypes = [pointer, ctypes.c_int, *inputs, pointer, pointer, *sizes]
    except AttributeError as error:
        raise InputError(
            f"{path} was built from older sources ({error}): install bitmaps again"
        ) from error
    if os.name == "posix":
        use_threads_of_torch(loaded)
    return loaded


def use_threads_of_torch(loaded: ctypes.CDLL) -> None:
    """PyTorch's own: a second pool would compete with those that wait for work."""
    process = ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if all(hasattr(process, name) for name in names):
        functions = (ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in names)
        loaded.bitmaps_use_openmp(*functions)


@cache
def module(path: str) -> Any:
    """The same file as a Python module, which native/python.c makes it."""
    spec = spec_from_file_location("bitmaps.packed._kernels", path)
    assert spec is not None
    assert spec.loader is not None
    found = module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def compiled_sets() -> dict[str, int]:
    """The kernels of the library with their numbers."""
    loaded = library()
    names: dict[str, int] = {}
    while loaded is not None and (name := loaded.bitmaps_isa_name(len(names))) is not None:
        names[name.decode()] = len(names)
    return names


def instruction_sets() -> dict[str, int]:
    """Those that this processor runs."""
    loaded = library()
    found = compiled_sets()
    return {name: i for name, i in found.items() if loaded and loaded.bitmaps_isa_runs(i)}


def chosen(wanted: str) -> Kernels | None:
    """The kernels of this name; ``None`` means the reference.

    Raises:
        InputError: when they do not exist or do not run here.
    """
    available = instruction_sets()
    if wanted == REFERENCE or (wanted == AUTO and not available):
        return None
    loaded = library()
    if loaded is None or wanted not in (AUTO, *available):
        raise InputError(
            f"{VARIABLE}={wanted} does not run here; "
            f"valid are {AUTO}, {', '.join([*available, REFERENCE])}"
        )
    number = AUTO_NUMBER if wanted == AUTO else available[wanted]
    linear = module(loaded._name).linear if hasattr(loaded, "PyInit__kernels") else None
    return Kernels(loaded, number, wanted, bool(loaded.bitmaps_attends(number)), linear)


def choice(act: Act, tokens: int) -> str:
    """The kernel that ``auto`` takes for so many tokens."""
    loaded = library()
    assert loaded is not None, "there are kernels"
    return list(compiled_sets())[loaded.bitmaps_choice(ACTS.index(act), tokens)]


@cache
def kernels() -> Kernels | None:
    """The kernels that ``BITMAPS_KERNELS`` names, read once.

    Reading it at every call would take a fifth of the time of a one-token product.
    """
    return chosen(os.environ.get(VARIABLE, AUTO))


class Form:
    """An array of ``struct matrix``, and the tensors that it points to."""

    def __init__(self, tensors: Sequence[Part], k: int) -> None:
        self.tensors = tensors
        self.array = (Matrix * len(tensors))()
        for into, (weight, high, *rest) in zip(self.array, tensors, strict=True):
            into.weight, into.high = weight.data_ptr(), high.data_ptr()
            into.low, into.bias, into.column = (None if t is None else t.data_ptr() for t in rest)
            into.n, into.k = len(high), k
            into.kind, into.tiled = weight.dtype == torch.int8, tiles.is_tiled(weight)


class Packed:
    """Matrices that read the same inputs, in the library's form.

    It keeps the tensors alive that it points to.

    Args:
        parts: weight, high, low, bias and column of each matrix. The weight is uint8
            (n, ceil(k / 8)), bits, the lowest first; or these in tiles; or int8 (n, k). High, low
            and bias are fp32 (n). Column, which the inputs are multiplied by first, is fp32 (k).
            Low, bias and column may be ``None``. Without ``low`` bits mean -high and high; int8
            never has ``low``.
        k: the number of inputs.

    Raises:
        ValueError: for tensors that do not fit each other or are on several devices, or for more
            inputs than 32 bits can add up.
    """

    def __init__(self, parts: Sequence[Part], k: int) -> None:
        if not 0 < k <= LARGEST_K:
            raise ValueError(
                f"{k} inputs: valid are 1 to {LARGEST_K}, beyond which 32 bits may not hold a sum"
            )
        for weight, high, low, bias, column in parts:
            bits = weight.dtype == torch.uint8
            if not bits and weight.dtype != torch.int8:
                raise ValueError(f"weights of {weight.dtype}; valid are uint8 (bits) and int8")
            n, *width = tiles.shape_in_rows(weight) or (0,)
            if width != [(k + 7) // 8 if bits else k]:
                raise ValueError(f"weights of shape {tuple(weight.shape)} do not have {k} inputs")
            for tensor, size in (
                (high, n),
                (low, n),
                (bias, n),
                (column, k),
            ):
                if tensor is not None and (
                    tensor.shape != (size,) or tensor.dtype != torch.float32
                ):
                    raise ValueError(
                        f"a part is {tensor.dtype} of shape {tuple(tensor.shape)}; "
                        f"valid is float32 of shape ({size},)"
                    )
            if low is not None and not bits:
                raise ValueError("int8 weights have no low value")
        self.parts = list(parts)
        devices = {tensor.device for tensor in chain.from_iterable(parts) if tensor is not None}
        if len(devices) != 1:
            raise ValueError(f"matrices on several devices: {', '.join(sorted(map(str, devices)))}")
        self.is_cpu = devices.pop().type == "cpu"
        # torch.jit.trace compares two traces; the second must not reuse what the first has made
        self.is_traced = torch._C._get_tracing_state() is not None
        self.k, self.sizes = k, [len(high) for _, high, *_ in parts]
        is_int8 = any(weight.dtype == torch.int8 for weight, *_ in parts)
        self.acts = (Act.a8,) if is_int8 else ACTS
        # own tensors, so that the addresses stay valid when a tensor is given other ``data``
        self.tensors = [
            cast(Part, tuple(None if t is None else t.detach().contiguous() for t in part))
            for part in parts
        ]
        self.given = Form(self.tensors, k)
        self.rows: Form | None = None
        self.plans: dict[tuple[int, Act], Plan] = {}
        self.calls: dict[Act, Call] = {}

    def form(self, found: Kernels, act: Act) -> Form:
        """The matrices in an order of bits that these kernels read: in rows, all of them do."""
        weights = [weight for weight, *_ in self.tensors]
        if found.reads_tiles(act) or not any(map(tiles.is_tiled, weights)):
            return self.given
        if self.rows is None:
            parts: Any = [(tiles.in_rows(weight), *rest) for weight, *rest in self.tensors]
            self.rows = Form(parts, self.k)
        return self.rows

    def plan(self, found: Kernels, act: Act) -> int:
        """The address of the settings that all calls with these kernels and this rounding share.

        It is valid as long as this object. Afterwards, if there is one matrix, ``calls`` has the
        function of native/python.c.
        """
        key = found.number, act
        if (plan := self.plans.get(key)) is None:
            form = self.form(found, act)
            # a second thread takes the plan of the first, which others may already hold
            plan = self.plans.setdefault(
                key, Plan(form.array, len(self.sizes), found.number, ACTS.index(act))
            )
            if found.linear is not None and len(self.sizes) == 1:
                address, owners = ctypes.addressof(plan), (plan, form)
                self.calls[act] = found.linear(
                    self.parts[0], address, self.k, self.sizes[0], owners
                )
        return ctypes.addressof(plan)

    def __reduce__(self) -> tuple[type[Packed], tuple[object, ...]]:
        return Packed, (self.parts, self.k)  # a copy points to its own tensors
