"""Load servers of sentence vectors with requests, and compare them.

    pip install -c constraints.txt -e '.[serve,bench]'
    python examples/load.py <run folder> --clients 4 --texts 8 --seconds 10 --rounds 3

The contenders are the packed model, its floats, and the model that the run started from in
OpenVINO's int8. The same application serves all of them (serve.py), one after another, round by
round. A row has medians over the rounds: requests a second, and the 50th and 99th percentile of
their time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 2.0  # seconds
FLOATS, INT8 = "floats", "OpenVINO int8"
WORDS = "the small model of a sentence reads what people write and finds texts that mean the same"


@dataclass(frozen=True)
class Load:
    """What clients send.

    Attributes:
        clients: that send one request after another, at the same time.
        texts: in a request.
        seconds: that are measured.
    """

    clients: int
    texts: int
    seconds: float


@dataclass(frozen=True)
class Measured:
    """Requests a second, and milliseconds of a request."""

    rate: float
    p50: float
    p99: float


class OpenVino(nn.Module):
    """A sentence encoder in OpenVINO's int8, as ``serve.app_of`` takes it."""

    def __init__(self, model: Any, texts: Sequence[str]) -> None:
        import nncf
        import openvino

        super().__init__()
        self.config, self.tokenizer = model.config, model.tokenizer
        batches = [self.tokenizer(text, return_tensors="pt") for text in texts]
        pairs = [(batch["input_ids"], batch["attention_mask"]) for batch in batches]
        converted = openvino.convert_model(model, example_input=pairs[0])
        data = nncf.Dataset(pairs, lambda pair: [one.numpy() for one in pair])
        kind = nncf.ModelType.TRANSFORMER
        quantized = nncf.quantize(converted, data, model_type=kind, subset_size=len(pairs))
        self.compiled = openvino.Core().compile_model(quantized, "CPU")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """``token_type_ids`` are those of single sentences, as in the converted model."""
        return torch.from_numpy(self.compiled([input_ids.numpy(), attention_mask.numpy()])[0])


def texts_of(count: int, seed: int) -> list[str]:
    """Sentences of 4 to 40 words."""
    random, words = np.random.RandomState(seed), WORDS.split()
    return [" ".join(random.choice(words, random.randint(4, 41))) for _ in range(count)]


def serve(kind: str, run: Path, port: int) -> None:
    """Serve one contender until the process is stopped."""
    import uvicorn
    from serve import app_of

    import bitmaps

    if kind == INT8:
        import yaml

        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        model: Any = OpenVino(bitmaps.load(config["model"]["source"]), texts_of(64, seed=0))
    else:
        model = bitmaps.load(run / ("model" if kind == FLOATS else "packed"))
    uvicorn.run(app_of(model, kind), port=port, log_level="warning")


def measure(port: int, load: Load) -> Measured:
    """Send requests from all clients at once."""
    seconds: list[float] = []
    end = time.monotonic() + WARM_UP + load.seconds
    start = end - load.seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        asked = 0
        while (begin := time.monotonic()) < end:
            body = json.dumps({"texts": texts_of(load.texts, seed=1000 * number + asked)})
            connection.request("POST", "/embed", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            found = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {found!r}")
            asked += 1
            if begin >= start:
                seconds.append(time.monotonic() - begin)

    with ThreadPoolExecutor(load.clients) as pool:
        list(pool.map(client, range(load.clients)))  # raises what a client raised
    p50, p99 = np.percentile(seconds, (50, 99))
    return Measured(len(seconds) / load.seconds, 1000 * float(p50), 1000 * float(p99))


def measured(kind: str, run: Path, port: int, load: Load) -> Measured:
    """Start the server of a contender, measure it and stop it."""
    server = subprocess.Popen(
        [sys.executable, __file__, str(run), "--serve", kind, "--port", str(port)]
    )
    try:
        while True:
            if server.poll() is not None:
                raise RuntimeError(f"the server of {kind} ended with {server.returncode}")
            connection = http.client.HTTPConnection("127.0.0.1", port)
            try:
                connection.request("GET", "/health")
                connection.getresponse().read()
                break
            except OSError:
                time.sleep(0.2)
        return measure(port, load)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run of task=sentence_embedding")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.run, given.port)
        return
    load = Load(given.clients, given.texts, given.seconds)
    kinds = ["packed", FLOATS, INT8]
    found: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    for _ in range(given.rounds):
        for kind in kinds:
            found[kind].append(measured(kind, given.run, given.port, load))
    print(f"{'':<16}{'requests/s':>12}{'p50, ms':>10}{'p99, ms':>10}")
    for kind, rounds in found.items():
        rate, p50, p99 = (
            statistics.median(getattr(one, name) for one in rounds)
            for name in ("rate", "p50", "p99")
        )
        print(f"{kind:<16}{rate:>12.1f}{p50:>10.1f}{p99:>10.1f}")


if __name__ == "__main__":
    main()
