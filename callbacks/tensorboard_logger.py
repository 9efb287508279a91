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
from lumos_pl.machinery.atomic_file import sync

FRAME = struct.Struct("<QI")  # before each event: its length, and the checksum of that
CHECKSUM_BYTES = 4  # behind each event


class RunTensorBoard(LogsOnce, TensorBoardLogger):
    """Writes events into a run's folder, where the system has them at once, as it has metrics.jsonl.

    Args:
        folder: of the run; the events lie in it, not below it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)
        self._folder = folder

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
        super().log_metrics(self.unlogged(metrics, step), step)
        self.experiment.flush()

    def save(self) -> None:
        """Nothing: all is there at once, and a run's settings stand in its config.yaml."""

    @rank_zero_only
    def sync(self) -> None:
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
