"""To look inside a training: do the signs move, how many weights are stuck, are the bits balanced."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear
from bitmaps.quantize.quantizer import Quantizer

log = logging.getLogger(__name__)

FROZEN = 1e-4  # share of all bits that a training should at least have flipped by its end
RANDOM = 1e-2  # share of all bits that no step of a training should flip at its end


def quantized_layers(module: torch.nn.Module) -> dict[str, QuantizedLinear | QuantizedEmbedding]:
    """The layers of one bit by their names, those that share a weight once."""
    layers: dict[int, tuple[str, QuantizedLinear | QuantizedEmbedding]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, QuantizedLinear | QuantizedEmbedding) and isinstance(
            layer.quantizer, Quantizer
        ):
            layers.setdefault(id(layer.weight), (name.removeprefix("model."), layer))
    return dict(layers.values())


@torch.no_grad()
def outside_window(layer: QuantizedLinear | QuantizedEmbedding) -> float:
    """Share of latent weights beyond their own value, |w| > a: those that the clipped gradient leaves where they are."""
    assert isinstance(layer.quantizer, Quantizer)
    return (
        (layer.quantizer.centered(layer.weight).abs() > layer.quantizer.magnitude(layer.weight))
        .float()
        .mean()
        .item()
    )


@torch.no_grad()
def values_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The two values that every row of a matrix takes, for all matrices in one bit of a model that is not trained any more, packed
    or in floats: the low and the high ones, (2 * rows), or (2 * rows * columns) where a scale a column multiplies them."""
    packed = {
        name: module for name, module in model.named_modules() if isinstance(module, PackedWeight)
    }
    for name, parameter in model.named_parameters():
        if (
            parameter.ndim == 2
            and (weight := PackedWeight.one_bit(parameter.cpu().float())) is not None
        ):
            packed[name] = weight
    values = {}
    for name, weight in packed.items():
        if weight.kind == "bit" and weight.high is not None:
            both = torch.cat([-weight.high if weight.low is None else weight.low, weight.high])
            all_columns = (
                both if weight.column is None else torch.outer(both, weight.column).flatten()
            )
            values[name.removesuffix(".weight")] = all_columns.cpu()
    return values


class SignWatch(Callback):
    """Logs for each layer of one bit, as ``flips/<layer>``, ``outside/<layer>`` and ``high/<layer>``:

    - the flip rate: the share of its bits that changed since the last time, a step (1e-3 falling to 1e-5 is healthy);
    - the share of its latent weights outside the gradient window (``outside_window``);
    - the balance: the share of its bits that are the high value.

    At the end it says in words if the bits did not move, or still move at random.

    Args:
        every: steps between two looks, 1 to 25.
    """

    def __init__(self, every: int = 20) -> None:
        if (
            not 1 <= every <= 25
        ):  # after many steps signs that flip at random differ no more than after a few
            raise ValueError(f"every={every} is out of range; valid is 1 to 25")
        self.every = every
        self.first: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.first_step = self.last_step = 0
        self.rate = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first = self.last = self.bits(pl_module)
        self.first_step = self.last_step = trainer.global_step  # above 0 if it is resumed

    @torch.no_grad()
    def bits(self, pl_module: LightningModule) -> dict[str, Tensor]:
        return {
            name: layer.quantizer.bits(layer.weight)
            for name, layer in quantized_layers(pl_module).items()
        }  # type: ignore[operator]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        steps = trainer.global_step - self.last_step
        due = trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps
        if not self.last or not steps or not due:
            return
        now, layers = self.bits(pl_module), quantized_layers(pl_module)
        flips = {name: (now[name] != self.last[name]).float().mean().item() / steps for name in now}
        looks = {f"flips/{name}": rate for name, rate in flips.items()}
        looks |= {f"outside/{name}": outside_window(layer) for name, layer in layers.items()}
        looks |= {f"high/{name}": bit.float().mean().item() for name, bit in now.items()}
        self.rate = share(now, self.last) / steps
        pl_module.log_dict(looks | {"flips/all": self.rate}, rank_zero_only=True)
        self.last, self.last_step = now, trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.last:
            return
        now = self.bits(pl_module)
        if steps := trainer.global_step - self.last_step:  # it was stopped between two looks
            self.rate = share(now, self.last) / steps
        verdict(share(now, self.first), self.rate, self.first_step)


def share(now: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """Of all bits, those that differ."""
    return sum(int((now[n] != before[n]).sum()) for n in now) / sum(
        bit.numel() for bit in now.values()
    )


@rank_zero_only
def verdict(flipped: float, rate: float, start: int = 0) -> None:
    """Say how the signs came out: ``flipped`` of them since step ``start``, ``rate`` a step at the end. A training that was
    resumed may have had its time before."""
    if flipped < FROZEN and not start:
        log.warning(
            "the signs are frozen: training flipped %.2g of them. Raise optimizer.lr, or choose another recipe.gradient.",
            flipped,
        )
    elif rate > RANDOM:
        log.warning(
            "the signs are random: each step still flips %.2g of them. Lower optimizer.lr, or let it decay.",
            rate,
        )
    else:
        since = f" since step {start}" if start else ""
        log.info(
            "training flipped %.2g of all signs%s; at its end %.2g a step", flipped, since, rate
        )
