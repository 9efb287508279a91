"""Lightning's strategy for FSDP2, with this project's mesh and way to save."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.optim import Optimizer

from lumos_pl.checkpoints.background import BackgroundWriter
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
        self._shard_size, self._cpu_offload, self._patience = shard_size, cpu_offload, timeout
        self._writer: BackgroundWriter | None = None
        self.writing: Future[str] | None = None

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
        self._writer = BackgroundWriter(self._patience)

    # -- saving: the copy is the writer's, so that nothing is copied twice -----------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return dict(get_optimizer_state_dict(self.model, inner))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Return once the state is copied; `writing` is done when all of it is written, see `BackgroundWriter`."""
        assert self._writer is not None
        sharded = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            sharded[f"optimizer_{number}"] = state
        self.writing = self._writer.start(sharded, checkpoint, Path(filepath))
