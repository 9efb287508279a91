"""How far this process has come: what a watch looks at to tell a rank that stalls from one that works."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch import Callback

from lumos_pl.machinery.stop_request import breaks

ENDING = "ending"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What the main thread began last.

    Args:
        doing: in words.
        step: optimizer steps that were over.
        count: of what all ranks do in turn, as batches: a rank that has a lower one than the others holds them up.
        slow: whether it may take as long as what precedes the first step: the first batch, which compiles, or saving.
        since: seconds of the monotonic clock.
    """

    doing: str = "starting"
    step: int = 0
    count: int = 0
    slow: bool = True
    since: float = field(default_factory=time.monotonic)


_now = Moment()


def now() -> Moment:
    """What this process began last."""
    return _now


def mark(doing: str, *, step: int | None = None, slow: bool = False, counts: bool = False) -> None:
    """Something else begins; called by the main thread alone."""
    global _now
    step = _now.step if step is None else step
    _now = Moment(doing=doing, step=step, count=_now.count + counts, slow=slow)


class Heartbeat(Callback):
    """Marks each part of a training as it begins, and says which of them a signal may break off; the first callback.

    Before its first update a run has nothing to lose, and so may be broken off in any part of its first step. Later on
    one process drops a step, before it updates the weights, that is not over in half of the grace. Several finish it:
    while one of them would leave, another might wait for it. A validation of one process is broken off at once; several
    agree on it after each batch, see `Checkpointing`.
    """

    def __init__(self) -> None:
        self._worked: set[str] = set()  # what has been done once, and is compiled

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        mark("setting up", slow=True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark("loading the weights and the checkpoint", slow=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark("waiting for the first batch", step=trainer.global_step, slow=True)
        breaks("late")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        mark("training on a batch", step=trainer.global_step, slow="training" not in self._worked, counts=True)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        breaks("never")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        breaks("never")
        self._worked.add("training")
        mark("after a batch", step=trainer.global_step, counts=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mark("saving", slow=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark("validating", slow=True)
        if trainer.world_size == 1 and not trainer.sanity_checking:
            breaks("now")

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        mark("validating a batch", slow="validation" not in self._worked, counts=True)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._worked.add("validation")
        mark("after a batch of validation", counts=True)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        breaks("never")  # what it found is logged
        mark("ending a validation", slow=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark("waiting for a batch", counts=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark("judging at the end", slow=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        mark(ENDING, slow=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        mark(ENDING, slow=True)
