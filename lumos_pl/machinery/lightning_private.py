"""All that is used of Lightning without being promised by it; tests/test_lightning_private.py says what moved.

Where a new version breaks one of these, this file is what there is to mend.
"""

from __future__ import annotations

import atexit
import copy
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache
from typing import Any, cast

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
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.prediction_loop import _PredictionLoop
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from lumos_pl.machinery.parent_process import LAUNCHER
from lumos_pl.machinery.progress import mark
from lumos_pl.machinery.rendezvous import LOOPBACK, Meeting, NoticeBoard, listen, use_loopback
from lumos_pl.machinery.stop_request import BrokenOff, StopRequest

BATCH_PROGRESS, EPOCH_PROGRESS = "epoch_loop.batch_progress", "epoch_progress"  # in a checkpoint's "fit_loop"
LOOP_STATE, LOADERS = "state_dict", "combined_loader"  # in the same: what the loaders have saved of themselves
_SPECIAL_STEPS = 0xFFFFFFF0  # of SLURM: from here on its own, such as an interactive shell
COUNTS = "ready", "started", "processed", "completed"
OPTIMIZER_STEPS = (  # in the same: of Lightning's own steps, and of a module's that takes them by itself
    ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step"),
    ("epoch_loop.manual_optimization.optim_step_progress",),
)


def process_rank() -> int:
    """This process's rank, before there is a process group too."""
    return _get_rank() or 0


def set_hyperparameters(module: LightningModule, values: Mapping[str, Any]) -> None:
    """As `save_hyperparameters(values)`, which asks of each argument of the class if it is them, an array too."""
    module.hparams.update(values)
    initial = copy.deepcopy(module.hparams)
    vars(module).update(_log_hyperparams=True, _hparams_name=None, _hparams_initial=initial)


def steps_of_data(trainer: Trainer) -> int:
    """How many steps' batches were begun: the optimizer's, or the batches where a module takes its steps by itself.

    Such a module may step more often than once a batch, or less, so that its steps do not tell what it has read.
    """
    if getattr(trainer.lightning_module, "automatic_optimization", True):
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def accumulates(trainer: Trainer) -> bool:
    """Whether the batch that was just trained on left its step open."""
    return trainer.fit_loop._should_accumulate()


def log_step(trainer: Trainer) -> None:
    """Log the step now and once: Lightning does so after the hooks of the callbacks."""
    if getattr(trainer.fit_loop, "is_broken_off", False):
        return  # after them
    connector, step = trainer._logger_connector, trainer.global_step
    connector.update_train_step_metrics()

    def unless_logged() -> None:
        del connector.update_train_step_metrics  # it is the class's again
        if trainer.global_step != step:
            connector.update_train_step_metrics()

    connector.update_train_step_metrics = unless_logged  # type: ignore[method-assign]


def measure_fetches(trainer: Trainer, told: Callable[[float], None]) -> Callable[[], None]:
    """Have the training loop tell how many seconds it waited for each of its batches; before its first one.

    Returns:
        what ends this, for a Trainer that fits once more.
    """
    loop, begun = trainer.fit_loop.epoch_loop, 0.0
    told_before, told_after = loop._on_before_fetch, loop._on_after_fetch

    def before() -> None:
        nonlocal begun
        told_before()
        begun = time.perf_counter()

    def after() -> None:
        told(time.perf_counter() - begun)
        told_after()

    def end() -> None:
        loop._on_before_fetch, loop._on_after_fetch = told_before, told_after  # type: ignore[method-assign]

    loop._on_before_fetch, loop._on_after_fetch = before, after  # type: ignore[method-assign]
    return end


class LenientProfiler(PyTorchProfiler):
    """Lightning's, for a run that may be over before anything was traced; a trace's name is that of its table."""

    def _cache_functions_events(self) -> None:
        with suppress(AssertionError):  # of torch: there are no events
            super()._cache_functions_events()

    @property
    def worker_name(self) -> str:
        return self._prepare_filename(extension="")


def leave_requeueing_to_the_run(trainer: Trainer) -> None:
    """Lightning would save amid a step, what nothing loads."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


@cache
def fresh_loops() -> dict[str, Any]:
    """What a checkpoint's "loops" are before the first step: every name and type that Lightning reads of them."""
    nobody = cast(Trainer, object())  # who is asked for nothing yet
    testing = TrainerFn.TESTING, RunningStage.TESTING
    return {
        "fit_loop": _FitLoop(nobody).state_dict(),
        "validate_loop": _EvaluationLoop(nobody, TrainerFn.VALIDATING, RunningStage.VALIDATING).state_dict(),
        "test_loop": _EvaluationLoop(nobody, *testing).state_dict(),
        "predict_loop": _PredictionLoop(nobody).state_dict(),
    }


def begin_at_a_step(
    loops: dict[str, Any], *, step: int, accumulate: int | None, limit: float | None, ends: bool = False
) -> None:
    """Let the saved counts of batches be those of the last finished optimizer step.

    Lightning counts micro-batches: a step may have had more or fewer of them when it was saved, and one that was not
    over is done again, for its gradients are lost.

    Nor is a training over whose last step was saved: it may be longer now.

    Args:
        loops: a checkpoint's "fit_loop", changed in place.
        step: its optimizer steps.
        accumulate: micro-batches of a step on this rank from now on; None: the module takes its steps by itself, and
            every batch that is over stays so.
        limit: those of an epoch; None: there is one epoch, without end.
        ends: the data have an end of their own, by which Lightning knew that an epoch was over.
    """
    progress = loops[BATCH_PROGRESS]
    current, total = progress["current"], progress["total"]
    done = current["processed"]  # batches that are over: an error in the middle of one leaves it `ready` alone
    whole = progress["is_last_batch"] and (ends or done == limit)
    if not whole and loops[EPOCH_PROGRESS]["current"]["processed"] == 0:
        progress["is_last_batch"] = False
        target = done if accumulate is None else step * accumulate
    elif whole or accumulate is None:  # the epoch's last step is done, whole or not
        target = done
    else:  # how many steps the epochs before had is not known
        target = done - done % accumulate
    in_its_end = current["ready"] == done == current["completed"] + 1  # saved in a hook of the batch's end
    for name in COUNTS:
        shift = target - (name == "completed" and in_its_end) - current[name]
        total[name] += shift
        current[name] += shift


class ResumableFitLoop(_FitLoop):
    """Makes up for what followed the step that a checkpoint was saved after.

    A checkpoint is saved as soon as its step is done. The validation that is due then comes first in a
    resumed run; Lightning takes it to be over. After the last step so do `on_train_end` and all that the
    callbacks do there; Lightning leaves before them. No step is trained again for it.

        step 5 | step 6, save | validation, judging | result.json
                              ^ from here

    What is broken off after a step, a validation or a part of the next step, leaves no trace: what is saved then is
    the state of the loops at the end of that step (`note_step`). The checkpoint callbacks save it and leave, by
    `on_broken_off(trainer)`.
    """

    is_broken_off = False
    _noted: dict[str, Any] | None = None

    @classmethod
    def put_into(cls, trainer: Trainer) -> None:
        """Have it run the trainer's `fit`."""
        loop = cls(trainer, min_epochs=trainer.min_epochs, max_epochs=trainer.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        loop.epoch_loop._on_before_fetch = loop._before_fetch  # type: ignore[method-assign]
        trainer.fit_loop = loop

    @property
    def skip(self) -> bool:
        return not self.restarting and super().skip

    def on_run_start(self) -> None:
        super().on_run_start()
        assert self._data_fetcher is not None
        if self.restarting and self.epoch_loop._should_check_val_fx(self._data_fetcher):
            validation = self.epoch_loop.val_loop
            validation.restarting = False  # from its first batch
            self.trainer.validating = True
            with self._leaving_when_broken_off():
                validation.run()
            self.trainer.training = True

    def advance(self) -> None:
        with self._leaving_when_broken_off():
            super().advance()

    def note_step(self) -> None:
        """Where a run that is broken off from now on is to go on: a step is over, in a hook of its last batch's end."""
        self._noted = super().state_dict()

    def state_dict(self, destination: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
        if self.is_broken_off and self._noted is not None:
            return self._noted
        return cast(dict[str, Any], super().state_dict(destination, prefix))

    @contextmanager
    def _leaving_when_broken_off(self) -> Iterator[None]:
        try:
            yield
        except BrokenOff:
            self.trainer.training = True
            self.is_broken_off = True
            for callback in self.trainer.checkpoint_callbacks:
                if hasattr(callback, "on_broken_off"):
                    callback.on_broken_off(self.trainer)
            raise

    def _before_fetch(self) -> None:
        """One process may drop the step that it begins with a batch; of several, others may be amid an exchange."""
        type(self.epoch_loop)._on_before_fetch(self.epoch_loop)
        mark("waiting for a batch")
        if self.trainer.world_size == 1 and StopRequest.current is not None:
            StopRequest.current.breaks("late")


def note_step(trainer: Trainer) -> None:
    """A step is over: see `ResumableFitLoop`."""
    if isinstance(trainer.fit_loop, ResumableFitLoop):
        trainer.fit_loop.note_step()


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
