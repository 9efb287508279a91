"""Sharding with FSDP2: every layer on its own, then the rest."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from lumos_pl.models.transformer import LumosTransformer


def shard_model(net: LumosTransformer, mesh: DeviceMesh) -> None:
    """Shard parameters, gradients and optimizer state over the data-parallel axis, in place.

    The head is a unit of its own because the loss runs inside it, after the decoder's forward pass.
    """
    axis = mesh["data_parallel"]
    for layer in net.model.layers:
        fully_shard(layer, mesh=axis)
    fully_shard(net.model, mesh=axis)
    fully_shard(net.lm_head, mesh=axis)
