"""How much memory a model's weights need, and how long it takes to predict."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.command.parts import Measure
from bitmaps.packed.weights import is_half, is_integer, numbers_per_row, rank_one_parts

MIB = 2**20


def pseudo_bits(weight: Tensor, table: bool = True) -> int:
    """What a tensor would take if it were stored in as few bits as give it back.

    The blog post's rule: a tensor of at most two distinct values costs one bit a weight. Extended, for a matrix:

        every row has at most two values       1 bit a weight, and 32 for each number that a row needs (``numbers_per_row``)
        magnitudes of rank one                 1 bit a weight, 32 a row and 32 a column
        every row is int4 or int8, times a     4 or 8 bits a weight, and 32 a row; if it is a ``table`` of words
        all numbers are fp16                   16 bits a weight; the same

    Any other tensor costs its own width a weight.
    """
    if ((weight == weight.amin()) | (weight == weight.amax())).all():
        return weight.numel()
    own = 8 * weight.element_size() * weight.numel()
    if weight.ndim != 2:
        return own
    rows, columns = weight.shape
    few = weight[:64]  # most matrices are none of these, which a few rows show
    if (numbers := numbers_per_row(weight)) is not None:
        return min(own, weight.numel() + 32 * numbers * rows)
    if rank_one_parts(weight) is not None:
        return min(own, weight.numel() + 32 * (rows + columns))
    for width in (4, 8) if table else ():
        if is_integer(few, width) and is_integer(weight, width):
            return min(own, width * weight.numel() + 32 * rows)
    return 16 * weight.numel() if table and is_half(few) and is_half(weight) else own


def memory_mib(model: nn.Module) -> float:
    """The pseudo size of all parameters in MiB, a tied one counted once: what the model would take in real bits. What a packed
    model holds in real bits, its buffers, counts as it is."""
    parameters = model.named_parameters()
    pseudo = (
        sum(
            pseudo_bits(p.detach(), name.endswith("embeddings.word.weight"))
            for name, p in parameters
        )
        / 8
    )
    return (pseudo + sum(buffer.nbytes for buffer in model.buffers())) / MIB


def resident_mib(model: nn.Module) -> float:
    """What parameters and buffers occupy right now, in MiB, memory that is shared counted once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) / MIB


@dataclass(frozen=True)
class Timing:
    """Milliseconds a sequence: the median of ``repeats`` batches."""

    inference_ms: float
    repeats: int


def _time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: CUDA events on a GPU, a monotonic clock elsewhere."""
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


@torch.inference_mode()
def inference_time(model: Bert, timed: Measure, masked_only: bool = False) -> Timing:
    """Time forward passes, after one that warms up. With ``masked_only`` the logits are taken at 15 % of the positions alone,
    otherwise at all, as in the blog post. At least one batch is timed."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        model.config.vocab_size, (timed.batch_size, timed.length), generator=generator
    ).to(device)
    positions = (
        (torch.rand(ids.shape, generator=generator) < 0.15).to(device) if masked_only else None
    )
    training = model.training
    model.eval()
    start = time.monotonic()
    model(ids, positions=positions)
    seconds: list[float] = []
    while not seconds or (
        len(seconds) < timed.repeats and time.monotonic() - start < timed.budget_s
    ):
        seconds.append(_time(lambda: model(ids, positions=positions), device))
    model.train(training)
    return Timing(1000 * median(seconds) / timed.batch_size, len(seconds))
