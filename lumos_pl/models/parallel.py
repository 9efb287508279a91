"""Sharding with FSDP2, each layer as a unit and then the rest; and gathering again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lumos_pl.adapters.training import adapt
from lumos_pl.models.transformer import LumosTransformer


def shard_mesh(device_type: str, n_processes: int, shard_size: int) -> DeviceMesh:
    """Neighbouring processes share one copy of the weights; several copies add an outer axis to the mesh.

    With 4 processes and a shard size of 2, (0, 1) hold one copy and (2, 3) the other. Processes are numbered node by
    node, so shards that fit a node are gathered inside it, and only a shard's gradients travel between nodes.
    """
    if shard_size == n_processes:
        return init_device_mesh(device_type, (n_processes,), mesh_dim_names=("shard",))
    copies = n_processes // shard_size
    return init_device_mesh(device_type, (copies, shard_size), mesh_dim_names=("replicate", "shard"))


def shard_model(
    net: LumosTransformer,
    mesh: DeviceMesh,
    *,
    mixed: bool = False,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
) -> None:
    """Shard parameters, gradients and optimizer state over a mesh of `shard_mesh`, in place.

    The head is a unit of its own because the loss runs inside it, after the decoder's forward pass.

    Args:
        mixed: gather a unit's weights in bf16, half the bytes; stored shards, the update and sums of gradients over
            the ranks stay fp32. The head is gathered in fp32, because its gradient is the sum of thousands of targets
            and should stay as exact as the loss made it.
        reshard_after_forward: gather a layer again for its backward pass instead of keeping it.
        cpu_offload: keep shards, their gradients and the update in host memory; a unit's weights are on the GPU
            only while it is used.
    """
    on_gpu = mesh.device_type == "cuda"  # pinned memory exists only there
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if cpu_offload else OffloadPolicy()
    # Inputs are not cast: the residual stream is fp32, and autocast casts what is multiplied.
    halves = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy()
    for unit in net.model.layers:
        precision = halves if mixed else exact
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=precision,
            offload_policy=offload,
            reshard_after_forward=reshard_after_forward,
        )
    fully_shard(net.model, mesh=mesh, mp_policy=halves if mixed else exact, offload_policy=offload)
    fully_shard(net.lm_head, mesh=mesh, mp_policy=exact, offload_policy=offload)


def own_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, sharing its memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[Tensor], largest: float, *, scale: Tensor | None = None, by_value: bool = False
) -> Tensor:
    """Scale all gradients by one factor so that their norm over all ranks is at most `largest`, in fused kernels.

    Args:
        scale: multiplies all gradients before they are clipped.
        by_value: clip every number to [-largest, largest] instead.
    Returns:
        the norm after scaling and before clipping, a scalar on the gradients' device; 0 if there are none.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    parts = [own_part(gradient) for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(parts)
    sharded = next((gradient for gradient in gradients if isinstance(gradient, DTensor)), None)
    if sharded is not None:  # then all of them are
        squares = norm.square()
        for dim, placement in enumerate(sharded.placements):
            if placement.is_shard():
                dist.all_reduce(squares, group=sharded.device_mesh.get_group(dim))
        norm = squares.sqrt()
    factor = torch.ones_like(norm) if scale is None else scale.to(norm)
    norm = norm * factor
    if not by_value:
        factor = factor * (largest / (norm + 1e-6)).clamp(max=1.0)
    if scale is not None or not by_value:
        torch._foreach_mul_(parts, factor)
    if by_value:
        torch._foreach_clamp_min_(parts, -largest)
        torch._foreach_clamp_max_(parts, largest)
    return norm


@torch.no_grad()
def gather_model(
    net: LumosTransformer, *, ranks: int = 1, device: torch.device | str = "cpu"
) -> LumosTransformer | None:
    """The whole of a sharded model on the first `ranks` ranks, None on the others; every rank has to call it.

    Args:
        ranks: how many ranks get it.
        device: where it goes; a rank without memory for it gets None.
    """
    whole = None
    if dist.get_rank() < ranks:
        with torch.device("meta"):
            whole = LumosTransformer(net.config, net.compute)
            if net.adapter is not None:
                adapt(whole, net.adapter)
        try:
            whole.to_empty(device=device)
        except torch.OutOfMemoryError:  # the others still need this rank's shards
            whole = None
    for name, parameter in net.named_parameters():
        gathered = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if whole is not None:
            whole.get_parameter(name).copy_(gathered)
    return whole
