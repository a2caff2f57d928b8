"""The library of kernels: how it is found and chosen, and what happens without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from packed.building import ROOT, SOURCES, compiled
from packed.layers_by_hand import binary, packed
from packed.matrices import KERNELS, norm_of, normal, random_matrix
from torch import Tensor

from bitmaps.errors import InputError
from bitmaps.packed import __main__ as command
from bitmaps.packed import kernels as native
from bitmaps.packed.custom_ops import binary_linear
from bitmaps.packed.kernels import ACTS, REFERENCE, VARIABLE, Packed
from bitmaps.packed.operations import attention, ffnn, linear_norm, linears
from bitmaps.vocabulary import Act

needs_library = pytest.mark.skipif(not KERNELS, reason="bitmaps was installed without a C compiler")


def results(x: Tensor) -> list[Tensor]:
    """Outputs of every operation, with every rounding of the activations."""
    n, k = 33, x.shape[-1]
    matrix = random_matrix(n, k, column=True)
    first, second = matrix.packed(), random_matrix(k, n, column=True, seed=9).packed()
    outputs = []
    for act in ACTS:
        outputs += linears(x, first, act)
        outputs.append(linear_norm(outputs[-1], second, x, *norm_of(k), act))
        outputs.append(ffnn(x, first, second, *norm_of(k), act))
        outputs.append(binary_linear(x, *matrix.part(), act))
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
    monkeypatch.setattr(native, "left_out", lambda: {"library": "no C compiler: cc"})
    monkeypatch.delenv(VARIABLE, raising=False)
    forget()
    yield
    forget()


# -- which kernels --


@needs_library
def test_the_fastest_instruction_set_comes_first_and_the_one_that_always_runs_last() -> None:
    order = ["amx", "avx512_lookup", "avx512", "avx2_lookup", "avx2", "generic"]
    assert sorted(KERNELS, key=order.index) == KERNELS
    assert KERNELS[-1] == "generic"


@needs_library
def test_the_fastest_is_used_unless_another_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    native.kernels.cache_clear()
    assert (found := native.kernels()) is not None
    assert found.name == "auto"
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
    finally:
        forget()


@needs_library
@pytest.mark.parametrize("act", ACTS)
def test_what_is_chosen_runs_here_and_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    matrix = random_matrix(70, 130).packed()
    for tokens in (1, 2, 5, 6, 30, 300):
        name, x = native.choice(act, tokens), normal(tokens, 130)
        assert name in KERNELS
        choose(monkeypatch, name)
        (expected,) = linears(x, matrix, act)
        choose(monkeypatch, "auto")
        assert torch.equal(linears(x, matrix, act)[0], expected)


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
    assert re.search(r"^library +none: no C compiler: cc$", out, re.MULTILINE)
    assert re.search(r"^runs here +reference +\(BITMAPS_KERNELS chooses\)$", out, re.MULTILINE)
    assert re.search(r"^in use +reference$", out, re.MULTILINE)


def test_info_says_what_was_left_out_and_what_other_processors_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {"avx2": "clang failed (1): error: no ymm", "python": "cc failed (1): no Python.h"}
    monkeypatch.setattr(native, "left_out", lambda: dict(reasons))
    monkeypatch.setattr(native, "compiled_sets", lambda: {"neon": 0, "generic": 1})
    monkeypatch.setattr(native, "instruction_sets", lambda: {"generic": 1})
    used = native.Kernels(native.library(), 1, "generic", False, None)  # type: ignore[arg-type]
    monkeypatch.setattr(native, "kernels", lambda: used)
    command.info()
    out = capsys.readouterr().out
    assert "runs here     generic, reference   (BITMAPS_KERNELS chooses)\n" in out
    assert "other CPUs    neon\n" in out
    assert "left out      avx2: clang failed (1): error: no ymm\n" in out
    assert "calls         through ctypes, slower: cc failed (1): no Python.h\n" in out


# -- another library --


@needs_library
def test_a_library_of_another_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.so").write_bytes(b"\xcf\xfa\xed\xfe")  # as a library of macOS begins
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "other.so")
    native.library.cache_clear()
    try:
        with pytest.raises(InputError, match=r"other\.so does not open .*: install bitmaps again"):
            native.instruction_sets()
    finally:
        forget()


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
        r"^EXPORT int (bitmaps_\w+)\(const struct (?:plan|layer)\b",
        (SOURCES / "operations.c").read_text(),
        re.MULTILINE,
    )
    assert len(names) == 5
    code = "\n".join(f"int {name}(void) {{ return 1; }}" for name in names)
    code += "\nvoid bitmaps_use_openmp(void) {}\nint bitmaps_isa_runs(int i) { return !i; }\n"
    code += "int bitmaps_attends(int i) { return 1; }\n"
    code += "int bitmaps_choice(int act, long long tokens) { return 0; }\n"
    code += "int bitmaps_reads_tiles(int isa, int act) { return 0; }\n"
    code += 'const char *bitmaps_isa_name(int i) { return i ? 0 : "generic"; }\n'
    (tmp_path / "full.c").write_text(code, encoding="utf-8")
    compiled("-shared", "-fPIC", tmp_path / "full.c", "-o", tmp_path / "full.so")
    monkeypatch.setattr(native, "library_file", lambda: tmp_path / "full.so")
    choose(monkeypatch, "generic")
    native.library.cache_clear()
    try:
        x, residual = normal(1, 3, 32), normal(1, 3, 33)
        matrix, back = random_matrix(33, 32).packed(), random_matrix(32, 33).packed()
        three, output = Packed([random_matrix(32, 32).part()] * 3, 32), random_matrix(32, 32)
        runs: list[Callable[[], object]] = [
            lambda: linears(x, matrix, Act.a8),
            lambda: linear_norm(residual, back, x, *norm_of(32), Act.a8),
            lambda: ffnn(x, matrix, back, *norm_of(32), Act.a8),
            lambda: attention(x, three, output.packed(), None, 1, *norm_of(32), Act.a8),
        ]
        model = packed(binary("layers", hidden_size=32, num_attention_heads=1), Act.a8)
        runs.append(lambda: model.encoder(x, None))
        for run in runs:
            with pytest.raises(MemoryError, match="could not get memory"):
                run()
    finally:
        forget()


# -- the command --


@pytest.mark.slow
def test_info_prints_what_runs_and_what_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitmaps.packed", "info"],
        capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {VARIABLE: "auto"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sets = ", ".join([*KERNELS, REFERENCE])
    assert re.search(rf"^runs here +{sets} +\({VARIABLE} chooses\)$", done.stdout, re.MULTILINE)
    used = "auto" if KERNELS else REFERENCE
    assert re.search(rf"^in use +{used}$", done.stdout, re.MULTILINE)
    if KERNELS:
        for act in ACTS:
            assert re.search(rf"^  {act} +({'|'.join(KERNELS)})\b", done.stdout, re.MULTILINE)
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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose(monkeypatch, "avx1024")
    monkeypatch.setattr(sys, "argv", ["bitmaps.packed", "info"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    said = capsys.readouterr().err
    assert said.startswith(f"error: {VARIABLE}=avx1024 does not run here; valid are auto")
