"""Tokens per second and model FLOPs utilisation (MFU) of training.

Lightning's ThroughputMonitor waits for the GPU after every batch and takes all batches to cost the
same; packed batches differ, and a wait per batch slows down what is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.steps import log_figures, step_is_due
from lumos_pl.batch import MaskedBatch
from lumos_pl.machinery.devices import data_sheet_flops
from lumos_pl.module import LumosModule

WARMUP_STEPS = 5  # allocator, compilation and the data workers' start are not the run's speed
COMPUTE_DTYPES = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class _Work:
    tokens: float = 0.0
    flops: float = 0.0
    seconds: float = 0.0


class Throughput(Callback):
    """Logs `throughput/tokens_per_second` of all ranks, and `throughput/mfu` where the chip's peak is known.

    Every token of the packed batches counts, text and markers too. Validation is not timed; saving
    and painting are, for they belong to the run. The device is waited for only when logging.

    Args:
        every_n_steps: optimizer steps between two loggings.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._peak_flops: float | None = None  # of one device, per second
        self._warm_at = 0  # the step after which the run's mean begins
        self._interval = _Work()  # since the last logging; tokens and FLOPs of this rank
        self._run = _Work()  # since the warm-up; tokens of all ranks
        self._clock = 0.0  # when the time not yet in `_interval` began

    def summary(self) -> dict[str, float | None]:
        """Mean tokens per second since this process began, its first WARMUP_STEPS left out (None: no others)."""
        return {"tokens_per_second": self._run.tokens / self._run.seconds if self._run.seconds else None}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dtype = COMPUTE_DTYPES.get(str(trainer.precision).split("-")[0])
        self._peak_flops = data_sheet_flops(trainer.strategy.root_device, dtype) if dtype else None
        self._warm_at = trainer.global_step + WARMUP_STEPS
        self._run = _Work()
        self._start_interval(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: MaskedBatch, batch_idx: int
    ) -> None:
        self._interval.tokens += batch.tokens.numel()
        if self._peak_flops:
            self._interval.flops += cast(LumosModule, pl_module).step_flops(batch)
        if step_is_due(trainer, batch_idx, self.every_n_steps):
            # Not prog_bar=True: Lightning would read the number in every step from then on, see StepProgressBar.
            pl_module.log("tokens/s", self._log(trainer), logger=False, batch_size=1)
        elif step_is_due(trainer, batch_idx, 1) and trainer.global_step == self._warm_at:
            self._start_interval(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval.tokens:
            self._log(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval.seconds += _now(trainer) - self._clock

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock = _now(trainer)

    def _start_interval(self, trainer: Trainer) -> None:
        self._interval = _Work()
        self._clock = _now(trainer)

    def _log(self, trainer: Trainer) -> float:
        """Log the interval and start the next; on every rank, for the work is summed over all of them."""
        seconds = self._interval.seconds + _now(trainer) - self._clock
        work = torch.tensor(
            [self._interval.tokens, self._interval.flops], dtype=torch.float64, device=trainer.strategy.root_device
        )
        tokens, flops = trainer.strategy.reduce(work, reduce_op="sum").tolist()
        tokens_per_second: float = tokens / seconds
        metrics = {"throughput/tokens_per_second": tokens_per_second}
        if self._peak_flops:
            metrics["throughput/mfu"] = flops / seconds / (self._peak_flops * trainer.world_size)
        log_figures(trainer, metrics)
        if trainer.global_step > self._warm_at:
            self._run.tokens += tokens
            self._run.seconds += seconds
        self._start_interval(trainer)
        return tokens_per_second


def _now(trainer: Trainer) -> float:
    """Seconds of a steady clock once the device has done all it was given."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()
