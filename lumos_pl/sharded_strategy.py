"""Lightning's strategy for FSDP2, with the mesh of this project."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

from lumos_pl.models.parallel import shard_mesh


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over groups of `shard_size` processes, each with a copy of the weights (several are HSDP).

    Args:
        n_processes: of all nodes.
        cpu_offload: the module keeps its shards in the host's memory.
        timeout: how long a process waits for the others.
    """

    def __init__(self, *, n_processes: int, shard_size: int, cpu_offload: bool, timeout: timedelta) -> None:
        # Lightning's own mesh would split tensors within a node, which nothing here does.
        super().__init__(data_parallel_size=n_processes, tensor_parallel_size=1, timeout=timeout)
        self._shard_size, self._cpu_offload = shard_size, cpu_offload

    def _get_process_group_backend(self) -> str:
        backend = super()._get_process_group_backend()
        # The norm of gradients in the host's memory is summed there.
        return f"cpu:gloo,cuda:{backend}" if self._cpu_offload and backend == "nccl" else backend

    def model_to_device(self) -> None:
        if not self._cpu_offload:
            super().model_to_device()

    def setup_environment(self) -> None:
        super().setup_environment()
        self._device_mesh = shard_mesh(self.root_device.type, dist.get_world_size(), self._shard_size)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh
