"""A callback that has its rank stall or die at a step: named in `callbacks.extra`, as a user's own would be."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

HOW = ("stopped", "endless loop", "asleep in C", "killed", "worker stopped")
FOR_EVER_S = 10_000


class Misbehaving(Callback):
    """
    Args:
        rank: of the process.
        step: at whose first batch it happens.
        how: of HOW.
        noted: a file that is made the moment before.
    """

    def __init__(self, rank: int, step: int, how: str, noted: str) -> None:
        self.rank, self.step, self.how, self.noted = rank, step, how, noted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank != self.rank or trainer.global_step != self.step or Path(self.noted).exists():
            return
        Path(self.noted).touch()
        match self.how:
            case "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "endless loop":
                while True:
                    pass
            case "asleep in C":
                ctypes.PyDLL(None).sleep(FOR_EVER_S)  # without letting another thread of Python work
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "worker stopped":
                os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGSTOP)
