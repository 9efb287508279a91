"""Where in its endless stream of micro-batches a training is: asked of the Trainer, whoever's it is.

    optimizer step      0        1        2              2 ranks, 2 micro-batches each: 4 a step
    rank 0             0  2     4  6     8 10
    rank 1             1  3     5  7     9 11

The step is all the state there is: a resumed training, and every epoch of a Trainer that has epochs, begins with the
first micro-batch of the step that comes next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from lumos_pl.checkpoints.description import refuse_changes
from lumos_pl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """
    Args:
        start: the first micro-batch to read, over all ranks.
        per_step: micro-batches of an optimizer step over all ranks.
        rank, world_size: rank r of R takes micro-batches `start + r`, `start + r + R`, ...
    """

    start: int = 0
    per_step: int = 1
    rank: int = 0
    world_size: int = 1


class PositionedDataModule(LightningDataModule):
    """Goes on where the optimizer step says, and only with what the training was begun with, whosever module it feeds.

    A module whose `allow_changes` is true goes on with anything.
    """

    seed: int
    _train: Any  # nothing where no training data were set up

    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on from; after `setup`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        if not self._train:
            return {}
        per_step = stream_position(self.trainer).per_step
        return {"data": self.identity(), "seed": self.seed, "batches_per_step": per_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.training and not getattr(trainer.lightning_module, "allow_changes", False):
            refuse_changes(state_dict, self.state_dict())


def stream_position(trainer: Trainer | None) -> StreamPosition:
    """Where the training is; without a Trainer, as in a notebook, at its beginning on one process."""
    if trainer is None:
        return StreamPosition()
    per_step = trainer.accumulate_grad_batches * trainer.world_size
    step = trainer.global_step
    overfitted = getattr(trainer, "overfit_batches", 0)  # the same batches in every epoch; 1.0 is Lightning's for all
    if isinstance(overfitted, int) and overfitted:
        step %= math.ceil(overfitted / trainer.accumulate_grad_batches)
    return StreamPosition(
        start=step * per_step, per_step=per_step, rank=trainer.global_rank, world_size=trainer.world_size
    )


def check_can_follow(trainer: Trainer) -> None:
    """Raise ConfigError for a Trainer whose place in an endless stream its step does not say, or that never ends."""
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError(
            "the micro-batches of a step must stay as many as they are",
            where="Trainer(callbacks)",
            got="GradientAccumulationScheduler",
            fix="give accumulate_grad_batches: the position in the data follows from it and the step",
        )
    for name in "overfit_batches", "limit_train_batches":
        share = getattr(trainer, name)
        if isinstance(share, float) and share not in (0.0, 1.0):
            raise ConfigError(
                "a share of an endless stream", where=f"Trainer({name})", got=share, expected="a number of batches"
            )
    timers = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    timed = any(timer.time_remaining() is not None for timer in timers)
    if trainer.max_steps < 0 and not isinstance(trainer.limit_train_batches, int) and not timed:
        raise ConfigError(
            "the training data have no end",
            where="Trainer",
            got=f"max_epochs={trainer.max_epochs}",
            fix="give max_steps, limit_train_batches (the batches of an epoch) or max_time",
        )
