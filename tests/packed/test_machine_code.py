"""The compiled kernels: their inner loops stay in registers, and they keep within their arrays."""

from __future__ import annotations

import platform
import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from packed.building import SOURCES, call, compile_arguments, compiled, compiler

from bitmaps.packed import kernels as native

# -- registers --

Code = list[tuple[int, str]]  # address and text of each instruction


def disassembled(file: Path) -> list[Code]:
    """The functions of a file. Those for a few rows are left out: they have one loop for each
    number of rows."""
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
        occurs(mnemonic, loop)
        for mnemonic in ("vpdpbusd", "vpopcntd", "vpmaddubsw", "vpshufb", "vfmadd231ps")
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


@cache
def loops_of(file: Path) -> list[tuple[Code, Code]]:
    """Each function with each of its hot loops, the shortest loop first."""
    pairs = [(code, loop) for code in disassembled(file) for loop in hot_loops(code)]
    return sorted(pairs, key=lambda pair: len(pair[1]))


def traffic(code: Code, loop: Code) -> list[str]:
    """What a loop moves between vector registers and the stack. Every store counts: sums that stay
    in registers are stored after the loop."""
    frame = any(
        re.match(r"mov\s+%rsp,%rbp", text) for _, text in code
    )  # else rbp is a register like the others
    moved = (r"\(%r[sb]p" if frame else r"\(%rsp") + r"|%[yz]mm\d+,[^,]*\("
    return [text for _, text in loop if re.search("%[yz]mm", text) and re.search(moved, text)]


# loop -> how many there are, and how many of which instructions each has at least; 0 is none. The
# compiler may put several into one function.
HOT: dict[str, tuple[int, dict[str, int]]] = {
    "many rows, bits and bytes": (2, {"vpdpbusd": 24}),
    "many rows, looked up": (1, {"vpdpbusd": 24, "vpermb": 24, "vpternlogd": 0}),
    "a single row, looked up, one plane to three": (
        3,
        {"vpdpbusd": 8, "vpermb": 8, "vpternlogd": 8},
    ),
    "many rows, signs": (1, {"vpopcntd": 16}),
    "a single row, one plane and two": (2, {"vpdpbusd": 32, "vpand": 32}),
    "a single row, signs": (1, {"vpopcntd": 8}),
    "many rows, looked up with AVX2": (1, {"vpshufb": 6, "vpaddw": 12}),
    "many rows, AVX2": (1, {"vpmaddubsw": 8, "vpbroadcastd": 4}),
    "attention": (2, {"vfmadd231ps": 16, "vbroadcastss": 8}),
    "a single row, AVX2": (1, {"vpmaddubsw": 8, "vpand": 8}),
}


def found(file: Path, name: str) -> list[tuple[Code, Code]]:
    """Function and loop, the shortest first."""
    count, instructions = HOT[name]
    fitting = [
        (code, loop)
        for code, loop in loops_of(file)
        if all(
            occurs(mnemonic, loop) >= least if least else not occurs(mnemonic, loop)
            for mnemonic, least in instructions.items()
        )
    ]
    assert len(fitting) >= count
    return fitting[:count]


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
    for code, loop in found(file, name):
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
        (
            "avx512_lookup.c",
            "many rows, looked up",
            {r"\bTILE = 6\b": "TILE = 8", "unroll 6": "unroll 8"},
        ),
        ("avx2_many.c", "many rows, AVX2", {r"\bTILE = 4\b": "TILE = 8", "unroll 4": "unroll 8"}),
    ],
    ids=["avx512", "lookup", "avx2"],
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
    assert all(traffic(code, loop) for code, loop in found(tmp_path / "spilling.o", name))


# -- memory --


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "rounds", "largest"),
    [
        # gcc 12 mistakes the element i - 1 of `c ? a : b` for one outside; hence no object-size
        (
            [
                "-O1",
                "-g",
                "-fsanitize=address,undefined",
                "-fno-sanitize=object-size",
                "-fno-sanitize-recover=all",
            ],
            4,
            2**24,
        ),
        # several times the products that a second thread starts at (SMALL in native/stages.h)
        (["-O1", "-g", "-fsanitize=thread"], 1, 2**24),
        # as they are used, at any size: arrays end at pages that must not be touched
        (compile_arguments(), 10, 2**40),
    ],
    ids=["address_and_undefined", "thread", "none"],
)
def test_kernels_keep_within_their_arrays_and_agree(
    tmp_path: Path, flags: list[str], rounds: int, largest: int
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
    done = call(program, 0, rounds, largest)
    assert done.returncode == 0, done.stdout + done.stderr
    *names, products, _, tiled, _, failures, _ = done.stdout.split()
    assert names[-1] == "generic"
    assert int(products) > 500 * rounds
    assert (int(tiled) > 20 * rounds) is ("avx512_lookup" in names)
    assert int(failures) == 0
