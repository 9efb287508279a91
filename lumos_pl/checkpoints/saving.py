"""When a run saves: every N steps, at its end, and when it is asked to stop."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import adopt, checkpoint_name, remove_leftovers, step_of
from lumos_pl.checkpoints.remote import check_url
from lumos_pl.checkpoints.rotation import Rotation
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.data_workers import worker_death
from lumos_pl.machinery.lightning_private import accumulates, log_step
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest
from lumos_pl.settings.ranges import at_least, check_ranges

MIB = 1 << 20


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
            check_url(self.upload)

    def stays(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is kept however old it is."""
        return self.keep_every_n_steps > 0 and step_of(checkpoint) % self.keep_every_n_steps == 0


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes where it is told to. Lightning's own way goes through TMPDIR, where a kill leaves the file behind."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)


def checkpoint_bytes(module: nn.Module) -> int:
    """What a checkpoint of a module takes, whole: its parameters, and two more of each that is trained (AdamW)."""
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in module.parameters())


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise CheckpointError unless so much can be written to `folder`."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise CheckpointError(
            "too little space for a checkpoint",
            file=folder,
            got=f"{free / MIB:.0f} MiB",
            expected=f"{n_bytes / MIB:.0f} MiB",
            fix="the earlier ones are as they were: free some space and resume",
        )


@runtime_checkable
class KeepsLines(Protocol):
    """A logger whose lines belong to what a checkpoint stands for."""

    def sync(self) -> None:
        """Force all that was logged to the disk."""


@dataclass(frozen=True)
class _Begun:
    """A checkpoint that is not complete yet."""

    final: Path
    partial: Path
    writing: Future[str] | None  # what has yet to be written of it


class Checkpointing(Checkpoint):
    """Saves complete checkpoints, always between two optimizer steps.

    A sharded one is written in the background and complete at a later step: at the end of the first batch after it is
    written, and before the next one is begun, the run leaves or the last step is over.

    When it is asked to stop, the current step is finished and saved, then the run leaves; further
    signals change nothing. (Lightning's own handler may leave amid an accumulation, whose part
    would be lost.) Once the last step is saved it leaves at once: a resumed run does the rest.

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
        self._begun: _Begun | None = None
        self._rotation = Rotation(folder, config.keep, config.stays)
        self._losses: dict[str, float] = {}  # of before a resume

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Every logged loss as it was last, on whichever side of a resume; of a validation, if it was finite."""
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("loss/")}
        return self._losses | {name: loss for name, loss in logged.items() if math.isfinite(loss)}

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
        trainer.should_stop = self._ending or trainer.should_stop
        stopping = self._stop_requested()
        due = self.config.every_n_steps and step % self.config.every_n_steps == 0
        last = step == trainer.max_steps or trainer.should_stop
        if due or stopping or last:
            self._save(trainer, step)
        if stopping or last:
            self._finish(trainer)
            trainer.strategy.barrier("checkpoint")
        if stopping:
            raise StoppedBySignal(128 + (self.stop.number or signal.SIGTERM))
        if last:
            self.stop.at_once()

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._finish_what_is_written(trainer)

    def _save(self, trainer: Trainer, step: int) -> None:
        self._saved_step = step
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # which leaves no trace
            return
        self._finish(trainer)
        final = self.folder / checkpoint_name(step)
        check_space(self.folder, self._n_bytes)
        self._log(trainer)
        partial = partial_of(final)
        if trainer.world_size > 1:  # all write into rank 0's
            partial = trainer.strategy.broadcast(partial)
        with self._expecting_failures(trainer, final):
            trainer.save_checkpoint(partial)
        self._begun = _Begun(final, partial, getattr(trainer.strategy, "writing", None))  # `ShardedStrategy`'s
        self._finish_what_is_written(trainer)
        trainer.strategy.barrier("checkpoint")

    def _log(self, trainer: Trainer) -> None:
        """Have all figures up to this step on the disk: a resumed run does not come to it again."""
        log_step(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, KeepsLines):
                logger.sync()

    def _finish_what_is_written(self, trainer: Trainer) -> None:
        """Complete the checkpoint that was begun, if only that is left to do: rank 0's work."""
        if trainer.is_global_zero and self._begun and (self._begun.writing is None or self._begun.writing.done()):
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        """Wait until the checkpoint that was begun is written, and complete it."""
        if self._begun is None:
            return
        begun, self._begun = self._begun, None
        with self._expecting_failures(trainer, begun.final):
            digests = None if begun.writing is None else begun.writing.result()
            if trainer.is_global_zero:
                self._rotation.complete(begun.partial, begun.final, digests)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Whatever ends the run, the checkpoint that was begun is good: complete it while the folder is this run's."""
        with suppress(Exception):  # if that fails too, what ended the run is what there is to say
            self._finish(trainer)

    @contextmanager
    def _expecting_failures(self, trainer: Trainer, final: Path) -> Iterator[None]:
        # torch.save turns a full disk into a RuntimeError, torch.distributed.checkpoint into what is no Exception; from
        # the latter a RuntimeError tells of another rank's end, which is another failure than this one
        full_disk = CheckpointException if hasattr(trainer.strategy, "writing") else RuntimeError
        try:
            yield
        except (OSError, full_disk) as error:
            if trainer.is_global_zero:
                remove_leftovers(self.folder)
            if (death := worker_death(trainer, error)) is not None:  # torch tells of it wherever the training is
                raise death from error
            raise CheckpointError(
                "checkpoint cannot be saved",
                file=final,
                got=getattr(error, "strerror", None) or " ".join(str(error).split())[:200],
                fix="the earlier ones are as they were: free some space and resume",
            ) from error

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._hosts = dist.new_group(backend="gloo", timeout=self._timeout)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero and self.folder.is_dir():
            adopt(self.folder)
            remove_leftovers(self.folder)
            self._rotation.remove_old(trainer.global_step)  # what a kill has left undone
        self.stop.defer()  # takes the signals back
        if trainer.global_step >= trainer.max_steps:
            self.stop.at_once()
            return
        self._n_bytes = checkpoint_bytes(module)
        check_space(self.folder, self._n_bytes)

    def _stop_requested(self) -> bool:
        """Whether any rank was told to stop."""
        told = torch.tensor(int(self.stop.number is not None))
        if self._hosts is not None:  # they ask each other: through the GPUs, the answer would wait for all their work
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self._hosts)
        return bool(told)
