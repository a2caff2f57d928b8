"""Without training: choose the bits of every row, and fit its scale and bias, in closed form, on a few hundred sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Layer
from bitmaps.data.module import Batch
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantizer, units

DAMPING = (
    0.01  # of the mean square of an input, added to every one: Frantar et al. 2022, section 3.3
)
BLOCK = 64  # columns after which the weights further right are brought up to date


@torch.no_grad()
def calibrate(model: Bert, original: Bert, batches: Sequence[Batch]) -> Bert:
    """Fit the encoder's linear layers of one bit, and the head's transform, as ``make_trainable`` made them, to the original model,
    in place, from the bottom up.

    Let x be what enters a matrix W, from the layers below as they are fitted already, and y the original's outputs, on what its
    own layers below make of the same tokens. First bits and scales are chosen so that x q(W) is close to x W (``choose_bits``).
    Then mean and deviation of each output are matched: with z = x q(W),

        s = std(y) / std(z),   bias = mean(y) - s mean(z),   and the row's scale is multiplied by s

    All is over the tokens that are not padding, each weighed by 1 / mean square of its y: a few tokens, [SEP] among them, have
    outputs that are many times larger, which the LayerNorm behind them takes back. The scale of least squares, cov(z, y) /
    var(z), is smaller the noisier z is, which adds up from layer to layer.

    There is less to make up for in {-1,1} if the heads of both models were rotated before (``bitmaps.quantize.rotate``).
    """
    kept = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    masks = [batch["attention_mask"].bool()[:, None, None, :] for batch in batches]

    def fit(
        pairs: list[tuple[nn.Linear, nn.Linear]],
        ours: Callable[[], object],
        theirs: Callable[[], object],
    ) -> None:
        """Fit the first of each pair to the second. The pairs read the same inputs; ``ours`` and ``theirs`` run them."""
        binary = [
            (a, b)
            for a, b in pairs
            if isinstance(a, QuantizedLinear) and isinstance(a.quantizer, Quantizer)
        ]
        if not binary:
            return
        x = caught([pairs[0][0]], ours, inputs=True)[0][kept].double()
        outputs = caught([b for _, b in binary], theirs)
        for (linear, _), y in zip(binary, outputs, strict=True):
            y = y[kept].double()
            power = y.square().mean(-1, keepdim=True)
            weight = 1 / power.clamp(min=max(1e-6 * power.max().item(), 1e-30))
            weight /= weight.sum()
            choose_bits(linear, x.mT @ (weight * x))
            z = x @ linear.effective_weight.double().mT
            z_mean, y_mean = (weight * z).sum(0), (weight * y).sum(0)
            z_variance, y_variance = (
                (weight * (z - z_mean).square()).sum(0),
                (weight * (y - y_mean).square()).sum(0),
            )
            s = torch.where(
                z_variance > 0, (y_variance / z_variance).sqrt(), torch.ones_like(z_variance)
            )
            s = scale_rows(linear, s)
            linear.bias.copy_(y_mean - s * z_mean)

    x, t = (
        [b.embeddings(i["input_ids"], torch.zeros_like(i["input_ids"])) for i in batches]
        for b in (model, original)
    )
    for ours, theirs in zip(layers_of(model), layers_of(original), strict=True):
        a, b = ours.attention, theirs.attention
        # in the order in which they run: each is fitted on what those before it now put out
        for pairs in (
            [(a.query, b.query), (a.key, b.key), (a.value, b.value)],
            [(a.output, b.output)],
        ):
            fit(pairs, lambda a=a, x=x: over(a, x, masks), lambda b=b, t=t: over(b, t, masks))  # type: ignore[misc]
        x, t = over(a, x, masks), over(b, t, masks)
        f, g = ours.ffnn, theirs.ffnn
        for pair in ((f.expand, g.expand), (f.contract, g.contract)):
            fit([pair], lambda f=f, x=x: over(f, x), lambda g=g, t=t: over(g, t))  # type: ignore[misc]
        x, t = over(f, x), over(g, t)
    c, d = model.head.transform, original.head.transform
    fit([(c, d)], lambda: over(c, x), lambda: over(d, t))
    return model


@torch.no_grad()
def choose_bits(linear: QuantizedLinear, second_moment: Tensor) -> None:
    """Choose bits and scales for which (W - q(W)) H (W - q(W))^T is small, for the second moment H = E[x x^T] of the inputs.

    Column by column, the largest input first, each weight takes the nearer of its row's two values, and what that leaves as an
    error is made up for by the columns to come, as H allows (Frantar et al. 2022, GPTQ, algorithm 1). Then a row's scale is the
    one of least squares for its bits, and all is done once more with it. The latent weight becomes what was rounded, less the
    middle of the two values, so that it has these bits.
    """
    quantizer = cast(Quantizer, linear.quantizer)
    values, columns = quantizer.quantization.values, second_moment.shape[0]
    order = second_moment.diagonal().argsort(descending=True)
    mean = (
        second_moment.diagonal().mean().item() or 1.0
    )  # inputs of 0 tell nothing: each weight for itself
    damped = second_moment + DAMPING * mean * torch.eye(columns, dtype=torch.float64)
    h = damped[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    original = linear.weight.double()[:, order]
    for _ in range(2):
        magnitude = quantizer.magnitude(linear.weight).double().expand_as(linear.weight)[:, order]
        middle = magnitude / 2 if values == "01" else torch.zeros_like(magnitude)
        weight, latent, rounded = (
            original.clone(),
            torch.empty_like(original),
            torch.empty_like(original),
        )
        for start in range(0, columns, BLOCK):
            stop = min(start + BLOCK, columns)
            errors = torch.empty_like(weight[:, start:stop])
            for j in range(start, stop):
                latent[:, j] = weight[:, j] - middle[:, j]
                rounded[:, j] = magnitude[:, j] * units(latent[:, j], values)
                errors[:, j - start] = (weight[:, j] - rounded[:, j]) / inverse[j, j]
                weight[:, j:stop] -= errors[:, j - start, None] * inverse[j, j:stop]
            weight[:, stop:] -= errors @ inverse[start:stop, stop:]
        along = rounded @ h
        factor = (along * original).sum(-1) / (along * rounded).sum(-1)
        scale_rows(
            linear, torch.where(factor > 0, factor, torch.ones_like(factor))
        )  # nor where it is 0/0
    linear.weight[:, order] = latent.float()


@torch.no_grad()
def scale_rows(linear: QuantizedLinear, factor: Tensor) -> Tensor:
    """Multiply the scale of each row; that of a whole matrix by the mean, and one that is not learned not at all. Gives the
    factors that were applied."""
    scale = cast(Quantizer, linear.quantizer).scale
    if not isinstance(scale, nn.Parameter):
        return torch.ones_like(factor)
    factor = factor if len(scale) == len(factor) else factor.mean().expand_as(factor)
    scale.copy_(scale * factor[: len(scale), None].float())
    return factor


def layers_of(model: Bert) -> list[Layer]:
    return cast("list[Layer]", list(model.encoder.layers))


def over(block: nn.Module, *inputs: list[Tensor]) -> list[Tensor]:
    """What a block makes of each batch."""
    return [block(*arguments) for arguments in zip(*inputs, strict=True)]


def caught(
    linears: Sequence[nn.Linear], run: Callable[[], object], inputs: bool = False
) -> list[Tensor]:
    """What each of ``linears`` puts out, or takes in, while ``run`` runs: (tokens of all batches, features)."""
    tensors: list[list[Tensor]] = [[] for _ in linears]
    handles = [
        linear.register_forward_hook(
            lambda _m, i, o, into=into: into.append((i[0] if inputs else o).flatten(0, -2))
        )
        for linear, into in zip(linears, tensors, strict=True)
    ]
    run()
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in tensors]
