"""Sharding with FSDP2: every layer on its own, then the rest; and the way back."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lumos_pl.models.transformer import LumosTransformer


def shard_mesh(device_type: str, n_processes: int, shard_size: int) -> DeviceMesh:
    """Neighbouring processes share one copy of the weights; more than one copy makes a second, outer axis.

    With 4 processes and a shard size of 2, (0, 1) hold one copy, (2, 3) the other: processes are numbered node by
    node, so shards that fit a node are gathered inside it, and between nodes only a shard's gradients travel.
    """
    if shard_size == n_processes:
        return init_device_mesh(device_type, (n_processes,), mesh_dim_names=("shard",))
    copies = n_processes // shard_size
    return init_device_mesh(device_type, (copies, shard_size), mesh_dim_names=("replicate", "shard"))


def shard_model(net: LumosTransformer, mesh: DeviceMesh, *, cpu_offload: bool = False) -> None:
    """Shard parameters, gradients and optimizer state over a mesh of `shard_mesh`, in place.

    The head is a unit of its own because the loss runs inside it, after the decoder's forward pass.

    Args:
        cpu_offload: shards, their gradients and the update stay in the host's memory; a unit's weights come to the GPU
            for its turn.
    """
    on_gpu = mesh.device_type == "cuda"  # only there does pinned memory exist, and pay
    policy = CPUOffloadPolicy(pin_memory=on_gpu) if cpu_offload else OffloadPolicy()
    for unit in (*net.model.layers, net.model, net.lm_head):
        fully_shard(unit, mesh=mesh, offload_policy=policy)


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
