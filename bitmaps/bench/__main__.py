"""Speed, as ratios to peers that are timed in alternation with the contenders.

    python -m bitmaps.bench --quick                      # within five minutes
    python -m bitmaps.bench --output bench.json          # everything, up to an hour; can be resumed
    python -m bitmaps.bench linear --isa avx2            # one part, with AVX2 instructions only

The parts are:

    linear      a one-bit matrix of BERT-base
    model       a BERT-base with one-bit layers and a word table in int8 (a8) or one bit (a1)
    training    a training step

Times differ from machine to machine, and from minute to minute. Every round therefore times the
peer and each contender, in an order that rotates. A row gives the median and the quartiles of the
ratio peer / contender over the rounds. Above 1, the contender is faster. The row A/A is the peer
against itself: its distance from 1 is the noise of the machine.

ONNX Runtime is a peer of matrices if it is installed: pip install -c constraints.txt -e '.[bench]'
Memory that is freed stays with the process, for every contender.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bitmaps.bench import linear, model, training
from bitmaps.bench.results import Results, print_tables, read
from bitmaps.bench.timing import Ratio, Request, keep_memory
from bitmaps.errors import InputError, refuse
from bitmaps.packed.kernels import VARIABLE
from bitmaps.runs.files import write_json

PARTS: dict[str, Callable[[Request], Iterator[Ratio]]] = {
    part.PART: part.ratios for part in (linear, model, training)
}
AVX2 = {  # restricts torch, the libraries that it calls, and the kernels
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    VARIABLE: "avx2",
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m bitmaps.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("parts", nargs="*", help=f"any of {', '.join(PARTS)} (default: all)")
    add("--quick", action="store_true", help="measure fewer and smaller things")
    add("--rounds", type=int, help="timings per row (default: 9; with --quick: 3)")
    add("--threads", type=int, nargs="+", help="numbers of threads (default: 1, and torch's own)")
    add("--isa", choices=("avx2",), help="restrict torch and the kernels to these instructions")
    add("--output", type=Path, help="write each row to this JSON file, and skip rows that it has")
    return found


def main() -> None:
    command = parser()
    arguments = command.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        command.error(f"unknown part {unknown[0]}; valid are {', '.join(PARTS)}")
    rounds = arguments.rounds if arguments.rounds is not None else 3 if arguments.quick else 9
    if rounds < 1:
        command.error(f"--rounds {rounds} is too small; valid is 1 or more")
    threads = arguments.threads or sorted({1, torch.get_num_threads()})
    if min(threads) < 1:
        command.error(f"--threads {min(threads)} is too small; valid is 1 or more")
    if arguments.isa == "avx2" and any(os.environ.get(name) != AVX2[name] for name in AVX2):
        # torch reads these variables when it is loaded, so it takes a new process
        again = [sys.executable, "-m", "bitmaps.bench", *sys.argv[1:]]
        sys.exit(subprocess.run(again, env=os.environ | AVX2, check=False).returncode)
    output: Path | None = arguments.output
    if output is not None and not output.parent.is_dir():
        command.error(f"--output {output}: there is no folder {output.parent}")
    try:
        results = read(output)
    except InputError as error:
        refuse(error)
    parts = arguments.parts or list(PARTS)
    measure(results, parts, threads, rounds, arguments.quick, output)
    print_tables(results)


def measure(
    results: Results,
    parts: list[str],
    threads: list[int],
    rounds: int,
    quick: bool,
    output: Path | None,
) -> None:
    """Add the rows that are missing, and write the file after each."""
    keep_memory()
    for count in threads:
        torch.set_num_threads(count)
        for part in parts:
            done = {row.what for row in results.rows if (row.part, row.threads) == (part, count)}
            for row in PARTS[part](Request(rounds, quick, frozenset(done))):
                results.rows.append(row)
                print(
                    f"{row.what}, {count} threads: {row.contender} is {row.median:.2f} times as "
                    f"fast as {row.peer}",
                    file=sys.stderr,
                )
                if output is not None:
                    write_json(output, asdict(results))


if __name__ == "__main__":
    main()
