"""How much memory a model's weights need, and how long a prediction takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.command.parts import Measure
from bitmaps.data.batches import Batch
from bitmaps.packed.discover import fewest_bits, scales_per_row
from bitmaps.vocabulary import Storage

MIB = 2**20
T = TypeVar("T")


def pseudo_bits(weight: Tensor, table: bool = True) -> int:
    """The bits a tensor would take if it were stored in as few bits as give it back.

    The blog post's rule: a tensor of at most two distinct values costs one bit per weight. A matrix
    has further ways::

        every row has at most two values       1 bit per weight, and 32 for each number a row needs:
                                               1 for {-a, a} and {0, a}, otherwise 2
        magnitudes of rank one                 1 bit per weight, 32 per row and 32 per column
        every row is int4 or int8, times a     4 or 8 bits per weight, and 32 per row; only for a
        number                                 word ``table``
        all numbers are fp16                   16 bits per weight; only for a word ``table``

    Any other tensor costs its own width per weight, which is also the upper bound.
    """
    if ((weight == weight.amin()) | (weight == weight.amax())).all():
        return weight.numel()
    own = 8 * weight.element_size() * weight.numel()
    packed = fewest_bits(weight, table) if weight.ndim == 2 else None
    if packed is None:
        return own
    rows, columns = packed.shape
    numbers = 0 if packed.high is None else rows
    if packed.storage == Storage.bit:
        per_row = scales_per_row(packed) if packed.column is None else 1
        numbers = rows * per_row + (0 if packed.column is None else columns)
    return min(own, packed.storage.bits * weight.numel() + 32 * numbers)


def memory_mib(model: nn.Module) -> float:
    """The pseudo size of all parameters in MiB: what the model would take in real bits.

    A tied parameter counts once. Packed weights are buffers, which count as they are. Buffers that
    no checkpoint contains follow from the parameters, and do not count.
    """
    stored = model.state_dict().keys()
    buffers = sum(one.nbytes for name, one in model.named_buffers() if name in stored)
    bits = sum(
        pseudo_bits(p.detach(), table=name.endswith("embeddings.word.weight"))
        for name, p in model.named_parameters()
    )
    return (bits / 8 + buffers) / MIB


def resident_mib(model: nn.Module) -> float:
    """The memory of all parameters and buffers right now, in MiB; shared memory counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) / MIB


@dataclass(frozen=True)
class Timing:
    """Milliseconds per sequence: the median of ``repeats`` batches."""

    inference_ms: float
    repeats: int


def _time(run: Callable[[], object], device: torch.device) -> float:
    """The seconds of one call, by CUDA events on a GPU and by a monotonic clock elsewhere."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def timed_calls(
    run: Callable[[], T], device: torch.device, repeats: int, budget_s: float
) -> tuple[T, list[float]]:
    """What a first call returns, which warms up, and the seconds of further ones.

    At least one further call is timed. No other starts after ``budget_s``, counted from the
    beginning of the first.
    """
    start = time.monotonic()
    found = run()
    seconds: list[float] = []
    while not seconds or (len(seconds) < repeats and time.monotonic() - start < budget_s):
        seconds.append(_time(run, device))
    return found, seconds


@torch.inference_mode()
def inference_time(model: Bert, timed: Measure, masked_only: bool = False) -> Timing:
    """Time forward passes after one to warm up; at least one batch is timed.

    With ``masked_only`` logits are computed at 15 % of the positions, otherwise at all of them, as
    in the blog post.
    """
    device = next(model.parameters()).device
    generator = seeded()
    ids = torch.randint(
        model.config.vocab_size, (timed.batch_size, timed.length), generator=generator
    ).to(device)
    positions = (
        (torch.rand(ids.shape, generator=generator) < 0.15).to(device) if masked_only else None
    )
    training = model.training
    model.eval()
    _, seconds = timed_calls(
        lambda: model(ids, positions=positions), device, timed.repeats, timed.budget_s
    )
    model.train(training)
    return Timing(1000 * median(seconds) / timed.batch_size, len(seconds))


@torch.inference_mode()
def sentences_per_second(model: Bert, batches: Sequence[Batch], timed: Measure) -> float:
    """Sentences of a text that a model takes in a second, batch by batch.

    As many batches are timed as start within ``budget_s``, in a random order, so that short and
    long sentences are among them.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    order = [batches[i] for i in torch.randperm(len(batches), generator=seeded()).tolist()]
    given = [(b["input_ids"].to(device), b["attention_mask"].to(device)) for b in order]
    model(*given[0])
    start, seconds, count = time.monotonic(), 0.0, 0
    for arguments in given:
        if count and time.monotonic() - start >= timed.budget_s:
            break
        seconds += _time(partial(model, *arguments), device)
        count += len(arguments[0])
    model.train(training)
    return count / seconds


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
