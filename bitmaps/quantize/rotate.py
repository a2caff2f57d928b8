"""Binarize without training: rotate attention's heads to where weights are closer to -a and a."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.bert.attention import Attention
from bitmaps.quantize.quantizer import two_values
from bitmaps.vocabulary import PLUS_MINUS_ONE, Scale

ROUNDS = 50
TINY = torch.finfo(torch.float64).tiny


@torch.no_grad()
def rotate_heads(model: Bert, scale: Scale) -> Bert:
    """Rotate queries with keys, and values with the output's inputs, in place.

    Each head is rotated in its own space. For a head with queries, keys and values of d numbers,
    and columns O of the output's matrix, two orthogonal matrices of d by d change nothing::

        (R q)^T (R k) = q^T k        (O S^T) (S v) = O v

    They do change how close the weights are to two values. R makes the sum of
    ``|R W - q(R W)|^2 / |W|^2`` over the matrices W of queries and keys small, and S does the same
    for values and output, by iterative quantization (Gong and Lazebnik 2011). Fifty times, it takes
    q(R W) for the last R, then the best R for it. The best R is ``U V^T``, where ``U D V^T`` is the
    singular value decomposition of the sum of ``q(R W) W^T / |W|^2`` (Schönemann 1966). No round
    is worse than the one before.

    Args:
        scale: what shares one scale in q(W) = a sign(W): a row or column of the whole matrix, not
            of one head's part of it.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            rotate(module.heads, module.query, module.key, scale)
            rotate(module.heads, module.value, module.output, scale, of_inputs=True)
    return model


def rotate(
    heads: int, first: nn.Linear, second: nn.Linear, scale: Scale, of_inputs: bool = False
) -> None:
    """Rotate the outputs of ``first`` and the outputs (``of_inputs``: inputs) of ``second``."""

    def nearest(rotated: Tensor, transposed: bool) -> Tensor:
        weight = rotated.flatten(0, 1)
        found = two_values(weight.mT if transposed else weight, PLUS_MINUS_ONE, scale)
        return (found.mT if transposed else found).reshape(rotated.shape)

    parts = []  # each with a row per number of a head, (heads, d, n), and its power
    for linear, transposed in ((first, False), (second, of_inputs)):
        weight = linear.weight.mT if transposed else linear.weight
        part = weight.double().unflatten(0, (heads, -1))
        parts.append((linear, transposed, part, part.square().sum().clamp(min=TINY)))
    rotation = torch.eye(
        first.out_features // heads, dtype=torch.float64, device=first.weight.device
    )
    rotation = rotation.expand(heads, -1, -1)
    for _ in range(ROUNDS):
        along = torch.zeros_like(rotation)
        for _, transposed, part, power in parts:
            along = along + nearest(rotation @ part, transposed) @ part.mT / power
        u, _, vh = torch.linalg.svd(along)
        rotation = u @ vh
    for linear, transposed, part, _ in parts:
        rotated = (rotation @ part).flatten(0, 1)
        linear.weight.copy_(rotated.mT if transposed else rotated)
        if not transposed:
            linear.bias.copy_(
                (rotation @ linear.bias.double().unflatten(0, (heads, -1, 1))).flatten()
            )
