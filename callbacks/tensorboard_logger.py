"""TensorBoard's events of a run, next to its other files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

from callbacks.logs_once import LogsOnce
from lumos_pl.errors import causes
from lumos_pl.machinery.atomic_file import sync

FRAME = struct.Struct("<QI")  # precedes each event: its length, and the length's checksum
CHECKSUM_BYTES = 4  # of the checksum that follows each event


class RunTensorBoard(LogsOnce, TensorBoardLogger):
    """Writes events into a run's folder, handing each to the system at once, as metrics.jsonl does.

    What the storage refuses is kept and written to a new file with the next figures; `sync` raises if it still cannot
    be written.

    Args:
        folder: of the run; the events go directly into it, not into a subfolder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._folder = folder
        self._unwritten: list[tuple[Mapping[str, float], int | None]] = []
        self._has_failed = False

    @property
    def log_dir(self) -> str:
        """The folder exactly as named; Lightning would expand environment variables in it."""
        return str(self._folder)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; TensorBoard hides later steps in earlier files."""
        super().rewind(step)
        self._kwargs["purge_step"] = step

    def logged_at(self, step: int) -> set[str]:
        logged: set[str] = set()
        for file in sorted(filter(Path.is_file, self._folder.glob("events.out.tfevents.*"))):
            for event in read_events(file):
                if event.session_log.status == SessionLog.START and event.step <= step:
                    logged.clear()  # the run was resumed from an earlier step
                elif event.step == step:
                    logged.update(value.tag for value in event.summary.value)
        return logged

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unwritten.append((self.unlogged(metrics, step), step))
        with self.outlived(f"{self._folder} lacks the last figures for TensorBoard"):
            self._write()

    def _write(self) -> None:
        try:
            for metrics, step in self._unwritten:
                there = self.logged_at(step) if self._has_failed and step is not None else set()
                super().log_metrics({name: value for name, value in metrics.items() if name not in there}, step)
            self.experiment.flush()
        except (OSError, ValueError) as error:  # what Lightning raises for it
            refusal = next((one for one in causes(error) if isinstance(one, OSError)), None)
            if refusal is None:
                raise
            self._has_failed, self._experiment = True, None  # its thread has ended
            raise refusal from error
        self._unwritten.clear()
        self._has_failed = False
        self._kwargs.pop("purge_step", None)  # a file that is begun later must not purge again

    def save(self) -> None:
        """Does nothing: everything is written at once, and a run's settings are in its config.yaml."""

    @rank_zero_only
    def sync(self) -> None:
        if self._unwritten:
            self._write()
        self.experiment.flush()
        for file in self._folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
            sync(file)


def read_events(file: Path) -> Iterator[Any]:
    """The events of a file, up to its end or the first that is invalid: torn by a kill, or not an events file."""
    with file.open("rb") as stream:
        left = file.stat().st_size
        while len(frame := stream.read(FRAME.size)) == FRAME.size:
            length, _ = FRAME.unpack(frame)
            left -= FRAME.size + length + CHECKSUM_BYTES
            if left < 0:
                return
            content = stream.read(length + CHECKSUM_BYTES)
            try:
                event = Event.FromString(content[:length])
            except DecodeError:
                return
            yield event
