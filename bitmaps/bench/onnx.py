"""ONNX files of packed models in the runtimes that open them: size, time and memory.

    python -m bitmaps.bench.onnx packed.onnx floats.onnx

Each file is opened by ONNX Runtime, once as it is by default and once without folding constants, so
that weights stay packed in memory and every call unpacks them. If OpenVINO is installed, it opens
the files too. Every line is a process of its own with one thread. Times are those of its CPU, of
which other processes take nothing; for calls, the median.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitmaps.errors import InputError, refuse, while_somebody_reads

# no torch here: its memory is not that of a runtime

Feed = Mapping[str, Any]
BATCHES, LENGTH, CALLS = (1, 8), 64, 15


@dataclass(frozen=True)
class Times:
    """What one process measured.

    Attributes:
        open_seconds: until the file can be used.
        call_ms: of a call with each of ``BATCHES`` sentences of 64 tokens.
        status: ``/proc/self/status`` after all calls.
    """

    open_seconds: float
    call_ms: list[float]
    status: str


def open_onnx(file: str, folds: bool) -> Callable[[Feed], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=None if folds else ["ConstantFolding"],
    )
    names = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(None, {name: feed[name] for name in names})


def open_openvino(file: str) -> Callable[[Feed], Any]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(file, "CPU", options)
    names = {value.any_name for value in compiled.inputs}
    return lambda feed: compiled({name: feed[name] for name in names})


RUNTIMES: dict[str, tuple[str, Callable[[str], Callable[[Feed], Any]]]] = {
    "ONNX Runtime": ("onnxruntime", partial(open_onnx, folds=True)),
    "ONNX Runtime, unpacking in every call": ("onnxruntime", partial(open_onnx, folds=False)),
    "OpenVINO": ("openvino", open_openvino),
}
"""By name: the package that a runtime needs, and what opens a file."""


def measure(runtime: str, file: str) -> None:
    """Print the ``Times`` of this process as JSON."""
    began = time.process_time()
    call = RUNTIMES[runtime][1](file)
    opened = time.process_time() - began
    medians = []
    for batch in BATCHES:
        ids = np.arange(batch * LENGTH).reshape(batch, LENGTH) % 100
        feed = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        call(feed)
        seconds = []
        for _ in range(CALLS):
            began = time.process_time()
            call(feed)
            seconds.append(time.process_time() - began)
        medians.append(1000 * statistics.median(seconds))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(json.dumps(asdict(Times(opened, medians, status))))


def lines(files: list[Path]) -> Iterator[str]:
    """A table in Markdown."""
    from bitmaps.bench.footprint import output_of, read_memory

    yield "| file | MiB | opened by | seconds | 1 sentence, ms | 8, ms | resident MiB |"
    yield "|---|---:|---|---:|---:|---:|---:|"
    for file in files:
        for runtime, (package, _) in RUNTIMES.items():
            if importlib.util.find_spec(package) is None:
                continue
            code = f"from bitmaps.bench.onnx import measure; measure({runtime!r}, {str(file)!r})"
            found = Times(**json.loads(output_of("-c", code).splitlines()[-1]))
            one, eight = found.call_ms
            yield (
                f"| {file.name} | {file.stat().st_size / 2**20:.1f} | {runtime} "
                f"| {found.open_seconds:.1f} | {one:.0f} | {eight:.0f} "
                f"| {read_memory(found.status).resident / 2**20:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.bench.onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, help="that --onnx has written")
    files = parser.parse_args().files
    try:
        for file in files:
            if not file.is_file():
                raise InputError(f"{file} is no file; valid is one that --onnx has written")
        from bitmaps.bench.footprint import check

        check()
    except InputError as error:
        refuse(error)
    for line in lines(files):
        print(line, flush=True)


if __name__ == "__main__":
    with while_somebody_reads():
        main()
