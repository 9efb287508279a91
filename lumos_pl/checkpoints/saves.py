"""How a save is tried: again while the storage fails it, then its checkpoint is dropped, and the next one is tried."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import adopt, kept_checkpoints, remove_leftovers, step_of
from lumos_pl.checkpoints.remote import Upload
from lumos_pl.checkpoints.rotation import Rotation
from lumos_pl.checkpoints.trouble import fix_of, in_words, of_storage, read_again, write_again
from lumos_pl.errors import TemporaryError
from lumos_pl.machinery.retrying import RetryConfig

log = logging.getLogger(__name__)


@dataclass
class Writing:
    """What a strategy is asked for with a checkpoint to save, as Lightning's `storage_options`, and what comes of it.

    Lightning's ranks wait for each other after a save: a rank that raised would leave the others waiting.

    Args:
        retry: how long a write may fail.
        written: done once this rank's part is written: the lines of the digest, if they are known then; or the failure.
    """

    retry: RetryConfig
    written: Future[str | None] = field(default_factory=lambda: _done(None))


class DirectCheckpointIO(TorchCheckpointIO):
    """Writes where it is told to, all of it forced to the disk, and tries again what fails.

    Lightning's own way goes through TMPDIR, where a kill leaves the file behind.
    """

    retry = RetryConfig()  # of reading; a `Checkpointing` sets its own

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file; with a `Writing` for its options, the storage's failure is kept for who looks there."""
        file = Path(path)
        if not isinstance(storage_options, Writing):
            _write(checkpoint, file)
            return
        storage_options.written = Future()
        try:
            write_again(lambda: _write(checkpoint, file), storage_options.retry, f"write {file}")
        except Exception as error:
            if not of_storage(error):
                raise
            storage_options.written.set_exception(error)
        else:
            storage_options.written.set_result(None)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        load = super().load_checkpoint
        return read_again(lambda: load(path, *args, **kwargs), self.retry, Path(path))


def _write(content: dict[str, Any], file: Path) -> None:
    """A file anew: of one that was not forced to the disk, another attempt to force it may find nothing wrong."""
    file.unlink(missing_ok=True)
    with file.open("xb") as stream:  # not by its name, for then torch would not say what the system said
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())


def _done(result: str | None) -> Future[str | None]:
    future: Future[str | None] = Future()
    future.set_result(result)
    return future


def checkpoint_bytes(module: nn.Module) -> int:
    """What a checkpoint of a module takes, whole: its parameters, and two more of each that is trained (AdamW)."""
    return sum(p.numel() * p.element_size() * (3 if p.requires_grad else 1) for p in module.parameters())


@dataclass(frozen=True)
class Begun:
    """A checkpoint that is not complete yet.

    Args:
        written: done when no more of it has to be written.
        at: when its save began, by `time.monotonic`.
    """

    final: Path
    partial: Path
    written: Future[str | None]
    at: float
    _written_at: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.written.add_done_callback(lambda _: self._written_at.append(time.monotonic()))

    @property
    def seconds(self) -> float:
        """That writing it took; whoever waited for the result may be awake before the moment is noted."""
        return (self._written_at or [time.monotonic()])[0] - self.at


@dataclass(frozen=True)
class SaveSeconds:
    """From the beginning of a save until its checkpoint is complete; 0 before the first."""

    last: float = 0.0
    longest: float = 0.0


class Saves:
    """Completes the checkpoints of a run's folder, or drops those that could not be saved; rank 0's work.

    Args:
        retry: how long a write may fail.
        most_failed: after so many dropped ones in a row there is no sense in going on.
        upload: what copies each complete one elsewhere; None: nothing does.
    Attributes:
        seconds: of those that are complete.
        failed: how many were dropped.
        whole: the newest complete one of the run, as far as is known.
        last: the step whose save ends the run, which says what that failed of; None: it goes on.
    """

    def __init__(self, rotation: Rotation, retry: RetryConfig, most_failed: int, upload: Upload | None) -> None:
        self.folder, self.retry, self.most_failed = rotation.folder, retry, most_failed
        self.seconds, self.failed = SaveSeconds(), 0
        self.whole: Path | None = None
        self.last: int | None = None
        self._rotation, self._upload = rotation, upload
        self._in_a_row: list[TemporaryError] = []  # what those that failed last say

    def begin(self, step: int) -> None:
        """Put the folder in order at the start of a run's work, which goes on from a step.

        Raises:
            TemporaryError: its storage does not allow that.
        """

        def put_in_order() -> None:
            adopt(self.folder)
            remove_leftovers(self.folder)

        try:
            write_again(put_in_order, self.retry, f"put {self.folder} in order")
            here = [checkpoint for checkpoint in kept_checkpoints(self.folder) if step_of(checkpoint) == step]
        except OSError as error:
            fix = f"{fix_of(error)}, then run the same command again"
            raise TemporaryError("cannot be written to", file=self.folder, got=in_words(error), fix=fix) from error
        self.whole = here[-1] if here else None
        self._rotation.remove_old(step)  # what a kill has left undone

    def complete(self, begun: Begun) -> bool:
        """Complete what is written; False: it was dropped."""
        try:
            digests = begun.written.result()
            start = time.monotonic()
            self._rotation.complete(begun.partial, begun.final, digests)
        except (Exception, CheckpointException) as error:
            if not of_storage(error):
                raise
            self.drop(begun.final, error)
            return False
        self.whole, self._in_a_row = begun.final, []
        took = begun.seconds + time.monotonic() - start
        self.seconds = SaveSeconds(last=took, longest=max(self.seconds.longest, took))
        if self._upload is not None:
            self._upload.begin(begun.final)
        return True

    def drop(self, final: Path, error: BaseException) -> None:
        """Leave nothing of a checkpoint that could not be saved, and say so."""
        self.failed += 1
        failure = self._failure(final, error)
        self._in_a_row.append(failure)
        with suppress(OSError):  # then a later start of the run removes it
            write_again(lambda: remove_leftovers(self.folder), self.retry, f"clean up {self.folder}")
        if step_of(final) == self.last:
            return
        count = f"{len(self._in_a_row)} of {self.most_failed} in a row"
        log.warning("checkpoint dropped (%s) | %s | %s | %s", count, final, failure.got, fix_of(error))

    @property
    def gives_up(self) -> TemporaryError | None:
        """Why the run should end; None: it should not."""
        return self._in_a_row[-1] if len(self._in_a_row) >= self.most_failed else None

    @property
    def last_failure(self) -> TemporaryError | None:
        """What the last save failed of; None: it did not."""
        return self._in_a_row[-1] if self._in_a_row else None

    def _failure(self, final: Path, error: BaseException) -> TemporaryError:
        newest = "none is complete yet" if self.whole is None else f"the last whole one is {self.whole.name}"
        fix = f"{fix_of(error)}, then run the same command again: {newest}"
        return TemporaryError("checkpoint cannot be saved", file=final, got=in_words(error), fix=fix)
