"""Sharding with FSDP2: every layer on its own, then the rest; and the way back."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

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


@torch.no_grad()
def gather_model(net: LumosTransformer) -> LumosTransformer | None:
    """The whole of a sharded model on rank 0, None on the others; every rank has to call it.

    It lies in the CPU's memory, so that rank 0's GPU holds no more than one whole weight beyond its share.
    """
    whole = None
    if dist.get_rank() == 0:
        with torch.device("meta"):
            whole = LumosTransformer(net.config)
        whole.to_empty(device="cpu")
    for name, parameter in net.named_parameters():
        gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if whole is not None:
            whole.get_parameter(name).copy_(gathered)
    return whole
