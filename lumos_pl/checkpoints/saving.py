"""When a run saves: every N steps, at its end, and when it is asked to stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import checkpoint_name, kept_checkpoints, step_of
from lumos_pl.checkpoints.remote import SETTING, Upload
from lumos_pl.checkpoints.rotation import Rotation
from lumos_pl.checkpoints.saves import (
    Begun,
    DirectCheckpointIO,
    Saves,
    SaveSeconds,
    Writing,
    checkpoint_bytes,
)
from lumos_pl.checkpoints.together import from_rank_0
from lumos_pl.checkpoints.trouble import check_space, of_storage, write_again
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.lightning_private.loops import accumulates, log_step, note_step
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.progress import mark
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.stop_request import BrokenOff, StoppedBySignal, StopRequest
from lumos_pl.machinery.store import check_url
from lumos_pl.settings.ranges import at_least, check_ranges

T = TypeVar("T")
KEPT_BACK_S = 2.0  # of the grace, to leave in
UPLOAD_S = 600.0  # that the end of a run may wait for the last checkpoint's copy in the object store


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """
    Args:
        every_n_steps: save after so many steps; 0 saves at the end only.
        keep: how many of the newest to keep; 0 keeps all.
        keep_every_n_steps: those of steps that it divides are kept too; 0 for none.
        retry: how long reading and writing a checkpoint may fail before it has failed.
        max_failed_saves: after so many saves in a row that failed, the run ends with the last whole checkpoint.
        upload: URL of a folder in an object store, `s3://bucket/folder` for one, to which each complete checkpoint is
            copied, and from which a new machine goes on; null: none.
    """

    every_n_steps: int = 1000
    keep: int = 3
    keep_every_n_steps: int = 0
    retry: RetryConfig = field(default_factory=RetryConfig)
    max_failed_saves: int = 3
    upload: str | None = None

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("every_n_steps", "keep", "keep_every_n_steps"), at_least(0))
        check_ranges("checkpoint", self, **counts, max_failed_saves=at_least(1))
        if self.upload is not None:
            check_url(self.upload, SETTING)

    def stays(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is kept however old it is."""
        return self.keep_every_n_steps > 0 and step_of(checkpoint) % self.keep_every_n_steps == 0


@runtime_checkable
class KeepsLines(Protocol):
    """A logger whose lines belong to what a checkpoint stands for."""

    def sync(self) -> None:
        """Force all that was logged to the disk."""


class Checkpointing(Checkpoint):
    """Saves complete checkpoints, always between two optimizer steps.

    A sharded one is written in the background and complete at a later step: at the end of the first batch after it is
    written, and before the next one is begun, the run leaves or the last step is over.

    When it is asked to stop, the current step is finished and saved, then the run leaves; further
    signals change nothing. (Lightning's own handler may leave amid an accumulation, whose part
    would be lost.) A validation is broken off for it, and done again in the resumed run; so is a step that would not be
    over in time, by `StopRequest`. Once the last step is saved it leaves at once: a resumed run does the rest.

    A checkpoint that cannot be saved, however often it is tried, is dropped on all ranks, and the next one that is due
    is tried. The run ends with a `TemporaryError` where too many in a row were, or the last one.

    Args:
        folder: where the checkpoints go.
        config: what of it, and how long.
        run_config: the run's whole configuration, as plain values; saved under "lumos", where the module says the rest.
        stop: where signals are noted.
        timeout: how long a process waits for the others to say whether they were told to stop; default: torch's.
    """

    def __init__(
        self,
        folder: Path,
        config: CheckpointConfig,
        run_config: dict[str, Any],
        stop: StopRequest,
        *,
        timeout: timedelta | None = None,
    ) -> None:
        self.folder, self.config, self.run_config, self.stop = folder, config, run_config, stop
        self._timeout = timeout
        self._hosts: dist.ProcessGroup | None = None
        self._saved_step = -1
        self._ending = False
        self._n_bytes = 0
        self._begun: Begun | None = None
        self._upload: Upload | None = None
        if config.upload is not None:
            self._upload = Upload(
                config.upload, folder.parent, keep=config.keep, stays=config.stays, retry=config.retry
            )
        rotation = Rotation(folder, config.keep, self._stays, retry=config.retry)
        self._saves = Saves(rotation, config.retry, config.max_failed_saves, self._upload)
        self._losses: dict[str, float] = {}  # of before a resume

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Every logged loss as it was last, on whichever side of a resume; of a validation, if it was finite."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("loss/")}
        return self._losses | {name: loss for name, loss in logged.items() if math.isfinite(loss)}

    def _stays(self, checkpoint: Path) -> bool:
        return self.config.stays(checkpoint) or (self._upload is not None and self._upload.holds(checkpoint))

    @property
    def save_seconds(self) -> SaveSeconds:
        """What saves took, on rank 0: the whole of it, though most is done while the training goes on."""
        return self._saves.seconds

    # -- saving --------------------------------------------------------------------------------

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["lumos"] = {"config": self.run_config, "losses": self.losses(trainer)}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._losses = checkpoint["lumos"].get("losses", {})  # older checkpoints have none

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._finish_what_is_written(trainer)
        step = trainer.global_step
        if accumulates(trainer):
            # A callback that ends the run early, Lightning's max_time for one, waits for the end of the step.
            self._ending, trainer.should_stop = self._ending or trainer.should_stop, False
            return
        if step == self._saved_step:
            return
        note_step(trainer)
        trainer.should_stop = self._ending or trainer.should_stop
        stopping, gives_up = self._told()
        if gives_up and not stopping:  # then the last save may still succeed
            self._raise_on_all(self._saves.gives_up)
        due = self.config.every_n_steps and step % self.config.every_n_steps == 0
        last = step == trainer.max_steps or trainer.should_stop
        self._saves.last = step if stopping or last else None
        if due or stopping or last:
            self._save(trainer, step)
        if stopping or last:
            self._settle(trainer, stopping=stopping)
        if stopping:
            raise StoppedBySignal(self._status)
        if last:
            self.stop.at_once()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._finish_what_is_written(trainer)
        if not trainer.sanity_checking and self._told()[0]:
            raise BrokenOff(self._status)  # on all ranks

    def on_broken_off(self, trainer: Trainer) -> None:
        """Save the last step that is over, unless it was, and leave: all that came after it is done again."""
        if trainer.global_step == self._saved_step:
            self._finish(trainer)  # which the others need not hear of: one rank alone may be broken off
        else:
            self._saves.last = trainer.global_step
            self._save(trainer, trainer.global_step)
            self._settle(trainer, stopping=True)
        raise StoppedBySignal(self._status)

    def _settle(self, trainer: Trainer, *, stopping: bool) -> None:
        """The run ends with the save in hand: all ranks wait until it is complete, and copied if it is to stop."""
        self._finish(trainer)
        self._raise_on_all(self._saves.last_failure)
        if stopping:  # the others wait for this rank meanwhile
            self._wait_for_copies()
        trainer.strategy.barrier("checkpoint")

    @property
    def _status(self) -> int:
        return 128 + (self.stop.number or signal.SIGTERM)

    def _save(self, trainer: Trainer, step: int) -> None:
        self._saved_step = step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # which leaves no trace
            return
        self._finish(trainer)
        final, start = self.folder / checkpoint_name(step), time.monotonic()
        log_step(trainer)  # all figures up to this step: a resumed run does not come to it again
        partial = self._from_rank_0(self._prepare(trainer, final))
        if partial is None:
            return
        writing = Writing(self.config.retry)
        try:
            trainer.save_checkpoint(partial, storage_options=writing)
        except (Exception, CheckpointException) as error:
            if trainer.world_size > 1 or not of_storage(error):  # of several ranks all have to come to the same place
                raise
            writing.written = Future()
            writing.written.set_exception(error)
        self._begun = Begun(final, partial, writing.written, start)
        self._finish_what_is_written(trainer)
        trainer.strategy.barrier("checkpoint")

    def _prepare(self, trainer: Trainer, final: Path) -> Path | None:
        """Where all ranks write a checkpoint, on rank 0, if there is room for it; None: it was dropped."""
        if not trainer.is_global_zero:
            return None
        try:
            write_again(lambda: check_space(self.folder, self._n_bytes), self.config.retry, f"make room for {final}")
            for logger in trainer.loggers:
                if isinstance(logger, KeepsLines):
                    write_again(logger.sync, self.config.retry, "force the metrics to the disk")
        except (OSError, TemporaryError) as error:
            self._saves.drop(final, error)
            self._log_figures(trainer, {"checkpoint/failed": self._saves.failed})
            return None
        return partial_of(final)

    def _finish_what_is_written(self, trainer: Trainer) -> None:
        """Complete the checkpoint that was begun, if only that is left to do: rank 0's work."""
        if trainer.is_global_zero and self._begun and self._begun.written.done():
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Wait until the checkpoint that was begun is written, and complete it."""
        if self._begun is None:
            return
        mark("completing a checkpoint", slow=True)
        begun, self._begun = self._begun, None
        if not trainer.is_global_zero:
            failure = begun.written.exception()
            if failure is not None and not of_storage(failure):  # of the latter rank 0 knows
                raise failure
        elif self._saves.complete(begun):
            self._log_figures(trainer, {"checkpoint/seconds": self._saves.seconds.last})
        else:
            self._log_figures(trainer, {"checkpoint/failed": self._saves.failed})

    def _log_figures(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(figures), max(trainer.global_step - 1, 0))

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Whatever ends the run, the checkpoint that was begun is good: complete and copy it while the folder is this
        run's."""
        with suppress(Exception, CheckpointException):  # if that fails too, what ended the run is what there is to say
            self._finish(trainer)
        self._wait_for_copies()

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._wait_for_copies()

    def _wait_for_copies(self) -> None:
        """Until the object store has what is complete: within the grace, if there is one, and no longer than half of
        the patience that other ranks have with this one."""
        if self._upload is None:
            return
        limits = [UPLOAD_S]
        if self._timeout is not None:
            limits.append(self._timeout.total_seconds() / 2)
        if self.stop.left_s is not None:
            limits.append(max(0.0, self.stop.left_s - KEPT_BACK_S))
        mark("copying the checkpoint to the object store", slow=True)
        self._upload.finish(min(limits))

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        io = getattr(trainer.strategy, "checkpoint_io", None)
        if isinstance(io, DirectCheckpointIO):
            io.retry = self.config.retry

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._hosts = dist.new_group(backend="gloo", timeout=self._timeout)
        self._saved_step = trainer.global_step
        is_over = trainer.global_step >= trainer.max_steps
        failure: TemporaryError | ConfigError | None = None
        self._n_bytes = 0 if is_over else checkpoint_bytes(module)
        if trainer.is_global_zero and self.folder.is_dir():
            try:
                self._saves.begin(trainer.global_step)
                missing = max(1, 2 - len(kept_checkpoints(self.folder)))  # one is there while the next is written
                check_space(self.folder, missing * self._n_bytes)
                if self._upload is not None and not is_over:
                    self._upload.check()
            except (TemporaryError, ConfigError) as error:
                failure = error
        self.stop.defer()  # takes the signals back
        self._raise_on_all(failure)
        if is_over:
            self.stop.at_once()

    # -- what the ranks do alike ---------------------------------------------------------------

    def _told(self) -> tuple[bool, bool]:
        """Whether any rank was told to stop, and whether rank 0 gives up saving."""
        told = torch.tensor([self.stop.number is not None, self._saves.gives_up is not None], dtype=torch.int)
        if self._hosts is not None:  # they ask each other: through the GPUs, the answer would wait for all their work
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._hosts)
        stopping, gives_up = told.tolist()
        return bool(stopping), bool(gives_up)

    def _raise_on_all(self, failure: TemporaryError | ConfigError | None) -> None:
        """Raise what rank 0 found, on all ranks: one that went on alone would wait for it."""
        found = self._from_rank_0(None if failure is None else (type(failure), failure.parts))
        if found is not None:
            kind, parts = found
            raise kind(**parts)

    def _from_rank_0(self, value: T) -> T:
        return value if self._hosts is None else from_rank_0(value, self._hosts)
