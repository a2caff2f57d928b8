"""Binarize without training: choose the bits of every row, then fit its scale and bias.

Both steps are in closed form and take a few hundred sentences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import NotRequired, TypedDict, cast

import torch
from torch import Tensor, nn

from bitmaps.bert import Bert
from bitmaps.bert.encoder import Layer
from bitmaps.bert.head import Head
from bitmaps.quantize.convert import make_trainable
from bitmaps.quantize.layers import QuantizedLinear
from bitmaps.quantize.quantizer import Quantization, Quantizer, units
from bitmaps.quantize.rotate import rotate_heads
from bitmaps.vocabulary import PLUS_MINUS_ONE, ZERO_ONE, Component

# The share of the inputs' mean square that is added to each (Frantar et al. 2022, section 3.3)
DAMPING = 0.01
BLOCK = 64  # columns after which the weights to their right are brought up to date


class Tokens(TypedDict):
    """What is read of a batch: (batch, length) each; the mask is true for tokens."""

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: NotRequired[Tensor]  # which calibration takes for 0


def calibrated(
    original: Bert,
    components: Collection[str],
    quantization: Quantization,
    batches: Sequence[Tokens],
) -> Bert:
    """A quantized copy of a model (``make_trainable``), calibrated.

    For {-1,1} the heads of attention are rotated first.
    """
    original = copy.deepcopy(original)
    if quantization.values is PLUS_MINUS_ONE and Component.attention in components:
        rotate_heads(original, quantization.scale)
    model = make_trainable(copy.deepcopy(original), components, quantization)
    return calibrate(model, original, batches)


@torch.no_grad()
def calibrate(model: Bert, original: Bert, batches: Sequence[Tokens]) -> Bert:
    """Fit a model that ``make_trainable`` made to the original model, in place, from the bottom up.

    The encoder's linear layers of one bit and a masked-LM head's transform are fitted. Let x be the
    input of a matrix W, computed by the layers below as they are already fitted. Let y be the
    original's output, on what the original's own layers below compute for the same tokens. First
    come bits and scales for which x q(W) is close to x W (``choose_bits``). Then the mean and
    deviation of each output are matched: with z = x q(W),

        s = std(y) / std(z),   bias = mean(y) - s mean(z),   and the row's scale is multiplied by s

    All statistics are over the tokens that are not padding, each weighted by 1 / mean square of its
    y. A few tokens, [SEP] among them, have outputs many times larger than the others, which the
    next LayerNorm undoes. The least-squares scale, cov(z, y) / var(z), is not used: it shrinks with
    the noise of z, and the shrinkage adds up from layer to layer.

    For {-1,1} there is less to correct if the heads of both models were rotated before
    (``bitmaps.quantize.rotate``).
    """
    kept = torch.cat([batch["attention_mask"].bool().flatten() for batch in batches])
    masks = [batch["attention_mask"].bool()[:, None, None, :] for batch in batches]

    def fit(
        pairs: list[tuple[nn.Linear, nn.Linear]],
        ours: Callable[[], object],
        theirs: Callable[[], object],
    ) -> None:
        """Fit the first of each pair to the second.

        The pairs read the same inputs; ``ours`` and ``theirs`` run them.
        """
        binary = [
            (a, b)
            for a, b in pairs
            if isinstance(a, QuantizedLinear) and isinstance(a.quantizer, Quantizer)
        ]
        if not binary:
            return
        x = capture([pairs[0][0]], ours, inputs=True)[0][kept].double()
        outputs = capture([b for _, b in binary], theirs)
        for (linear, _), y in zip(binary, outputs, strict=True):
            fit_layer(linear, x, y[kept].double())

    x, t = (
        [b.embeddings(i["input_ids"], torch.zeros_like(i["input_ids"])) for i in batches]
        for b in (model, original)
    )
    for ours, theirs in zip(layers_of(model), layers_of(original), strict=True):
        a, b = ours.attention, theirs.attention
        # in the order of execution: each layer is fitted to the outputs of the fitted ones before
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
    if isinstance(model.head, Head) and isinstance(original.head, Head):
        c, d = model.head.transform, original.head.transform
        fit([(c, d)], lambda: over(c, x), lambda: over(d, t))
    return model


def fit_layer(linear: QuantizedLinear, x: Tensor, y: Tensor) -> None:
    """Fit a layer to the original's outputs y (tokens, out) for its inputs x (tokens, in)."""
    power = y.square().mean(-1, keepdim=True)
    weight = 1 / power.clamp(min=max(1e-6 * power.max().item(), 1e-30))
    weight /= weight.sum()
    choose_bits(linear, x.mT @ (weight * x))
    z = x @ linear.effective_weight.double().mT
    z_mean, y_mean = (weight * z).sum(0), (weight * y).sum(0)
    z_variance = (weight * (z - z_mean).square()).sum(0)
    y_variance = (weight * (y - y_mean).square()).sum(0)
    ratio = (y_variance / z_variance).sqrt()
    s = scale_rows(linear, torch.where(z_variance > 0, ratio, torch.ones_like(z_variance)))
    linear.bias.copy_(y_mean - s * z_mean)


@torch.no_grad()
def choose_bits(linear: QuantizedLinear, second_moment: Tensor) -> None:
    """Choose bits and scales for which (W - q(W)) H (W - q(W))^T is small.

    H = E[x x^T] is the second moment of the inputs. Column by column, the largest input first, each
    weight takes the nearer of its row's two values. The columns still to come make up for the
    resulting error, as far as H allows (Frantar et al. 2022, GPTQ, algorithm 1). Then a row gets
    the least-squares scale for its bits, and everything is done once more with it. The latent
    weight becomes the weight that was rounded minus the middle of the two values, so that it has
    these bits.
    """
    quantizer = cast(Quantizer, linear.quantizer)
    values, columns = quantizer.quantization.values, second_moment.shape[0]
    order = second_moment.diagonal().argsort(descending=True)
    # without any input every weight is rounded on its own
    mean = second_moment.diagonal().mean().item() or 1.0
    damped = second_moment + DAMPING * mean * torch.eye(columns, dtype=torch.float64)
    h = damped[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    original = linear.weight.double()[:, order]
    for _ in range(2):
        magnitude = quantizer.magnitude(linear.weight).double().expand_as(linear.weight)[:, order]
        middle = magnitude / 2 if values == ZERO_ONE else torch.zeros_like(magnitude)
        weight, latent = original.clone(), torch.empty_like(original)
        rounded = torch.empty_like(original)
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
        # rows whose factor is negative or 0/0 keep their scale
        scale_rows(linear, torch.where(factor > 0, factor, torch.ones_like(factor)))
    linear.weight[:, order] = latent.float()


@torch.no_grad()
def scale_rows(linear: QuantizedLinear, factor: Tensor) -> Tensor:
    """Multiply the scale of each row by its factor, and return the factors that were applied.

    One scale for the whole matrix is multiplied by their mean. A scale that is not learned stays.
    """
    scale = cast(Quantizer, linear.quantizer).scale
    if not isinstance(scale, nn.Parameter):
        return torch.ones_like(factor)
    factor = factor if len(scale) == len(factor) else factor.mean().expand_as(factor)
    scale.copy_(scale * factor[: len(scale), None].float())
    return factor


def layers_of(model: Bert) -> list[Layer]:
    return cast("list[Layer]", list(model.encoder.layers))


def over(block: nn.Module, *inputs: list[Tensor]) -> list[Tensor]:
    """The block's output for each batch."""
    return [block(*arguments) for arguments in zip(*inputs, strict=True)]


def capture(
    linears: Sequence[nn.Linear], run: Callable[[], object], inputs: bool = False
) -> list[Tensor]:
    """The output (or quantized input) of each linear layer while ``run`` runs: (tokens, features).

    Tokens are those of all batches.
    """
    tensors: list[list[Tensor]] = [[] for _ in linears]

    def hook_into(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(layer: nn.Module, given: tuple[Tensor], output: Tensor) -> None:
            entered = given[0]
            if isinstance(layer, QuantizedLinear):
                entered = layer.effective_input(entered)
            into.append((entered if inputs else output).flatten(0, -2))

        return hook

    handles = [
        linear.register_forward_hook(hook_into(into))
        for linear, into in zip(linears, tensors, strict=True)
    ]
    run()
    for handle in handles:
        handle.remove()
    return [torch.cat(parts) for parts in tensors]
