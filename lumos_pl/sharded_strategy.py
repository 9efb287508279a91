"""Lightning's strategy for FSDP2, with this project's mesh and way to save."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.saves import Writing
from lumos_pl.checkpoints.trouble import read_together
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private.ranks import MeshStrategy
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.models.config import Placement
from lumos_pl.models.parallel import shard_mesh


class ShardedStrategy(MeshStrategy):
    """FSDP2 over groups of processes, each with a copy of the weights (several are HSDP).

    Args:
        n_processes: of all nodes.
        placement: how large the groups are, and when they exchange gradients.
        cpu_offload: the module keeps its shards in the host's memory, which it asks the strategy for.
        timeout: how long a process waits for the others.
    """

    def __init__(self, *, n_processes: int, placement: Placement, cpu_offload: bool, timeout: timedelta) -> None:
        # Lightning's own mesh would split tensors within a node, which nothing here does.
        super().__init__(data_parallel_size=n_processes, tensor_parallel_size=1, timeout=timeout)
        self.host_memory = cpu_offload  # the norm of gradients there is summed there
        self.placement, self.cpu_offload, self._patience = placement, cpu_offload, timeout
        self._writer: BackgroundWriter | None = None

    @property
    def reshard_after_forward(self) -> bool:
        return self.placement.reshard_after_forward

    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()

    def setup_environment(self) -> None:
        super().setup_environment()
        self.check_agreement()
        self.use_mesh(shard_mesh(self.root_device.type, dist.get_world_size(), self.placement.shard_size))
        self._writer = BackgroundWriter(self._patience)

    def check_agreement(self) -> None:
        """Each rank settled its placement by its own GPU; where they differ, one would wait for ever for another."""
        own = replace(self.placement, recompute="none")  # which is a rank's own affair
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, own)
        for rank, other in enumerate(of_ranks):
            if other != of_ranks[0]:
                raise ConfigError(
                    "the GPUs are not alike, and ask for different settings",
                    where=f"trainer, rank {rank}",
                    got=_words(other),
                    expected=f"{_words(of_ranks[0])}, as rank 0",
                    fix="set trainer.shard_size and trainer.reshard_after_forward to what suits the smallest",
                )

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning's for the batches of a step before its last."""
        self._reduce_gradients(not self.placement.reduce_once)
        try:
            yield
        finally:
            self._reduce_gradients(True)

    def _reduce_gradients(self, reduce: bool) -> None:
        assert self.model is not None
        for unit in self.model.modules():
            if isinstance(unit, FSDPModule):
                unit.set_requires_gradient_sync(reduce, recurse=False)

    # -- saving: the copy is the writer's, so that nothing is copied twice -----------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return dict(get_optimizer_state_dict(self.model, inner))

    def load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Lightning's; what fails on a rank while they read together is read again by all of them."""
        load = super().load_checkpoint
        return read_together(lambda: load(checkpoint_path, *args, **kwargs), RetryConfig(), Path(checkpoint_path))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Return once the state is copied.

        Args:
            storage_options: a `Writing`, whose `written` is done when all of it is, see `BackgroundWriter`; without one
                this waits for that.
        """
        assert self._writer is not None
        writing = storage_options if isinstance(storage_options, Writing) else Writing(RetryConfig())
        sharded = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            sharded[f"optimizer_{number}"] = state
        writing.written = self._writer.start(sharded, checkpoint, Path(filepath), writing.retry)
        if writing is not storage_options:
            writing.written.result()


def _words(placement: Placement) -> str:
    again, once = placement.reshard_after_forward, placement.reduce_once
    return f"shard_size {placement.shard_size}, reshard_after_forward {again}, gradients exchanged once {once}"
