"""How fast a training is and where its time goes: speed, waits, memory, and how the ranks compare.

Lightning's ThroughputMonitor waits for the GPU after every batch and assumes that all batches cost the
same; packed batches differ, and a wait per batch slows down what is measured.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from callbacks.moments import Moment, Spans, now, quantile
from callbacks.steps import log_figures, step_is_due
from callbacks.team import Team
from lumos_pl.batch import MaskedBatch
from lumos_pl.machinery.attempts import count_restarts
from lumos_pl.machinery.devices import data_sheet_flops
from lumos_pl.machinery.lightning_private.loops import measure_fetches
from lumos_pl.module import LumosModule
from lumos_pl.settings.ranges import whole_number

WARMUP_STEPS = 5  # start-up of the allocator, compilation and data workers is not the run's speed
COMPUTE_DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
GIB = 2**30


@dataclass
class _Interval:
    """Measurements of this rank since the last logging.

    Args:
        begun: the host's clock in seconds, when everything before was done.
        awaited: seconds that the host waited for batches.
        steps: each from the end of the step before to its own end.
        forwards: each from the arrival of the batch to its loss.
        pauses: validations, which are not timed.
    """

    begun: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    awaited: float = 0.0
    steps: Spans = field(default_factory=Spans)
    forwards: Spans = field(default_factory=Spans)
    pauses: Spans = field(default_factory=Spans)


class _OfRank(NamedTuple):
    """What a rank tells the others at a logging; `own` is the seconds of work before it needs another rank."""

    tokens: float
    flops: float
    awaited: float
    own: float
    median: float
    p95: float
    allocated: float
    reserved: float
    host: float


@dataclass
class _Run:
    """Over all ranks, since the warm-up."""

    tokens: float = 0.0
    seconds: float = 0.0


class Throughput(Callback):
    """Logs how fast a training is and what it waits for, at each logging for the interval since the last.

    Every token of the packed batches counts, including text and markers. Validation is not timed; saving and painting
    are, because they belong to the run. When logging, the host waits once for its device, and for the other ranks'
    hosts, but not for their devices.

    | figure under `throughput/` | what it is |
    |---|---|
    | `tokens_per_second` | over all ranks |
    | `mfu` | the model's own operations as a share of the device's peak, if the peak is known |
    | `step_seconds_median`, `step_seconds_p95` | of the interval's optimizer steps, data and saving included |
    | `data_wait_share` | share of the time spent waiting for batches, on the rank that waited longest |
    | `slowest_rank` | the rank that was ready last; with several ranks |
    | `slowest_rank_behind` | how much later than the median rank, as a share of the time |
    | `gpu_allocated_gib`, `gpu_reserved_gib` | peak memory of tensors, and of the allocator; of the fullest GPU |
    | `host_gib` | memory of the training process, without its data workers; of the fullest rank |
    | `restarts` | how often the run has been restarted, if its folder tells |

    A rank is ready when it has its batches and has run their forward passes. Sharded ranks (fsdp2) wait for each other
    within these, so there only the wait for batches tells them apart.

    Args:
        every_n_steps: optimizer steps between two loggings.
        timeout: how long a rank waits for the others' figures; by default torch's timeout.
    """

    def __init__(self, every_n_steps: int = 10, *, timeout: timedelta | None = None) -> None:
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps")
        self.tokens_per_second: float | None = None  # in the last interval
        self._timeout = timeout
        self._team = Team()
        self._device = torch.device("cpu")
        self._peak_flops: float | None = None  # of one device, per second
        self._warm_at = 0  # the run's mean begins after this step
        self._restarts: int | None = None
        self._end_measuring: Callable[[], object] | None = None
        self._interval = _Interval()
        self._run = _Run()
        self._step_begun = self._paused = Moment(self._device)
        self._batch_begun: Moment | None = None

    def summary(self) -> dict[str, float | None]:
        """Mean tokens per second since this process started, without its first WARMUP_STEPS; None before they end."""
        return {"tokens_per_second": self._run.tokens / self._run.seconds if self._run.seconds else None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = COMPUTE_DTYPES.get(str(trainer.precision).split("-")[0])
        self._device = trainer.strategy.root_device
        self._peak_flops = data_sheet_flops(self._device, dtype) if dtype else None
        self._warm_at = trainer.global_step + WARMUP_STEPS
        self._run = _Run()
        self._team = Team.of(trainer, self._timeout)
        if trainer.is_global_zero:
            self._restarts = count_restarts(Path(trainer.default_root_dir))
        self._stop_measuring()  # from a training that was interrupted
        self._end_measuring = measure_fetches(trainer, self._note_wait)
        self._start_interval(now(self._device))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batch_begun = Moment(self._device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._batch_begun is not None:  # a batch may have several backward passes: this is the first
            self._interval.forwards.add(self._batch_begun, Moment(self._device))
            self._batch_begun = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        self._interval.tokens += batch.tokens.numel()
        if self._peak_flops:
            self._interval.flops += cast(LumosModule, pl_module).step_flops(batch)
        if not step_is_due(trainer, 1):
            return
        begun, self._step_begun = self._step_begun, Moment(self._device)
        self._interval.steps.add(begun, self._step_begun)
        if step_is_due(trainer, self.every_n_steps):
            self._log(trainer)
        elif trainer.global_step == self._warm_at:
            self._start_interval(now(self._device))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval.tokens:
            self._log(trainer)
        self._stop_measuring()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = Moment(self._device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step_begun = Moment(self._device)
        self._interval.pauses.add(self._paused, self._step_begun)

    def _stop_measuring(self) -> None:
        if self._end_measuring is not None:
            self._end_measuring()
            self._end_measuring = None

    def _note_wait(self, seconds: float) -> None:
        self._interval.awaited += seconds

    def _start_interval(self, begun: float) -> None:
        self._interval = _Interval(begun=begun)
        self._step_begun = Moment(self._device)

    def _log(self, trainer: Trainer) -> None:
        """Log the interval and start the next; on every rank, because they exchange figures."""
        ended = now(self._device)
        seconds = ended - self._interval.begun - sum(self._interval.pauses.seconds())
        ranks = self._of_all_ranks(self._own(trainer))
        tokens = sum(rank.tokens for rank in ranks)
        self.tokens_per_second = tokens / seconds
        log_figures(trainer, self._figures(ranks, seconds) | _left_out(trainer))
        if trainer.global_step > self._warm_at:
            self._run.tokens += tokens
            self._run.seconds += seconds
        self._start_interval(ended)

    def _own(self, trainer: Trainer) -> _OfRank:
        """This rank's figures; its device has finished its work."""
        interval, steps = self._interval, self._interval.steps.seconds()
        meets_in_forward = isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy)
        on_gpu = self._device.type == "cuda"
        return _OfRank(
            tokens=interval.tokens,
            flops=interval.flops,
            awaited=interval.awaited,
            own=interval.awaited + (0.0 if meets_in_forward else sum(interval.forwards.seconds())),
            median=quantile(steps, 0.5),
            p95=quantile(steps, 0.95),
            allocated=torch.cuda.max_memory_allocated(self._device) if on_gpu else 0,
            reserved=torch.cuda.max_memory_reserved(self._device) if on_gpu else 0,
            host=resident_bytes(),
        )

    def _of_all_ranks(self, own: _OfRank) -> list[_OfRank]:
        """All ranks' figures in order, exchanged by the hosts, so that no device is waited for."""
        if self._team.hosts is None:
            return [own]
        told = [torch.empty(len(own), dtype=torch.float64) for _ in range(self._team.size)]
        dist.all_gather(told, torch.tensor(own, dtype=torch.float64), group=self._team.hosts)
        return [_OfRank(*rank.tolist()) for rank in told]

    def _figures(self, ranks: list[_OfRank], seconds: float) -> dict[str, float]:
        figures = {"tokens_per_second": sum(rank.tokens for rank in ranks) / seconds}
        if self._peak_flops:
            figures["mfu"] = sum(rank.flops for rank in ranks) / seconds / (self._peak_flops * len(ranks))
        if self._interval.steps.pairs:  # empty if the run ended in the middle of a step
            figures["step_seconds_median"] = max(rank.median for rank in ranks)
            figures["step_seconds_p95"] = max(rank.p95 for rank in ranks)
        figures["data_wait_share"] = max(rank.awaited for rank in ranks) / seconds
        if len(ranks) > 1:
            own = [rank.own for rank in ranks]
            figures["slowest_rank"] = own.index(max(own))
            figures["slowest_rank_behind"] = (max(own) - quantile(own, 0.5)) / seconds
        if self._device.type == "cuda":
            figures["gpu_allocated_gib"] = max(rank.allocated for rank in ranks) / GIB
            figures["gpu_reserved_gib"] = max(rank.reserved for rank in ranks) / GIB
        figures["host_gib"] = max(rank.host for rank in ranks) / GIB
        if self._restarts is not None:
            figures["restarts"] = self._restarts
        return {f"throughput/{name}": value for name, value in figures.items()}


def _left_out(trainer: Trainer) -> dict[str, float]:
    """Samples left out so far, if the data counts them; on rank 0 only, which logs."""
    count = getattr(getattr(trainer, "datamodule", None), "left_out_samples", None) if trainer.is_global_zero else None
    return {} if count is None else {"data/left_out": count}


def resident_bytes() -> int:
    """Bytes of memory that this process uses now; its peak so far on systems that tell no more."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
