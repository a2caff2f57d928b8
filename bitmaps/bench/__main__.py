"""Speed, as ratios to peers that are timed in alternation with the contenders. Size, memory and
accuracy beside the same peers.

    python -m bitmaps.bench --quick                      # within five minutes
    python -m bitmaps.bench --output bench.json          # everything, hours; can be resumed
    python -m bitmaps.bench linear --isa avx2            # one part, with AVX2 instructions only
    python -m bitmaps.bench quality --checkpoint <run folder> --ptb <folder> --output bench.json
    python -m bitmaps.bench picture bench.json bench.svg

The parts are:

    linear      a one-bit matrix of BERT-base
    model       MiniLM and BERT-base with one-bit layers and a word table in int8 or one bit (a1)
    training    a training step
    footprint   the files of a model, and the memory of a process that predicts with them
    kernels     each kernel against the one that is chosen; only if it is named
    quality     a trained one-bit model, beside its teacher in the formats of the peers

Times differ from machine to machine, and from minute to minute. Every round therefore times the
peer and each contender, in an order that rotates. A row gives the median and the quartiles of the
ratio peer / contender over the rounds. Above 1, the contender is faster. The row A/A is the peer
against itself: its distance from 1 is the noise of the machine.

ONNX Runtime, OpenVINO and llama.cpp are peers if they are installed:
pip install -c constraints.txt -e '.[bench]'
Sentences of real lengths come from the extra `offline`.
Memory that is freed stays with the process, for every contender.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from bitmaps.bench import footprint, kernels, linear, model, picture, quality, training
from bitmaps.bench.deployments import Deployment, installed, left_out
from bitmaps.bench.results import Results, print_tables, read
from bitmaps.bench.timing import Ratio, Request, keep_memory
from bitmaps.calling import as_called, called
from bitmaps.errors import InputError, refuse, while_somebody_reads
from bitmaps.packed.kernels import VARIABLE
from bitmaps.runs.files import write_json

SPEEDS: dict[str, Callable[[Request], Iterator[Ratio]]] = {
    part.PART: part.ratios for part in (linear, model, training, kernels)
}
PARTS = (*SPEEDS, footprint.PART, quality.PART)
AVX2 = {  # restricts torch, the libraries that it calls, and the kernels
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    VARIABLE: "avx2",
}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog=called("bench"),
        description=as_called(str(__doc__), "bench"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add(
        "parts",
        nargs="*",
        help=f"any of {', '.join(PARTS)} (default: all but kernels and quality)",
    )
    add("--quick", action="store_true", help="measure fewer and smaller things")
    add("--rounds", type=int, help="timings per row (default: 9; with --quick: 3)")
    add("--threads", type=int, nargs="+", help="numbers of threads (default: 1, and torch's own)")
    add("--isa", choices=("avx2",), help="restrict torch and the kernels to these instructions")
    add("--output", type=Path, help="write each row to this JSON file, and skip rows that it has")
    of_quality = found.add_argument_group("quality")
    add = of_quality.add_argument
    add("--checkpoint", type=Path, help="run folder of a trained one-bit model, with packed/")
    add("--teacher", type=Path, help="its teacher's folder (default: MiniLM, extra `offline`)")
    add("--ptb", type=Path, help="folder with ptb.train.txt and ptb.valid.txt")
    add("--limit", type=int, help="sentences that are scored (default: all)")
    return found


def main() -> None:
    if sys.argv[1:2] == ["picture"]:
        main_of_picture(sys.argv[2:])
        return
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
    here = [linear.PART, model.PART, training.PART]
    here += [footprint.PART] if footprint.STATUS.is_file() else []
    parts = arguments.parts or here
    try:
        if footprint.PART in parts:
            footprint.check()
        results, asked = read(output), asked_of(arguments, parts)
        for line in left_out() if {*parts} - {linear.PART, training.PART, kernels.PART} else ():
            print(line, file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="bitmaps-bench-") as name:
            folder = Path(name)
            measure_speed(results, parts, threads, rounds, arguments.quick, folder, output)
            if footprint.PART in parts:
                measure_footprints(results, arguments.quick, folder, output)
            if asked is not None:
                measure_quality(results, asked, folder, output)
    except InputError as error:
        refuse(error)
    print_tables(results)


def main_of_picture(words: list[str]) -> None:
    command = argparse.ArgumentParser(
        prog="python -m bitmaps.bench picture",
        description=picture.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("results", type=Path)
    command.add_argument("picture", type=Path)
    arguments = command.parse_args(words)
    try:
        picture.draw(arguments.results, arguments.picture)
    except InputError as error:
        refuse(error)


def asked_of(arguments: argparse.Namespace, parts: list[str]) -> quality.Asked | None:
    """What ``quality`` scores.

    Raises:
        InputError: as ``Asked.check``, or for its options without it.
    """
    names = ("checkpoint", "teacher", "ptb", "limit")
    given = [getattr(arguments, name) for name in names]
    if quality.PART in parts:
        return quality.Asked.check(*given)
    for name, value in zip(names, given, strict=True):
        if value is not None:
            raise InputError(f"--{name} {value} has no effect without the part {quality.PART}")
    return None


def save(results: Results, output: Path | None) -> None:
    if output is not None:
        write_json(output, asdict(results))


def measure_speed(
    results: Results,
    parts: list[str],
    threads: list[int],
    rounds: int,
    quick: bool,
    folder: Path,
    output: Path | None,
) -> None:
    """Add the rows that are missing, and write the file after each."""
    keep_memory()
    for count in threads:
        torch.set_num_threads(count)
        for part in (part for part in parts if part in SPEEDS):
            have = [row for row in results.rows if (row.part, row.threads) == (part, count)]
            for row in SPEEDS[part](Request(rounds, quick, folder, tuple(have))):
                results.rows.append(row)
                print(
                    f"{row.what}, {count} threads: {row.contender} is {row.median:.2f} times as "
                    f"fast as {row.peer}",
                    file=sys.stderr,
                )
                save(results, output)


def measure_footprints(results: Results, quick: bool, folder: Path, output: Path | None) -> None:
    """Add the footprints that are missing, and write the file after each."""
    done = {(one.model, one.deployment) for one in results.footprints}
    for one in footprint.footprints(prepared(quick, folder, done), done):
        results.footprints.append(one)
        print(
            f"{one.model} {one.deployment}: {one.resident_bytes / 2**20:.0f} MiB", file=sys.stderr
        )
        save(results, output)


def prepared(
    quick: bool, folder: Path, done: set[tuple[str, str]]
) -> Iterator[tuple[str, Deployment, Path, int]]:
    """What ``footprints`` opens."""
    for name in model.QUICK_MODELS if quick else model.MODELS:
        missing = [one for one in installed() if (name, one.name) not in done]
        if quick:
            missing = [one for one in missing if one.name in model.quick_names()]
        if missing:
            config = model.MODELS[name]
            random, batches = model.random_model(config)
            for one in missing:
                path = one.prepare(random, folder / name, batches)
                yield name, one, path, config.vocab_size


def measure_quality(
    results: Results, asked: quality.Asked, folder: Path, output: Path | None
) -> None:
    """Add the scores that are missing, and write the file after each."""
    done = {one.key for one in results.qualities}
    for one in quality.qualities(asked, folder / quality.PART, done):
        results.qualities.append(one)
        print(f"{one.deployment}: accuracy {one.accuracy:.4f}", file=sys.stderr)
        save(results, output)


if __name__ == "__main__":
    with while_somebody_reads():
        main()
