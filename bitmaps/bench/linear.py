"""A one-bit matrix of BERT-base, against PyTorch in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from bitmaps.bench.peers import MATRIX_PEERS, TORCH
from bitmaps.bench.timing import Ratio, Request, Run, compare
from bitmaps.packed.discover import one_bit
from bitmaps.packed.layers import PackedLinear
from bitmaps.vocabulary import Act

PART = "linear"
MATRICES = ((768, 768), (3072, 768), (768, 3072))  # outputs, inputs
TOKENS = (1, 8, 64, 512, 8192)
QUICK_TOKENS = (1, 64, 1024)


@torch.inference_mode()
def ratios(request: Request) -> Iterator[Ratio]:
    """Every matrix, number of tokens and activation mode, with one scale per row."""
    generator = torch.Generator().manual_seed(0)
    for tokens in QUICK_TOKENS if request.quick else TOKENS:
        for outputs, inputs in MATRICES:
            what = work(outputs, inputs, tokens)
            if what in request.done:
                continue
            x = torch.randn(tokens, inputs, generator=generator)
            linear = two_valued(outputs, inputs, generator)
            runs: dict[str, Run] = {}
            for peer in MATRIX_PEERS:
                runs |= peer(linear, x)
            runs |= packed(linear, x)
            yield from compare(PART, what, TORCH, runs, request.rounds)


def work(outputs: int, inputs: int, tokens: int) -> str:
    """``Ratio.what`` of a product."""
    return f"{inputs} to {outputs}, {tokens} token{'s' * (tokens > 1)}"


def two_valued(outputs: int, inputs: int, generator: torch.Generator) -> nn.Linear:
    """A random linear layer with the weights ``-s`` and ``s`` in each row."""
    linear = nn.Linear(inputs, outputs)
    signs = torch.where(torch.randn(outputs, inputs, generator=generator) > 0, 1.0, -1.0)
    linear.weight = nn.Parameter(torch.randn(outputs, 1, generator=generator) * signs)
    return linear


def packed_layer(linear: nn.Linear, act: Act) -> PackedLinear:
    """A ``two_valued`` layer in one bit per weight."""
    weight = one_bit(linear.weight)
    assert weight is not None, "two values a row"
    return PackedLinear(weight.arranged(act), linear.bias.detach(), act)


def packed(linear: nn.Linear, x: Tensor) -> dict[str, Run]:
    """The layer in one bit per weight, in every activation mode."""
    return {f"one bit, {act}": partial(packed_layer(linear, act), x) for act in Act}
