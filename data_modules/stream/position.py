"""Where in its endless stream of micro-batches a training is: asked of the Trainer, whoever's it is.

    optimizer step      0        1        2              2 ranks, 2 micro-batches each: 4 a step
    rank 0             0  2     4  6     8 10
    rank 1             1  3     5  7     9 11

The step is all the state there is: a resumed training, and every epoch of a Trainer that has epochs, begins with the
first micro-batch of the step that comes next. Of a module that optimizes by hand each batch counts as one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

from data_modules.stream.left_out import Account, LeftOut
from data_modules.stream.skipped_steps import NONE_SKIPPED, SkippedSteps
from lumos_pl.checkpoints.description import refuse_changes
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.lightning_private.loops import steps_of_data
from lumos_pl.machinery.retrying import RetryConfig

VALIDATION_STAGES = ("validate", "test")  # of a Trainer, which read nothing that is trained on


@dataclass(frozen=True, kw_only=True)
class StreamPosition:
    """
    Args:
        start: the first micro-batch to read, over all ranks.
        per_step: micro-batches of an optimizer step over all ranks.
        rank, world_size: rank r of R takes micro-batches `start + r`, `start + r + R`, ...
        skipped: steps of the order that are left out.
    """

    start: int = 0
    per_step: int = 1
    rank: int = 0
    world_size: int = 1
    skipped: SkippedSteps = NONE_SKIPPED

    def of_order(self, micro_batch: int) -> int:
        """Which micro-batch of the order stands for one of the training."""
        step, within = divmod(micro_batch, self.per_step)
        return self.skipped.of_order(step) * self.per_step + within


class PositionedDataModule(LightningDataModule):
    """Goes on where the optimizer step says, and only with what the training was begun with, whosever module it feeds.

    A module whose `allow_changes` is true goes on with anything. What the data lack is noted in the Trainer's folder.

    Args:
        skipped: steps of the order that are left out.
        most_left_out: samples that may be.
        retry: of reads, and of writing that account.
    """

    seed: int
    _train: Any  # nothing where no training data were set up

    def __init__(self, *, skipped: SkippedSteps, most_left_out: int, retry: RetryConfig) -> None:
        super().__init__()
        self.skipped, self._most_left_out, self._retry = skipped, most_left_out, retry
        self._account: Account | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the Trainer, as of Lightning's modules: it holds what cannot be pickled, and a copy has none."""
        return {**vars(self), "trainer": None}

    def _position(self) -> StreamPosition:
        return stream_position(self.trainer)

    @property
    def account(self) -> Account:
        """What was left out, in the folder of the Trainer that asks; of a dry run, or without one, nothing is written.

        Raises:
            DataError: it is no account, or says more than may be left out.
        """
        trainer = self.trainer
        writes = trainer is not None and not getattr(trainer, "fast_dev_run", False)
        root = getattr(trainer, "default_root_dir", None) if writes else None
        folder = None if root is None else Path(root)
        if self._account is None or self._account.folder != folder:
            self._account = Account(folder, self._most_left_out, self._retry)
            self._account.check()
        return self._account

    @property
    def left_out_samples(self) -> int | None:
        """How many there are so far, over all ranks and attempts; None: none may be left out."""
        return self.account.total() if self._most_left_out else None

    def note_left_out(self, left_out: Sequence[LeftOut]) -> None:
        """Add to the account what the batch lacks that comes to be used.

        Raises:
            DataError: it is more than may be left out.
        """
        if left_out:
            self.account.note(left_out, 0 if self.trainer is None else self.trainer.global_step)

    def identity(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on from; after `setup`."""
        raise NotImplementedError

    def go_on_as(self, recorded: Mapping[str, Any]) -> None:
        """Take from the identity of the training that is gone on with what stays as it was then; after `setup`."""

    def identity_at(self, step: int) -> dict[str, Any]:
        """The identity of a training that has come to a step: what it has passed over belongs to it, as far as that."""
        passed_over = self.skipped.before(step)
        return {**self.identity(), **({"skip_steps": passed_over} if passed_over else {})}

    def state_dict(self) -> dict[str, Any]:
        if not self._train:
            return {}
        step = 0 if self.trainer is None else self.trainer.global_step
        return {**self._state(step), "step": step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        trainer = self.trainer
        if trainer is not None and trainer.training:
            self.go_on_as(state_dict.get("data", {}))
        if trainer is not None and trainer.training and not getattr(trainer.lightning_module, "allow_changes", False):
            saved = {name: value for name, value in state_dict.items() if name != "step"}
            refuse_changes(saved, self._state(state_dict.get("step", 0)))  # older ones could skip none

    def _state(self, step: int) -> dict[str, Any]:
        per_step = stream_position(self.trainer).per_step
        return {"data": self.identity_at(step), "seed": self.seed, "batches_per_step": per_step}


def stream_position(trainer: Trainer | None) -> StreamPosition:
    """Where the training is; without a Trainer, as in a notebook, at its beginning on one process."""
    if trainer is None:
        return StreamPosition()
    per_step = trainer.accumulate_grad_batches * trainer.world_size
    step = steps_of_data(trainer)
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
