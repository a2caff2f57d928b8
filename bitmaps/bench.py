"""How fast, as ratios against a peer that is timed interleaved with it in the same run.

    python -m bitmaps.bench --quick

Machines are noisy, and a time says little on another one. So every round times the peer and then each contender once, in an
order that turns round, and a row is the median of the rounds' ratios ``peer / contender`` (above 1: faster than the peer) with
its quartiles. The row ``A/A`` is the peer against itself: what a ratio of 1 looks like here today.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.binary.components import make_trainable
from bitmaps.binary.quantize import Quantization

BATCH, LENGTH, MASKED = 32, 64, 0.15
SHAPES = {
    "minilm": BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536),
    "bert_base": BertConfig(),
}


@dataclass(frozen=True)
class Ratio:
    """One row: ``peer / contender`` over ``rounds``, and the median times in milliseconds."""

    shape: str
    peer: str
    contender: str
    lower: float
    median: float
    upper: float
    peer_ms: float
    contender_ms: float
    rounds: int


def compare(shape: str, peer: str, runs: dict[str, Callable[[], None]], rounds: int) -> Iterator[Ratio]:
    """Time all ``runs``, ``peer`` among them, ``rounds`` times after one that warms up, and give each one's ratio."""
    names = [peer, "A/A", *(name for name in runs if name != peer)]
    runs = runs | {"A/A": runs[peer]}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in np.roll(names, number).tolist():
            start = time.perf_counter()
            runs[name]()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    times = {name: np.array(values) for name, values in seconds.items()}
    for name in names[1:]:
        lower, median, upper = np.percentile(times[peer] / times[name], (25, 50, 75))
        peer_ms, contender_ms = 1000 * np.median(times[peer]), 1000 * np.median(times[name])
        yield Ratio(shape, peer, name, lower, median, upper, float(peer_ms), float(contender_ms), rounds)


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def training_steps(shape: str, rounds: int) -> Iterator[Ratio]:
    """A step of masked-language modelling on 32 sequences of 64 tokens, without dropout: ours against ``transformers``' model,
    and ours with every layer binarized against ours as it is. (The teacher's forward pass is no part of it.)"""
    config = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    kept = torch.rand(ids.shape, generator=generator) < MASKED
    labels = ids.masked_fill(~kept, -100)

    def ours(model: Bert) -> Callable[[], None]:
        model.set_dropout(0.0).train()
        return training_step(model, lambda: F.cross_entropy(model(ids, mask, positions=kept), ids[kept]))

    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(
            **{k: v for k, v in asdict(config).items() if k != "bitmaps"}
            | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        )
    ).train()
    everything = ours(Bert(config))
    peers = {
        "transformers' step": training_step(theirs, lambda: theirs(ids, attention_mask=mask, labels=labels).loss),
        "our step": everything,
    }
    yield from compare(shape, "transformers' step", peers, rounds)
    binarized = make_trainable(Bert(config), ("attention", "ffnn"), Quantization(center="row", gradient="scaled"))
    yield from compare(
        shape, "our step", {"our step": everything, "our step, layers binarized": ours(binarized)}, rounds
    )


def print_table(rows: list[Ratio]) -> None:
    table = Table(title=f"times as fast as the peer; {machine()}", title_justify="left")
    for heading in ("shape", "peer", "contender", "ratio", "quartiles", "peer ms", "ms"):
        table.add_column(heading, justify="left" if heading in ("shape", "peer", "contender") else "right")
    for row in rows:
        quartiles = f"{row.lower:.2f} - {row.upper:.2f}"
        times = f"{row.peer_ms:.0f}", f"{row.contender_ms:.0f}"
        table.add_row(row.shape, row.peer, row.contender, f"{row.median:.2f}", quartiles, *times)
    console = Console()
    Console(width=None if console.is_terminal else 120).print(table)


def machine() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{torch.get_num_threads()} threads, {platform.machine()} {capability}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bitmaps.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the small shape alone: ends within five minutes")
    parser.add_argument("--rounds", type=int, default=9, help="times that each row is measured")
    parser.add_argument("--output", type=Path, help="write the rows as JSON, too")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds {arguments.rounds} is too small; valid is 1 or more")
    if arguments.output is not None and arguments.output.exists():
        parser.error(f"--output {arguments.output} exists already")
    rows: list[Ratio] = []
    for shape in ["minilm"] if arguments.quick else list(SHAPES):
        for row in training_steps(shape, arguments.rounds):
            rows.append(row)
            print(f"{row.shape}: {row.contender} is {row.median:.2f} times as fast as {row.peer}", file=sys.stderr)
    print_table(rows)
    if arguments.output is not None:
        content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
