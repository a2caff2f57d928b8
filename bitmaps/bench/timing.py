"""Ratios of times that are measured in alternation."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Run = Callable[[], object]
"""What is timed, such as a forward pass on fixed inputs."""

AGAIN = "A/A"  # the peer, timed a second time
SHORTEST_S = 0.002  # seconds; a single timing repeats a shorter run until it lasts that long
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


@dataclass(frozen=True)
class Ratio:
    """One row of results: the time of a peer divided by that of a contender.

    Attributes:
        part: ``linear``, ``model``, ``training`` or ``kernels``.
        what: the work that both do.
        threads: threads of PyTorch and of the kernels.
        peer, contender: the names of the two.
        lower, median, upper: quartiles of the ratio over the rounds. Above 1, the contender is
            faster.
        peer_ms, contender_ms: median times in milliseconds.
        rounds: how often the two were timed.
    """

    part: str
    what: str
    threads: int
    peer: str
    contender: str
    lower: float
    median: float
    upper: float
    peer_ms: float
    contender_ms: float
    rounds: int


@dataclass(frozen=True)
class Request:
    """What a part is asked to measure.

    Attributes:
        rounds: timings per row.
        quick: whether to measure fewer and smaller things.
        folder: for the files of models. Parts share what they write there.
        rows: what an earlier run has measured of this part with as many threads.
    """

    rounds: int
    quick: bool
    folder: Path
    rows: tuple[Ratio, ...] = ()

    @property
    def done(self) -> frozenset[str]:
        """``Ratio.what`` of the rows."""
        return frozenset(row.what for row in self.rows)


def compare(
    part: str,
    what: str,
    peer: str,
    runs: dict[str, Run],
    rounds: int,
    further: Sequence[str] = (),
) -> Iterator[Ratio]:
    """Time ``runs``, with ``peer`` among them, and yield the ratio of each to the peer.

    ``further`` names more peers among the runs. The same times give the ratios to each of them.

    The first ratio is that of the peer to itself, ``A/A``: its distance from 1 is the noise of the
    machine. Every round times all runs. Their order rotates from round to round, after a round that
    warms up.
    """
    names = [peer, AGAIN, *(name for name in runs if name != peer)]
    times = timings(names, runs | {AGAIN: runs[peer]}, rounds)
    pairs = [(peer, name) for name in names[1:]]
    pairs += [(other, name) for other in further for name in runs if name != other]
    for reference, name in pairs:
        lower, median, upper = np.percentile(times[reference] / times[name], (25, 50, 75)).tolist()
        yield Ratio(
            part=part,
            what=what,
            threads=torch.get_num_threads(),
            peer=reference,
            contender=name,
            lower=lower,
            median=median,
            upper=upper,
            peer_ms=float(1000 * np.median(times[reference])),
            contender_ms=float(1000 * np.median(times[name])),
            rounds=rounds,
        )


def timings(names: list[str], runs: dict[str, Run], rounds: int) -> dict[str, np.ndarray]:
    """The seconds of each named run in every round, (rounds,) each."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = dict.fromkeys(names, 1)

    def timed(name: str) -> float:
        start = time.perf_counter()
        for _ in range(calls[name]):
            runs[name]()
        return time.perf_counter() - start

    for name in names:
        timed(name)
        while timed(name) < SHORTEST_S:
            calls[name] *= 2
    for number in range(rounds):
        for name in np.roll(names, number).tolist():
            # the run before may have evicted the weights of a short run from the cache
            if calls[name] > 1:
                timed(name)
            seconds[name].append(timed(name) / calls[name])
    return {name: np.array(values) for name, values in seconds.items()}


def keep_memory() -> None:
    """Keep freed memory in the process.

    By default, glibc returns large blocks to the system, which then clears the pages of every new
    output. PyTorch and the kernels would pay for that, and ONNX Runtime, which has its own arena,
    would not.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
