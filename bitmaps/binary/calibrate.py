"""Without training: re-fit the scale and the bias of every binarized row, in closed form, on a few hundred sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Layer
from bitmaps.binary.components import matrices
from bitmaps.data.module import Batch


@torch.no_grad()
def calibrate(model: Bert, original: Bert, components: Iterable[str], batches: Sequence[Batch]) -> Bert:
    """Fit a binarized model to the original, in place, layer by layer from the bottom.

    For a row of a binarized matrix let z be its outputs, bias left out, on what the layers below, which are fitted already,
    make of the batches, and y the original's outputs, on what its own layers below make of them. Then mean and deviation match:

        s = std(y) / std(z),   bias = mean(y) - s mean(z),   and the row's scale is multiplied by s

    over all tokens that are not padding, each weighed by 1 / mean square of its y: a few tokens, [SEP] among them, have outputs
    that are many times larger, which the LayerNorm behind them takes back. The scale of least squares, cov(z, y) / var(z), is
    smaller the noisier z is, which adds up from layer to layer. A row whose z does not vary keeps its scale.
    """
    chosen = {id(parameter) for parameter in matrices(model, components).values()}
    kept = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    masks = [batch["attention_mask"].bool()[:, None, None, :] for batch in batches]

    def fit(pairs: list[tuple[nn.Linear, nn.Linear]], ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        """Fit the first of each pair to the second; ``ours`` and ``theirs`` run what they are part of on all batches."""
        pairs = [pair for pair in pairs if id(pair[0].weight) in chosen]
        if not pairs:
            return
        outputs = [outputs_of([pair[side] for pair in pairs], run) for side, run in enumerate((ours, theirs))]
        for (linear, _), z, y in zip(pairs, *outputs, strict=True):
            z, y = z[kept].double() - linear.bias.double(), y[kept].double()
            weight = 1 / y.square().mean(-1, keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
            weight /= weight.sum()
            z_mean, y_mean = (weight * z).sum(0), (weight * y).sum(0)
            covariance, variance = (
                (weight * (z - z_mean) * (y - y_mean)).sum(0),
                (weight * (z - z_mean).square()).sum(0),
            )
            s = torch.where(variance > 0, covariance / variance, torch.ones_like(variance))
            linear.weight *= s[:, None].float()
            linear.bias.copy_(y_mean - s * z_mean)

    x, t = (
        [b.embeddings(i["input_ids"], torch.zeros_like(i["input_ids"])) for i in batches] for b in (model, original)
    )
    for ours, theirs in zip(layers_of(model), layers_of(original), strict=True):
        a, b = ours.attention, theirs.attention
        # in the order in which they run: each is fitted on what those before it now put out
        for pairs in ([(a.query, b.query), (a.key, b.key), (a.value, b.value)], [(a.output, b.output)]):
            fit(pairs, lambda a=a, x=x: over(a, x, masks), lambda b=b, t=t: over(b, t, masks))  # type: ignore[misc]
        x, t = over(a, x, masks), over(b, t, masks)
        f, g = ours.ffnn, theirs.ffnn
        for pair in ((f.expand, g.expand), (f.contract, g.contract)):
            fit([pair], lambda f=f, x=x: over(f, x), lambda g=g, t=t: over(g, t))  # type: ignore[misc]
        x, t = over(f, x), over(g, t)
    c, d = model.head.transform, original.head.transform
    fit([(c, d)], lambda: over(c, x), lambda: over(d, t))
    return model


def layers_of(model: Bert) -> list[Layer]:
    return cast("list[Layer]", list(model.encoder.layers))


def over(block: nn.Module, *inputs: list[Tensor]) -> list[Tensor]:
    """What a block makes of each batch."""
    return [block(*arguments) for arguments in zip(*inputs, strict=True)]


def outputs_of(linears: list[nn.Linear], run: Callable[[], object]) -> list[Tensor]:
    """What each of ``linears`` puts out while ``run`` runs: (tokens of all batches, out)."""
    caught: list[list[Tensor]] = [[] for _ in linears]
    handles = [
        linear.register_forward_hook(lambda _m, _i, output, into=into: into.append(output.flatten(0, -2)))
        for linear, into in zip(linears, caught, strict=True)
    ]
    run()
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in caught]
