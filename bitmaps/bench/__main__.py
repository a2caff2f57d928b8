"""How fast, as ratios against a peer that is timed interleaved with it in the same run.

    python -m bitmaps.bench --quick                      # within five minutes
    python -m bitmaps.bench --output bench.json          # all of it, up to an hour; goes on where it was
    python -m bitmaps.bench linear --isa avx2            # one part, with everything restricted to AVX2

Parts: ``linear``, a one-bit matrix of BERT-base; ``model``, a BERT-base whose layers are in one bit and whose word table is in
int8 (a8) or one bit (a1); ``training``, a step. Machines are noisy, and a time says little on another one. So every round times the
peer and then each contender, in an order that turns round, and a row is the median of the rounds' ratios ``peer / contender``
(above 1: faster than the peer) with its quartiles. The row ``A/A`` is the peer against itself: what a ratio of 1 looks like today.
ONNX Runtime is a peer of matrices where it is installed (``pip install -c constraints.txt -e '.[bench]'``). Memory that is freed
stays with the process (``keep_memory``), with every contender.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bitmaps.bert import Bert, BertConfig
from bitmaps.errors import InputError
from bitmaps.packed import format as folder
from bitmaps.packed import kernels as native
from bitmaps.packed.discover import one_bit
from bitmaps.packed.layers import PackedLinear
from bitmaps.quantize.convert import binarize_naive, make_trainable
from bitmaps.quantize.quantizer import Quantization
from bitmaps.runs.files import write_json
from bitmaps.vocabulary import PLUS_MINUS_ONE, Act, Center, Gradient, Scale, Scope, Storage

Run = Callable[[], object]
BATCH, LENGTH, MASKED = 32, 64, 0.15
SHAPES = {
    "minilm": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert_base": BertConfig(),
}
MATRICES = ((768, 768), (3072, 768), (768, 3072))  # outputs, inputs
TOKENS = {True: (1, 64, 1024), False: (1, 8, 64, 512, 8192)}  # quick or not
BATCHES = {True: (1, 8), False: (1, 32, 128)}
AVX2 = {  # what restricts torch, and the libraries that it calls, to AVX2
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", native.VARIABLE: "avx2",
}  # fmt: skip
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
LEAST = 0.002  # seconds that a single timing lasts at least, by as many calls as that takes


@dataclass(frozen=True)
class Ratio:
    """One row: ``peer / contender`` over ``rounds``, and the median times in milliseconds."""

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


def compare(part: str, what: str, peer: str, runs: dict[str, Run], rounds: int) -> Iterator[Ratio]:
    """Time all ``runs``, ``peer`` among them, ``rounds`` times after one that warms up, and give each one's ratio."""
    names = [peer, "A/A", *(name for name in runs if name != peer)]
    runs = runs | {"A/A": runs[peer]}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls = dict.fromkeys(names, 1)

    def timed(name: str) -> float:
        start = time.perf_counter()
        for _ in range(calls[name]):
            runs[name]()
        return time.perf_counter() - start

    for name in names:
        timed(name)
        while timed(name) < LEAST:
            calls[name] *= 2
    for number in range(rounds):
        for name in np.roll(names, number).tolist():
            if (
                calls[name] > 1
            ):  # what is short finds its weights in cache, whoever was timed before it
                timed(name)
            seconds[name].append(timed(name) / calls[name])
    times = {name: np.array(values) for name, values in seconds.items()}
    for name in names[1:]:
        lower, median, upper = np.percentile(times[peer] / times[name], (25, 50, 75))
        peer_ms, contender_ms = 1000 * np.median(times[peer]), 1000 * np.median(times[name])
        yield Ratio(
            part, what, torch.get_num_threads(), peer, name, lower, median, upper, float(peer_ms), float(contender_ms), rounds
        )  # fmt: skip


def keep_memory() -> None:
    """Memory that is freed stays with the process, for whoever is timed next: glibc gives large blocks back to the system, so that
    every output of PyTorch's operations and ours would be made of pages that the system has to clear first. ONNX Runtime keeps its
    memory by itself."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


# -- a matrix --


def int8_dynamic(module: nn.Module) -> nn.Module:
    """PyTorch's own: int8 weights, activations rounded to int8 as they come."""
    with warnings.catch_warnings():
        # it moves to torchao, and stays the built-in one until then
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)


def onnx_runs(linear: nn.Linear, x: Tensor) -> dict[str, Run]:
    """The same matrix in ONNX Runtime, in fp32 and in dynamic int8; nothing where it is not installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnx") is None:
        return {}
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float32, helper = onnx.TensorProto.FLOAT, onnx.helper
    weight = onnx.numpy_helper.from_array(linear.weight.detach().numpy().T.copy(), "w")
    bias = onnx.numpy_helper.from_array(linear.bias.detach().numpy(), "b")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", float32, ["m", linear.in_features])]
    outputs = [helper.make_tensor_value_info("y", float32, ["m", linear.out_features])]
    graph = helper.make_graph(nodes, "linear", inputs, outputs, [weight, bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.log_severity_level = 3
    # its idle threads would wait in a loop, on the cores of whoever is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    feed = {"x": x.numpy()}
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in ("fp32", "int8 dynamic"):
            path = Path(name) / f"{kind}.onnx"
            if kind == "fp32":
                onnx.save(model, path)
            else:
                quantize_dynamic(
                    Path(name) / "fp32.onnx", path, weight_type=QuantType.QInt8, per_channel=True
                )
            session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            runs[f"ONNX Runtime {kind}"] = partial(session.run, None, feed)
    return runs


@torch.inference_mode()
def linears(rounds: int, quick: bool, there: set[str]) -> Iterator[Ratio]:
    """A matrix of BERT-base in one bit a weight, with row scales, by what the activations are rounded to."""
    generator = torch.Generator().manual_seed(0)
    for tokens in TOKENS[quick]:
        for outputs, inputs in MATRICES:
            what = f"{inputs} to {outputs}, {tokens} token{'s' * (tokens > 1)}"
            if what in there:
                continue
            x = torch.randn(tokens, inputs, generator=generator)
            linear = nn.Linear(inputs, outputs)
            signs = torch.where(torch.randn(outputs, inputs, generator=generator) > 0, 1.0, -1.0)
            linear.weight = nn.Parameter(torch.randn(outputs, 1, generator=generator) * signs)
            weight = one_bit(linear.weight)
            assert weight is not None
            runs: dict[str, Run] = {
                "torch fp32": partial(linear, x),
                "torch int8 dynamic": partial(
                    int8_dynamic(nn.Sequential(linear)), x
                ),  # it replaces children alone
                **onnx_runs(linear, x),
            }
            for act in native.ACTS:
                runs[f"one bit, {act}"] = partial(
                    PackedLinear(weight, linear.bias.detach(), act), x
                )
            yield from compare("linear", what, "torch fp32", runs, rounds)


# -- a model --


def packed_model(model: Bert, act: Act) -> Bert:
    """Its layers in one bit with row scales, and the word table, as it suits the activations, in int8 or one bit."""
    components = ("attention", "ffnn", "embeddings") if act == Act.a1 else ("attention", "ffnn")
    binary = Bert(model.config)
    binary.load_state_dict(model.state_dict())
    binarize_naive(binary, components, PLUS_MINUS_ONE, Scale.row, Scope.matrices)
    return folder.assemble(model.config, folder.pack_model(binary, embeddings=Storage.int8), act)


def transformers_model(config: BertConfig) -> nn.Module:
    values = {k: v for k, v in asdict(config).items() if k != "bitmaps"}
    values |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.BertForMaskedLM._from_config(
        transformers.BertConfig(**values), attn_implementation="eager"
    )


@torch.inference_mode()
def models(rounds: int, quick: bool, there: set[str]) -> Iterator[Ratio]:
    """A BERT-base on sequences of 64 tokens, against the fair fp32 model, of fused attention and with logits at masked positions
    alone, and against ``transformers``' as it comes: all logits."""
    generator = torch.Generator().manual_seed(0)
    fair = Bert(SHAPES["bert_base"]).eval()
    theirs = transformers_model(fair.config).eval()
    others = {
        "torch int8 dynamic": int8_dynamic(fair),
        "one bit, a8": packed_model(fair, Act.a8),
        "one bit, a1": packed_model(fair, Act.a1),
    }
    for batch in BATCHES[quick]:
        ids = torch.randint(fair.config.vocab_size, (batch, LENGTH), generator=generator)
        kept = torch.rand(ids.shape, generator=generator) < MASKED
        runs: dict[str, Run] = {"fair fp32": partial(fair, ids, positions=kept)}
        runs |= {name: partial(model, ids, positions=kept) for name, model in others.items()}
        for peer in ("fair fp32", "transformers"):
            if peer == "transformers":
                runs["transformers"] = partial(theirs, ids)
            what = f"BERT-base, batch {batch} of {LENGTH} tokens, against {peer}"
            if what not in there:
                yield from compare("model", what, peer, runs, rounds)


# -- a training step --


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Run:
    """Forward, backward and an AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def training_steps(rounds: int, quick: bool, there: set[str]) -> Iterator[Ratio]:
    """A step of masked-language modelling on 32 sequences of 64 tokens, without dropout: ours against ``transformers``' model,
    and ours with every layer binarized against ours as it is. (The teacher's forward pass is no part of it.)"""
    for shape in ("minilm",) if quick else tuple(SHAPES):
        step, through = (
            f"{shape}, {BATCH} sequences of {LENGTH} tokens, {which}"
            for which in ("the step", "through one bit")
        )
        if {step, through} <= there:
            continue
        config = SHAPES[shape]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(config.vocab_size, (BATCH, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        kept = torch.rand(ids.shape, generator=generator) < MASKED
        labels = ids.masked_fill(~kept, -100)

        def ours(model: Bert, ids: Tensor = ids, mask: Tensor = mask, kept: Tensor = kept) -> Run:
            model.set_dropout(0.0).train()
            return training_step(
                model, lambda: F.cross_entropy(model(ids, mask, positions=kept), ids[kept])
            )

        theirs: Any = transformers_model(config).train()
        everything = ours(Bert(config))

        def their_loss(
            model: Any = theirs, ids: Tensor = ids, mask: Tensor = mask, labels: Tensor = labels
        ) -> Tensor:
            return model(ids, attention_mask=mask, labels=labels).loss

        runs = {"transformers' step": training_step(theirs, their_loss), "our step": everything}
        if step not in there:
            yield from compare("training", step, "transformers' step", runs, rounds)
        binarized = make_trainable(
            Bert(config),
            ("attention", "ffnn"),
            Quantization(center=Center.row, gradient=Gradient.scaled),
        )
        runs = {"our step": everything, "our step, layers binarized": ours(binarized)}
        if through not in there:
            yield from compare("training", through, "our step", runs, rounds)


PARTS = {"linear": linears, "model": models, "training": training_steps}


def summary(rows: list[Ratio]) -> list[tuple[str, ...]]:
    """The geometric mean over the matrices' shapes, for each count of tokens, of threads, and contender."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        if row.part == "linear":
            groups.setdefault((row.what.split(", ")[1], row.threads, row.contender), []).append(
                row.median
            )
    return [
        (what, str(threads), name, f"{geometric_mean(found):.2f}")
        for (what, threads, name), found in groups.items()
    ]


def print_tables(rows: list[Ratio]) -> None:
    console = Console()
    console = Console(width=None if console.is_terminal else 140)
    table = Table(title=f"times as fast as the peer; {machine()}", title_justify="left")
    for heading in ("what", "threads", "peer", "contender", "ratio", "quartiles", "peer ms", "ms"):
        table.add_column(
            heading, justify="left" if heading in ("what", "peer", "contender") else "right"
        )
    for row in rows:
        quartiles = f"{row.lower:.2f} - {row.upper:.2f}"
        times = f"{row.peer_ms:.3g}", f"{row.contender_ms:.3g}"
        table.add_row(
            row.what,
            str(row.threads),
            row.peer,
            row.contender,
            f"{row.median:.2f}",
            quartiles,
            *times,
        )
    console.print(table)
    if means := summary(rows):
        table = Table(
            title="matrices against torch fp32, geometric mean of the shapes", title_justify="left"
        )
        for heading in ("tokens", "threads", "contender", "ratio"):
            table.add_column(heading)
        for mean in means:
            table.add_row(*mean)
        console.print(table)


def machine() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    found = native.kernels()
    packages = [
        "torch",
        "transformers",
        *(["onnxruntime"] if importlib.util.find_spec("onnxruntime") else []),
    ]
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    kernels = found.name if found else native.REFERENCE
    return f"{platform.machine()} {capability}, kernels {kernels}, {versions}, Python {platform.python_version()}"


def read_rows(path: Path | None) -> list[Ratio]:
    """What an earlier run that was stopped has measured, on the same machine.

    Raises:
        SystemExit: when the file is something else, or of another machine or other versions.
    """
    if path is None or not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Ratio(**row) for row in content["rows"]]
        measured = content["machine"]
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"error: --output {path} exists, and is no result of this command: {error}")
    if measured != machine():
        sys.exit(f"error: --output {path} is of {measured}, and this is {machine()}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bitmaps.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="fewer and smaller ones: ends within five minutes"
    )
    parser.add_argument(
        "--rounds", type=int, help="times that each row is measured (default: 9, quick 3)"
    )
    parser.add_argument(
        "--threads", type=int, nargs="+", help="(default: 1, and as many as torch takes by itself)"
    )
    parser.add_argument("--isa", choices=("avx2",), help="restrict torch and the kernels to it")
    parser.add_argument(
        "--output", type=Path, help="write the rows as JSON, as they come; rows that are there stay"
    )
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]}; valid are {', '.join(PARTS)}")
    rounds = arguments.rounds if arguments.rounds is not None else 3 if arguments.quick else 9
    if rounds < 1:
        parser.error(f"--rounds {rounds} is too small; valid is 1 or more")
    threads = arguments.threads or sorted({1, torch.get_num_threads()})
    if min(threads) < 1:
        parser.error(f"--threads {min(threads)} is too small; valid is 1 or more")
    if arguments.isa == "avx2" and any(
        os.environ.get(name) != value for name, value in AVX2.items()
    ):
        # torch reads these when it is loaded: so once more, in a process that has them
        again = [sys.executable, "-m", "bitmaps.bench", *sys.argv[1:]]
        sys.exit(subprocess.run(again, env=os.environ | AVX2, check=False).returncode)
    if arguments.output is not None and not arguments.output.parent.is_dir():
        parser.error(f"--output {arguments.output}: there is no folder {arguments.output.parent}")
    try:
        measured = machine()
    except InputError as error:
        sys.exit(f"error: {error}")
    rows = read_rows(arguments.output)
    keep_memory()
    for count in threads:
        torch.set_num_threads(count)
        for part in arguments.parts or PARTS:
            there = {row.what for row in rows if row.part == part and row.threads == count}
            for row in PARTS[part](rounds, arguments.quick, there):
                rows.append(row)
                print(
                    f"{row.what}, {count} threads: {row.contender} is {row.median:.2f} times as fast as {row.peer}",
                    file=sys.stderr,
                )
                if arguments.output is not None:
                    write_json(
                        arguments.output,
                        {"machine": measured, "rows": [asdict(row) for row in rows]},
                    )
    print_tables(rows)


if __name__ == "__main__":
    main()
