"""TensorBoard's events of a run, beside its other files."""

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

FRAME = struct.Struct("<QI")  # before each event: its length, and the checksum of that
CHECKSUM_BYTES = 4  # behind each event


class RunTensorBoard(LogsOnce, TensorBoardLogger):
    """Writes events into a run's folder, where the system has them at once, as it has metrics.jsonl.

    What the storage refuses is kept, and written into a new file with what comes next; `sync` raises where it still
    cannot be.

    Args:
        folder: of the run; the events lie in it, not below it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._folder = folder
        self._unwritten: list[tuple[Mapping[str, float], int | None]] = []
        self._has_failed = False

    @property
    def log_dir(self) -> str:
        """The folder as it is called; Lightning would put variables of the environment in its name."""
        return str(self._folder)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """As `LogsOnce.rewind`; TensorBoard leaves out what earlier files have of later steps."""
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
        except (OSError, ValueError) as error:  # by which Lightning tells of it
            refusal = next((one for one in causes(error) if isinstance(one, OSError)), None)
            if refusal is None:
                raise
            self._has_failed, self._experiment = True, None  # its thread is at its end
            raise refusal from error
        self._unwritten.clear()
        self._has_failed = False
        self._kwargs.pop("purge_step", None)  # which a file that is begun from now on must not say again

    def save(self) -> None:
        """Nothing: all is there at once, and a run's settings stand in its config.yaml."""

    @rank_zero_only
    def sync(self) -> None:
        if self._unwritten:
            self._write()
        self.experiment.flush()
        for file in self._folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
            sync(file)


def read_events(file: Path) -> Iterator[Any]:
    """The events of a file up to its end, or to one that is none: a kill has torn it, or it is another's file."""
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
