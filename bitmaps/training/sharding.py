"""A model that is sharded over the processes (FSDP2): each keeps a part of every parameter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from bitmaps.bert import Bert


def shard(model: Bert, mesh: DeviceMesh) -> None:
    """Shard a model in place. Each layer gathers its parameters as it runs. Embeddings and head
    share the word table, so they gather theirs together."""
    for layer in model.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "encode")


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every process has all parameters of a sharded model, as ordinary tensors. Every
    process has to enter. A model that is not sharded stays as it is."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.reshard()
