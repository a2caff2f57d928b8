"""The size of a model's files, and the memory of a process that predicts with them.

    python -m bitmaps.bench.footprint <deployment> <its folder> <vocabulary>

This opens one deployment, predicts one batch and prints the memory as JSON. It imports nothing that
the deployment does not need, except PyTorch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bitmaps.bench.deployments import CONTENDERS, PEERS, Deployment, file_bytes
from bitmaps.errors import InputError

PART = "footprint"
BATCH, LENGTH = 8, 64
BASE = "import torch"
STATUS = Path("/proc/self/status")
BASE_CODE = f"import torch; print(open({str(STATUS)!r}).read())"


@dataclass(frozen=True)
class Memory:
    """Bytes of a process that are in RAM, those of mapped files included.

    Attributes:
        resident: after the last step.
        peak: the most so far.
    """

    resident: int
    peak: int


@dataclass(frozen=True)
class Footprint:
    """What a model takes.

    Attributes:
        model: its shape. Its weights are random.
        deployment: how it is run; ``import torch`` is a process without a model.
        file_bytes: of its files, without a tokenizer.
        resident_bytes, peak_bytes: of a process with one thread that has opened it and has
            predicted 8 sequences of 64 tokens (``Memory``).
    """

    model: str
    deployment: str
    file_bytes: int
    resident_bytes: int
    peak_bytes: int


def check() -> None:
    """Raises:
    InputError: where the system does not show the memory of a process."""
    if not STATUS.is_file():
        raise InputError(f"footprint reads {STATUS}, which only Linux has")


def footprints(
    prepared: Iterator[tuple[str, Deployment, Path, int]], done: Set[tuple[str, str]]
) -> Iterator[Footprint]:
    """The footprint of each prepared deployment, after that of a process without a model.

    Args:
        prepared: names of models, deployments, their folders, and the size of the vocabulary.
        done: pairs of model and deployment that are left out.
    """
    if ("", BASE) not in done:
        memory = read_memory(output_of("-c", BASE_CODE))
        yield Footprint("", BASE, 0, memory.resident, memory.peak)
    for model, deployment, folder, vocabulary in prepared:
        if (model, deployment.name) in done:
            continue
        arguments = [deployment.name, str(folder), str(vocabulary)]
        found = json.loads(output_of("-m", __name__, *arguments).splitlines()[-1])
        memory = Memory(**found)
        size = file_bytes(folder)
        yield Footprint(model, deployment.name, size, memory.resident, memory.peak)


def output_of(*arguments: str) -> str:
    """What a new Python process prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def read_memory(status: str) -> Memory:
    """The memory in ``/proc/<pid>/status``.

    >>> read_memory("VmHWM:      12 kB VmRSS:  10 kB")
    Memory(resident=10240, peak=12288)
    """
    kibibytes = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+) kB", status))
    return Memory(1024 * int(kibibytes["VmRSS"]), 1024 * int(kibibytes["VmHWM"]))


@torch.inference_mode()
def measure(name: str, folder: Path, vocabulary: int) -> Memory:
    """The memory of this process after it has predicted one batch."""
    torch.set_num_threads(1)
    (deployment,) = (one for one in (*CONTENDERS, *PEERS) if one.name == name)
    predict = deployment.open(folder)
    ids = torch.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % vocabulary
    scored = torch.arange(0, ids.numel() if deployment.has_head else 0, 7)
    predict(ids, torch.ones_like(ids), scored)
    return read_memory(STATUS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    print(json.dumps(asdict(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])))))
