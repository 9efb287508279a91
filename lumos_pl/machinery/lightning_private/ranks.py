"""The ranks of a run: what starts them, how they meet, and how they add their gradients."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.distributed import _destroy_dist_connection, _set_num_threads_if_needed
from lightning.fabric.utilities.rank_zero import _get_rank
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from lumos_pl.machinery.parent_process import LAUNCHER
from lumos_pl.machinery.progress import mark
from lumos_pl.machinery.rendezvous import LOOPBACK, Meeting, NoticeBoard, listen, use_loopback

_SPECIAL_STEPS = 0xFFFFFFF0  # of SLURM: from here on its own, such as an interactive shell


def process_rank() -> int:
    """This process's rank, before there is a process group too."""
    return _get_rank() or 0


def leave_requeueing_to_the_run(trainer: Trainer) -> None:
    """Lightning would save amid a step, what nothing loads."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


class _LaunchedHere(LightningEnvironment):
    """Rank 0 of one node, which starts the others, and listens for them before they are there."""

    listener: socket.socket | None = None

    @property
    def main_address(self) -> str:
        return LOOPBACK

    @property
    def main_port(self) -> int:
        if self.creates_processes_externally and self.listener is None:
            return super().main_port
        self.listener = self.listener or listen()
        return int(self.listener.getsockname()[1])


class _Launcher(_SubprocessScriptLauncher):
    """Starts the ranks of a node. Lightning's own observer of them would kill this process without a word.

    Args:
        watch: told of them, in the order of their ranks, once they are started.
    """

    def __init__(self, *place: Any, watch: Callable[[list[subprocess.Popen[bytes]]], None]) -> None:
        super().__init__(*place)
        self._watch = watch

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[LAUNCHER] = str(os.getpid())
            self._call_children_scripts()
            self._watch(self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


class RanksMeet(ParallelStrategy):
    """Before a strategy of several processes: they meet within its timeout, on one node by an address of its own.

    Attributes:
        on_start: told of the processes that this one started, in the order of their ranks.
        on_wait: asked while it waits for them; raises for one that has ended.
        on_meet: given the board of the ranks once they have met.
        patience: how long they are waited for; None: as long as in any exchange.
    """

    on_start: Callable[[list[subprocess.Popen[bytes]]], None] = staticmethod(lambda started: None)
    on_wait: Callable[[], None] = staticmethod(lambda: None)
    on_meet: Callable[[NoticeBoard], None] = staticmethod(lambda board: None)
    patience: timedelta | None = None
    num_nodes: int
    num_processes: int
    _timeout: timedelta | None

    def _configure_launcher(self) -> None:
        environment = self.cluster_environment
        assert environment is not None
        place = environment, self.num_processes, self.num_nodes
        self._launcher = _Launcher(*place, watch=lambda started: self.on_start(started))

    def meet(self) -> None:
        """Wait until all are here; once. Before `fit`, they can settle together what it does."""
        environment = self.cluster_environment
        assert environment is not None and self.accelerator is not None
        if dist.is_initialized():
            return
        self.accelerator.setup_device(self.root_device)
        self.set_world_ranks()  # type: ignore[attr-defined]
        if self.num_nodes == 1:
            use_loopback()
        meeting = Meeting(
            rank=self.global_rank,
            world_size=self.world_size,
            address=_meeting_address(environment, self.num_nodes),
            port=environment.main_port,
            patience=self.patience or self._timeout or default_pg_timeout,
            timeout=self._timeout or default_pg_timeout,
            listener=getattr(environment, "listener", None),
            ended=self._waits,
        )
        backend = self._get_process_group_backend()  # type: ignore[attr-defined]
        board = meeting.begin(backend, self.root_device if self.root_device.type == "cuda" else None)
        self.on_meet(board)
        if backend == "nccl":
            atexit.register(_destroy_dist_connection)

    def _waits(self) -> None:
        mark("waiting for the other ranks", slow=True)  # for so long and no longer, which it tells by itself
        self.on_wait()

    def setup_environment(self) -> None:
        self.meet()
        super().setup_environment()  # finds the process group


class SteadyBuckets(DistributedDataParallel):
    """Sums gradients in the same buckets from the first step of a process on.

    Torch makes them anew after that step, in the order in which the gradients came. Where a number lies in its bucket
    decides in which order three ranks and more add theirs, and so how the sum is rounded: a resumed run would not be to
    the bit the one that went on.
    """

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **how)
        self.reducer._push_all_rebuilt_params()
        self.reducer._rebuild_buckets()

    def _build_params_for_reducer(self) -> tuple[list[Tensor], list[bool]]:
        """The last first, as their gradients come: what they are computed of is what a bucket need not wait for."""
        parameters, are_sparse = super()._build_params_for_reducer()  # type: ignore[no-untyped-call]
        return parameters[::-1], are_sparse[::-1]


class WatchedDDP(RanksMeet, DDPStrategy):
    """Lightning's, whose ranks meet so, and sum alike in every process."""

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        devices = self.determine_ddp_device_ids()
        with nullcontext() if devices is None else torch.cuda.stream(torch.cuda.Stream()):  # as Lightning does
            return SteadyBuckets(module=model, device_ids=devices, **self._ddp_kwargs)


def in_torchrun() -> bool:
    return TorchElasticEnvironment.detect()


def in_srun() -> bool:
    """Inside a job of SLURM's, but not by `srun`, the variables are those of the job and not of this process."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < _SPECIAL_STEPS


def launching_environment() -> ClusterEnvironment | None:
    """Of one node, whose processes nothing but this run starts; None: Lightning finds out what started them."""
    return _LaunchedHere() if _launchers_environment() is None else None


def meeting_of_launched(num_nodes: int, patience: timedelta) -> Meeting | None:
    """Where ranks that a launcher started will meet; None: there is one rank, or this run starts the others itself."""
    environment = _launchers_environment()
    if environment is None or environment.world_size() < 2:
        return None
    return Meeting(
        rank=environment.global_rank(),
        world_size=environment.world_size(),
        address=_meeting_address(environment, num_nodes),
        port=environment.main_port,
        patience=patience,
        timeout=patience,
    )


def _launchers_environment() -> ClusterEnvironment | None:
    """Of what started this process as one of several; None: nothing did but perhaps the run itself."""
    if in_srun():
        return SLURMEnvironment()
    kinds = TorchElasticEnvironment, LSFEnvironment, MPIEnvironment
    return next((kind() for kind in kinds if kind.detect()), None)


def _meeting_address(environment: ClusterEnvironment, num_nodes: int) -> str:
    return environment.main_address if num_nodes > 1 or in_torchrun() else LOOPBACK


class MeshStrategy(RanksMeet, ModelParallelStrategy):
    """Lightning's strategy for FSDP2 over a mesh that is given to it, and with a backend for the host's memory too."""

    host_memory = False  # whether gradients in the host's memory are summed over ranks

    def _get_process_group_backend(self) -> str:
        backend: str = super()._get_process_group_backend()
        return f"cpu:gloo,cuda:{backend}" if self.host_memory and backend == "nccl" else backend

    def use_mesh(self, mesh: DeviceMesh) -> None:
        module: LightningModule | None = self.lightning_module
        assert module is not None
        self._device_mesh = module._device_mesh = mesh
