"""Whether a stop fits into the grace that a scheduler gives, which is measured and said before it is needed."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lumos_pl.checkpoints.saving import Checkpointing
from lumos_pl.machinery.lightning_private.loops import accumulates


class GraceCheck(Callback):
    """Says once if a stop would take longer than the grace: the rest of the step in hand, and a save.

    One process drops a step that outlasts half of the grace, see `StopRequest`; several finish it.

    Args:
        checkpointing: which measures the saves, on rank 0.
        grace_s: what there is; None: not known, and nothing is said.
        save_s: what a save took in an earlier attempt of the run; None: not known.
    """

    def __init__(self, checkpointing: Checkpointing, grace_s: float | None, save_s: float | None = None) -> None:
        self._checkpointing, self._grace_s, self._save_s = checkpointing, grace_s, save_s
        self._began: float | None = None
        self._step_s: float | None = None  # the longest, without the first, which compiles
        self._is_told = grace_s is None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = self._step_s = None
        self._check(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._began is None:
            self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if accumulates(trainer) or self._began is None:
            return
        seconds, self._began = time.monotonic() - self._began, None
        self._step_s = 0.0 if self._step_s is None else max(self._step_s, seconds)
        self._check(trainer)

    def _check(self, trainer: Trainer) -> None:
        save_s = self._checkpointing.save_seconds.longest or self._save_s
        if self._is_told or self._grace_s is None or not save_s:
            return
        step_s = self._step_s or 0.0
        stop_s = save_s + (step_s if trainer.world_size > 1 else min(step_s, self._grace_s / 2))
        if stop_s > self._grace_s:
            self._is_told = True
            rank_zero_warn(
                f"a stop takes about {stop_s:.0f} s, of which {save_s:.0f} s to save, and trainer.grace_s is"
                f" {self._grace_s:g}: ask the scheduler for more, or save more often (checkpoint.every_n_steps)"
            )
