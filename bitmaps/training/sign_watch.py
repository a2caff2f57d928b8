"""A look inside training: do signs flip, how many weights are stuck, are the bits balanced?"""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from bitmaps.packed.discover import one_bit
from bitmaps.packed.weights import PackedWeight
from bitmaps.quantize.layers import QuantizedEmbedding, QuantizedLinear, quantized_layers
from bitmaps.quantize.quantizer import Quantizer
from bitmaps.training.sharding import gathered
from bitmaps.vocabulary import Storage

log = logging.getLogger(__name__)

FROZEN = 1e-4  # a whole training should flip at least this share of all bits
RANDOM = 1e-2  # a step at the end of training should flip at most this share of all bits


@torch.no_grad()
def outside_window(layer: QuantizedLinear | QuantizedEmbedding) -> float:
    """The share of latent weights with |w| > a, where the clipped gradient is 0."""
    quantizer = layer.quantizer
    assert isinstance(quantizer, Quantizer)
    beyond = quantizer.centered(layer.weight).abs() > quantizer.magnitude(layer.weight)
    return beyond.float().mean().item()


@torch.no_grad()
def values_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """The two values of every row, for all one-bit matrices of a model: low ones, then high ones.

    The model may be packed, have quantized layers or consist of floats. A vector has (2 * rows)
    values, or (2 * rows * columns) if there are column scales.
    """
    packed: dict[str, PackedWeight] = {}
    latent = set()
    for name, layer in quantized_layers(model).items():
        assert isinstance(layer.quantizer, Quantizer)
        packed[name] = layer.quantizer.pack(layer.weight)
        latent.add(id(layer.weight))
    for name, module in model.named_modules():
        if isinstance(module, PackedWeight):
            packed[name] = module
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2 or id(parameter) in latent or ".quantizer." in name:
            continue
        if (weight := one_bit(parameter.cpu().float())) is not None:
            packed[name] = weight
    values = {}
    for name, weight in packed.items():
        if weight.storage == Storage.bit and weight.high is not None:
            both = torch.cat([-weight.high if weight.low is None else weight.low, weight.high])
            column = weight.column
            scaled = both if column is None else torch.outer(both, column).flatten()
            values[name.removesuffix(".weight")] = scaled.cpu()
    return values


class SignWatch(Callback):
    """Logs three shares for each layer of one bit.

    - ``flips/<layer>``: bits that changed since the last look, per step (1e-3 falling to 1e-5 is
      healthy);
    - ``outside/<layer>``: latent weights outside the gradient window (``outside_window``);
    - ``high/<layer>``: bits that are the high value.

    After training it reports in words whether the bits are frozen or still flip at random.

    Args:
        every: steps between two looks, 1 to 25.
    """

    def __init__(self, every: int = 20) -> None:
        # after many steps, signs that flip at random differ no more than after a few
        if not 1 <= every <= 25:
            raise ValueError(f"every={every} is out of range; valid is 1 to 25")
        self.every = every
        self.first: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] = {}
        self.first_step = self.last_step = 0
        self.rate = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first = self.last = self.bits(pl_module)
        self.first_step = self.last_step = trainer.global_step  # above 0 when resumed

    @torch.no_grad()
    def bits(self, pl_module: LightningModule) -> dict[str, Tensor]:
        with gathered(pl_module):
            return {
                name: layer.quantizer.bits(layer.weight)  # type: ignore[union-attr,operator]
                for name, layer in quantized_layers(pl_module).items()
            }

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        steps = trainer.global_step - self.last_step
        due = trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps
        if not self.last or not steps or not due:
            return
        now, layers = self.bits(pl_module), quantized_layers(pl_module)
        with gathered(pl_module):
            outside = {name: outside_window(layer) for name, layer in layers.items()}
        flips = {name: (now[name] != self.last[name]).float().mean().item() / steps for name in now}
        looks = {f"flips/{name}": rate for name, rate in flips.items()}
        looks |= {f"outside/{name}": share for name, share in outside.items()}
        looks |= {f"high/{name}": bit.float().mean().item() for name, bit in now.items()}
        self.rate = share(now, self.last) / steps
        pl_module.log_dict(looks | {"flips/all": self.rate}, rank_zero_only=True)
        self.last, self.last_step = now, trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.last:
            return
        now = self.bits(pl_module)
        if steps := trainer.global_step - self.last_step:  # stopped between two looks
            self.rate = share(now, self.last) / steps
        verdict(share(now, self.first), self.rate, self.first_step)


def share(now: dict[str, Tensor], before: dict[str, Tensor]) -> float:
    """The share of all bits that differ."""
    return sum(int((now[n] != before[n]).sum()) for n in now) / sum(
        bit.numel() for bit in now.values()
    )


@rank_zero_only
def verdict(flipped: float, rate: float, start: int = 0) -> None:
    """Report whether signs are frozen, random or neither.

    ``flipped`` is the share that changed since step ``start``, ``rate`` the share per step at the
    end. Signs of a resumed training (``start`` above 0) may have settled before, so they never
    count as frozen.
    """
    if flipped < FROZEN and not start:
        log.warning(
            "the signs are frozen: training flipped %.2g of them. "
            "Raise optimizer.lr, or choose another recipe.gradient.",
            flipped,
        )
    elif rate > RANDOM:
        log.warning(
            "the signs are random: each step still flips %.2g of them. "
            "Lower optimizer.lr, or let it decay.",
            rate,
        )
    else:
        since = f" since step {start}" if start else ""
        log.info(
            "training flipped %.2g of all signs%s; at its end %.2g a step", flipped, since, rate
        )
