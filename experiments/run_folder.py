"""A run is a folder:

runs/EXP/NAME/config.yaml        everything the run depends on, resolved
              checkpoints/       step-*.ckpt with digests, last.ckpt
              events.out.*       TensorBoard
              metrics.jsonl      the same numbers, a line per step
              result.json        at the end
              run.lock           held by the process that writes here
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig, to_yaml
from lumos_pl.checkpoints.complete import kept_checkpoints, write_atomically
from lumos_pl.errors import ConfigError

LATEST = "latest"
NAME_VARIABLE = "LUMOS_RUN_NAME"  # how the processes that a run starts learn a name made from the time


def resolve_latest(path: Path) -> Path:
    """The path with `latest`, if it is in there, replaced by the name of the newest run beside it.

    Raises:
        ConfigError: there is no run yet.
    """
    if LATEST not in path.parts:
        return path
    place = path.parts.index(LATEST)
    folder = Path(*path.parts[:place])
    runs = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns)
    if not runs:
        raise ConfigError("no run yet", file=folder, fix="train one first, or give its path")
    return runs[-1].parent.joinpath(*path.parts[place + 1 :])


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"

    @classmethod
    def create(cls, experiment: str, config: ExperimentConfig, *, rank: int) -> RunFolder:
        """The folder of a new run; only rank 0 writes.

        Raises:
            ConfigError: a run of that name has checkpoints already.
        """
        name = config.run.name or _default_name()
        folder = cls(Path(config.run.dir) / experiment / name)
        if rank == 0:
            if kept_checkpoints(folder.checkpoints):
                raise ConfigError(
                    "this run exists", file=folder.path, fix=f"`lumos resume {folder.path}`, or another run.name"
                )
            try:
                folder.checkpoints.mkdir(parents=True, exist_ok=True)
                write_atomically(folder.config, to_yaml(config))
            except OSError as error:
                raise ConfigError(
                    "the run's folder cannot be made", file=folder.path, where="run.dir", got=error.strerror
                ) from error
        return folder

    @contextmanager
    def lock(self, *, rank: int) -> Iterator[None]:
        """Keep a second run out of the folder; the lock goes with the process, however it ends."""
        if rank != 0:
            yield
            return
        with (self.path / "run.lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise ConfigError(
                    "another process writes to this run",
                    file=self.path,
                    got=f"pid {file.read().strip()}",
                    fix="wait for it, or stop it",
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def write_result(self, result: dict[str, Any]) -> None:
        write_atomically(self.result, json.dumps(result, indent=2) + "\n")


def _default_name() -> str:
    """A timestamp, the same for all processes of a run."""
    if NAME_VARIABLE not in os.environ:
        if "SLURM_JOB_ID" in os.environ:
            os.environ[NAME_VARIABLE] = f"slurm-{os.environ['SLURM_JOB_ID']}"
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "processes started from outside cannot agree on a name", where="run.name", fix="give run.name=NAME"
            )
        else:
            os.environ[NAME_VARIABLE] = time.strftime("%Y%m%d-%H%M%S")
    return os.environ[NAME_VARIABLE]
