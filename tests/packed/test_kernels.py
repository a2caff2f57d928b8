"""The library of kernels: how it is found and chosen, what the compiler made of it, and that it keeps within its arrays."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
import weakref
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.packed import __main__ as command
from bitmaps.packed import kernels as native
from bitmaps.packed.kernels import ACTS, REFERENCE, VARIABLE, Packed, Part
from bitmaps.packed.operations import attention, binary_linear, ffnn, linear_norm, linears, pack

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "bitmaps" / "packed" / "native"
KERNELS = list(native.instruction_sets())

needs_library = pytest.mark.skipif(not KERNELS, reason="bitmaps was installed without a C compiler")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def part(n: int, k: int, seed: int = 0) -> Part:
    return (
        pack(normal(n, k, seed=seed) > 0), *(normal(size, seed=seed + i) for i, size in enumerate((n, n, n, k), start=1)),
    )  # type: ignore[return-value] # fmt: skip


def results(x: Tensor) -> list[Tensor]:
    """Of every operation, with every rounding of the activations."""
    n, k = 33, x.shape[-1]
    first, second = Packed([part(n, k)], k), Packed([part(k, n, 9)], n)
    gain, shift = normal(k, seed=20), normal(k, seed=21)
    outputs = []
    for act in ACTS:
        outputs += linears(x, first, act)
        outputs.append(linear_norm(outputs[-1], second, x, gain, shift, 1e-12, act))
        outputs.append(ffnn(x, first, second, gain, shift, 1e-12, act))
        outputs.append(binary_linear(x, *part(n, k), act))
    return outputs


def forget() -> None:
    native.library.cache_clear()
    native.kernels.cache_clear()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test chose is not what the next one gets."""
    yield
    native.kernels.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As in a new process with this variable."""
    monkeypatch.setenv(VARIABLE, name)
    native.kernels.cache_clear()


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where there was no compiler."""
    monkeypatch.setattr(native, "library_file", lambda: None)
    monkeypatch.delenv(VARIABLE, raising=False)
    forget()
    yield
    forget()


# -- which kernels --


@needs_library
def test_the_fastest_instruction_set_comes_first_and_the_one_that_always_runs_last() -> None:
    order = ["amx", "avx512", "avx2", "generic"]
    assert sorted(KERNELS, key=order.index) == KERNELS
    assert KERNELS[-1] == "generic"


@needs_library
def test_the_fastest_is_used_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    native.kernels.cache_clear()
    assert (found := native.kernels()) is not None
    assert found.name == KERNELS[0]
    choose(monkeypatch, "auto")
    assert native.kernels() == found
    for name in KERNELS:
        choose(monkeypatch, name)
        assert (found := native.kernels()) is not None
        assert (found.name, found.number) == (name, native.instruction_sets()[name])


def test_the_reference_is_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, REFERENCE)
    assert native.kernels() is None


@pytest.mark.parametrize("name", ["avx1024", "", "AVX2", "neon"])
def test_kernels_that_do_not_exist_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    choose(monkeypatch, name)
    valid = ", ".join(["auto", *KERNELS, REFERENCE])
    with pytest.raises(
        InputError, match=f"^{VARIABLE}={name} does not run here; valid are {valid}$"
    ):
        native.kernels()
    with pytest.raises(InputError, match=VARIABLE):
        results(normal(3, 20))


@needs_library
def test_kernels_that_the_processor_does_not_run_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = native.instruction_sets()
    monkeypatch.setattr(native, "instruction_sets", lambda: {"generic": sets["generic"]})
    forget()
    try:
        choose(monkeypatch, "avx512")
        with pytest.raises(
            InputError, match=f"{VARIABLE}=avx512 .*valid are auto, generic, reference$"
        ):
            native.kernels()
        choose(monkeypatch, "auto")
        assert (found := native.kernels()) is not None
        assert found.name == "generic"
    finally:
        forget()


# -- without the library --


def test_without_the_library_everything_falls_back_to_the_reference(
    monkeypatch: pytest.MonkeyPatch, without_library: None
) -> None:
    assert native.library() is None
    assert native.instruction_sets() == {}
    x = normal(2, 3, 20)
    assert native.kernels() is None
    actual = results(x)
    choose(monkeypatch, REFERENCE)
    assert all(map(torch.equal, actual, results(x)))
    choose(monkeypatch, "generic")
    with pytest.raises(InputError, match=f"{VARIABLE}=generic .*valid are auto, reference$"):
        native.kernels()


def test_info_says_that_there_is_no_library(
    capsys: pytest.CaptureFixture[str], without_library: None
) -> None:
    command.info()
    out = capsys.readouterr().out
    assert re.search(r"^library +none: there was no C compiler", out, re.MULTILINE)
    assert re.search(r"^runs here +reference +\(BITMAPS_KERNELS chooses\)$", out, re.MULTILINE)
    assert re.search(r"^in use +reference$", out, re.MULTILINE)


# -- the command --


def test_info_prints_what_runs_and_what_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitmaps.packed", "info"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {VARIABLE: "auto"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sets = ", ".join([*KERNELS, REFERENCE])
    assert re.search(rf"^runs here +{sets} +\({VARIABLE} chooses\)$", done.stdout, re.MULTILINE)
    assert re.search(rf"^in use +{[*KERNELS, REFERENCE][0]}$", done.stdout, re.MULTILINE)
    assert (
        re.search(r"^calls +(from C|through ctypes, .*)$", done.stdout, re.MULTILINE) is not None
    ) is bool(KERNELS)


@pytest.mark.parametrize("name", [*KERNELS, REFERENCE])
def test_info_follows_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    choose(monkeypatch, name)
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "info"])
    command.main()
    assert re.search(rf"^in use +{name}$", capsys.readouterr().out, re.MULTILINE)


def test_info_with_kernels_that_do_not_exist_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose(monkeypatch, "avx1024")
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "info"])
    with pytest.raises(
        SystemExit, match=f"^error: {VARIABLE}=avx1024 does not run here; valid are auto"
    ):
        command.main()


# -- pointers --


def pointers(packed: Packed) -> list[int | None]:
    return [
        getattr(m, name)
        for m in packed.array
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


@needs_library
def test_a_library_of_older_sources_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.c").write_text(
        'const char *bitmaps_isa_name(int i) { return i ? 0 : "generic"; }', encoding="utf-8"
    )
    compiled("-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "old.so")
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "old.so")
    native.library.cache_clear()
    try:
        with pytest.raises(
            InputError,
            match=r"old\.so was built from older sources .*bitmaps_use_openmp.*install bitmaps again",
        ):
            native.instruction_sets()
    finally:
        forget()


@needs_library
def test_failures_of_the_library_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every function that may run out of memory: with a library of which all do."""
    names = re.findall(
        r"^EXPORT int (bitmaps_\w+)\(const struct plan\b",
        (SOURCES / "operations.c").read_text(),
        re.MULTILINE,
    )
    assert len(names) == 4
    code = "\n".join(f"int {name}(void) {{ return 1; }}" for name in names)
    code += "\nvoid bitmaps_use_openmp(void) {}\nint bitmaps_isa_runs(int i) { return !i; }\n"
    code += "int bitmaps_attends(int i) { return 1; }\n"
    code += 'const char *bitmaps_isa_name(int i) { return i ? 0 : "generic"; }\n'
    (tmp_path / "full.c").write_text(code, encoding="utf-8")
    compiled("-shared", "-fPIC", tmp_path / "full.c", "-o", tmp_path / "full.so")
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "full.so")
    choose(monkeypatch, "generic")
    native.library.cache_clear()
    try:
        x, one, back = normal(3, 20), Packed([part(33, 20)], 20), Packed([part(20, 33)], 33)
        three, output = Packed([part(32, 32)] * 3, 32), Packed([part(32, 32)], 32)
        norm = (normal(20), normal(20), 1e-12, "a8")
        runs: list[Callable[[], object]] = [
            lambda: linears(x, one, "a8"),
            lambda: linear_norm(normal(3, 33), back, x, *norm),  # type: ignore[arg-type]
            lambda: ffnn(x, one, back, *norm),  # type: ignore[arg-type]
            lambda: attention(
                normal(1, 3, 32), three, output, None, 1, normal(32), normal(32), 1e-12, "a8"
            ),
        ]
        for run in runs:
            with pytest.raises(MemoryError, match="could not get memory"):
                run()
    finally:
        forget()


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


# -- what the compiler made of it --


def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    return found


def call(
    *command: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | variables,
    )


def compiled(*arguments: object) -> None:
    done = call(compiler(), *arguments)
    assert done.returncode == 0, done.stderr


def compile_arguments() -> list[str]:
    """Those that the package is built with."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["setuptools"]["ext-modules"][0]["extra-compile-args"]


Code = list[tuple[int, str]]  # address and text of each instruction


def disassembled(file: Path) -> list[Code]:
    """Each function but those for a few rows, which have a loop for each number of them."""
    done = call("objdump", "-d", "--no-show-raw-insn", file)
    assert done.returncode == 0, done.stderr
    functions = []
    for block in done.stdout.split("\n\n"):
        head = re.search(r"^[0-9a-f]+ <([^>]+)>:$", block, re.MULTILINE)
        if head and not head[1].startswith("few_"):
            lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*\S)", block[head.end() :], re.MULTILINE)
            functions.append([(int(address, 16), text) for address, text in lines])
    return functions


def occurs(mnemonic: str, loop: Code) -> int:
    return sum(
        re.match(rf"(\{{evex\}} )?{mnemonic}\S*\s.*%[yz]mm", text) is not None for _, text in loop
    )


def products(loop: Code) -> int:
    return sum(
        occurs(mnemonic, loop) for mnemonic in ("vpdpbusd", "vpopcntd", "vpmaddubsw", "vfmadd231ps")
    )


def hot_loops(code: Code) -> list[Code]:
    """The innermost loops that add up products: from the target of a jump backwards to the jump."""
    spans = set()
    for end, text in code:
        if jump := re.match(r"j\w+\s+([0-9a-f]+)", text):
            start = int(jump[1], 16)
            loop = [(address, text) for address, text in code if start <= address <= end]
            if code[0][0] <= start <= end and products(loop):
                spans.add((start, end))
    inner = (a for a in spans if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in spans))
    return [
        [(address, text) for address, text in code if start <= address <= end]
        for start, end in inner
    ]


def traffic(code: Code, loop: Code) -> list[str]:
    """What a loop moves between vector registers and the stack. A store to anywhere counts: sums that are in registers are stored
    after the loop."""
    frame = any(
        re.match(r"mov\s+%rsp,%rbp", text) for _, text in code
    )  # else rbp is a register like the others
    moved = (r"\(%r[sb]p" if frame else r"\(%rsp") + r"|%[yz]mm\d+,[^,]*\("
    return [text for _, text in loop if re.search("%[yz]mm", text) and re.search(moved, text)]


# loop -> how many there are, and of which instructions how many each has. The compiler may put them into one function.
HOT: dict[str, tuple[int, dict[str, int]]] = {
    "many rows, bits and bytes": (2, {"vpdpbusd": 24}),
    "many rows, signs": (1, {"vpopcntd": 16}),
    "a single row, one plane and two": (2, {"vpdpbusd": 32, "vpand": 32}),
    "a single row, signs": (1, {"vpopcntd": 8}),
    "many rows, AVX2": (1, {"vpmaddubsw": 8, "vpbroadcastd": 4}),
    "attention": (2, {"vfmadd231ps": 16, "vbroadcastss": 8}),
    "a single row, AVX2": (1, {"vpmaddubsw": 8, "vpand": 8}),
}


def found(functions: list[Code], name: str) -> list[tuple[Code, Code]]:
    """Function and loop, the shortest first."""
    _, instructions = HOT[name]
    pairs = [(code, loop) for code in functions for loop in hot_loops(code)]
    fitting = [
        pair
        for pair in pairs
        if all(occurs(i, pair[1]) >= least for i, least in instructions.items())
    ]
    return sorted(fitting, key=lambda pair: len(pair[1]))


@pytest.fixture(scope="module")
def objdump() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"the loops are x86-64's, and this is {platform.machine()}")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")


@pytest.mark.slow
@pytest.mark.usefixtures("objdump")
@pytest.mark.parametrize("name", HOT)
def test_the_sums_stay_in_registers(name: str) -> None:
    file = native.library_file()
    if file is None:
        pytest.skip("the library was not built")
    count, _ = HOT[name]
    loops = found(disassembled(file), name)
    assert len(loops) >= count
    for code, loop in loops[:count]:
        assert traffic(code, loop) == []


@pytest.mark.slow
@pytest.mark.usefixtures("objdump")
@pytest.mark.parametrize(
    ("file", "name", "changes"),
    [
        # eight rows of four vectors are all registers that there are
        (
            "avx512_many.c",
            "many rows, bits and bytes",
            {r"\bTILE = 6\b": "TILE = 8", "unroll 6": "unroll 8"},
        ),
        ("avx2_many.c", "many rows, AVX2", {r"\bTILE = 4\b": "TILE = 8", "unroll 4": "unroll 8"}),
    ],
    ids=["avx512", "avx2"],
)
def test_sums_that_do_not_stay_in_registers_are_noticed(
    tmp_path: Path, file: str, name: str, changes: dict[str, str]
) -> None:
    text = (SOURCES / "x86" / file).read_text(encoding="utf-8")
    for pattern, replacement in changes.items():
        text, changed = re.subn(pattern, replacement, text)
        assert changed >= 1
    (tmp_path / "spilling.c").write_text(text, encoding="utf-8")
    compiled(
        *compile_arguments(),
        f"-I{SOURCES / 'x86'}",
        "-c",
        tmp_path / "spilling.c",
        "-o",
        tmp_path / "spilling.o",
    )
    count, _ = HOT[name]
    loops = found(disassembled(tmp_path / "spilling.o"), name)
    assert len(loops) >= count
    assert all(traffic(code, loop) for code, loop in loops[:count])


# -- memory --


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "times"),
    [
        # gcc 12 takes the element i - 1 of `c ? a : b` for one outside, which AddressSanitizer would tell
        (
            (
                "-O1",
                "-g",
                "-fsanitize=address,undefined",
                "-fno-sanitize=object-size",
                "-fno-sanitize-recover=all",
            ),
            4,
        ),
        (("-O1", "-g", "-fsanitize=thread"), 1),
        (
            compile_arguments(),
            10,
        ),  # as they are used, to the arrays' ends in pages that must not be touched
    ],
    ids=["address_and_undefined", "thread", "none"],
)
def test_kernels_keep_within_their_arrays_and_agree(
    tmp_path: Path, flags: list[str], times: int
) -> None:
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    if call(compiler(), *flags, tmp_path / "empty.c", "-o", tmp_path / "empty").returncode:
        pytest.skip(f"{compiler()} has no {' '.join(flags)}")
    if call(tmp_path / "empty").returncode:
        pytest.skip(f"programs of {' '.join(flags)} do not start here")
    source, program = Path(__file__).with_name("kernels_driver.c"), tmp_path / "driver"
    sources = sorted(set(SOURCES.rglob("*.c")) - {SOURCES / "python.c"})
    compiled(
        *flags, "-std=gnu11", f"-I{SOURCES}", *sources, source, "-lm", "-lpthread", "-o", program
    )
    done = call(program, 0, times)
    assert done.returncode == 0, done.stdout + done.stderr
    *names, products, _, failures, _ = done.stdout.split()
    assert names[-1] == "generic"
    assert int(products) > 500 * times
    assert int(failures) == 0


# -- installing --


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["/bin/false", "/nowhere/cc", None])
def test_the_package_installs_with_and_without_a_compiler(tmp_path: Path, cc: str | None) -> None:
    try:
        if int(version("setuptools").split(".")[0]) < 77:
            pytest.skip("an older setuptools than the package is built with")
        version("pip")
    except PackageNotFoundError:
        pytest.skip("no setuptools or no pip, and the network is not asked")
    tree, wheels, site = (tmp_path / name for name in ("tree", "wheels", "site"))
    for name in ("bitmaps", "conf"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tree)
    build = (
        "pip",
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        wheels,
        tree,
    )
    done = call(sys.executable, "-m", *build, cwd=tmp_path, CC=compiler() if cc is None else cc)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.glob("bitmaps-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert any("_kernels" in name for name in archive.namelist()) is (cc is None)
        archive.extractall(site)
    code = """if True:
        import torch
        from bitmaps.packed import kernels as native, operations
        found = native.kernels()
        print(native.__file__)
        print(native.library_file())
        print(found.name if found else "reference")
        print(bool(found and found.linear))
        weight = torch.full((3, 1), 15, dtype=torch.uint8)
        print(operations.binary_linear(torch.ones(1, 8), weight, torch.ones(3), torch.zeros(3)).tolist())
    """
    done = call(
        sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site), **{VARIABLE: "auto"}
    )
    assert done.returncode == 0, done.stderr
    where, file, used, from_c, y = done.stdout.splitlines()
    assert Path(where).is_relative_to(site)
    assert y == "[[4.0, 4.0, 4.0]]"
    if cc is None:
        assert Path(file).parent == Path(where).parent
        assert used != REFERENCE
        assert from_c == str((Path(sysconfig.get_paths()["include"]) / "Python.h").is_file())
    else:
        assert (file, used) == ("None", REFERENCE)
