"""A run is a folder:

runs/EXP/NAME/config.yaml        everything the run depends on, resolved
              checkpoints/       step-*.ckpt with digests, last.ckpt
              events.out.*       TensorBoard
              metrics.jsonl      the same numbers, a line per step
              result.json        at the end
              run.lock           held by the process that writes here
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.config import LATEST, Config, to_yaml
from lumos_pl.checkpoints.complete import kept_checkpoints, write_atomically
from lumos_pl.errors import ConfigError
from lumos_pl.file_lock import file_lock

NAME_VARIABLE = "LUMOS_RUN_NAME"  # how the processes that a run starts learn a name made from the time


def resolve_latest(path: Path) -> Path:
    """The path with `latest`, if it is in there, replaced by the newest run beside it that has a checkpoint.

    A path that exists as it stands is left alone.

    Raises:
        ConfigError: there is no such run yet.
    """
    if path.exists() or LATEST not in path.parts:
        return path
    place = path.parts.index(LATEST)
    folder = Path(*path.parts[:place])
    configs = sorted(folder.glob("*/config.yaml"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for run in (config.parent for config in configs):
        if kept_checkpoints(run / "checkpoints"):
            return run.joinpath(*path.parts[place + 1 :])
    raise ConfigError("no run with a checkpoint yet", file=folder, fix="train one first, or give its path")


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"

    @classmethod
    def named(cls, experiment: str, config: Config) -> RunFolder:
        """Where a new run of an experiment goes; the same for all processes of a run."""
        return cls(Path(config.run.dir) / experiment / (config.run.name or _default_name()))

    def check_unused(self) -> None:
        """Raise ConfigError if a run of this name has checkpoints already."""
        if kept_checkpoints(self.checkpoints):
            raise ConfigError("this run exists", file=self.path, fix=f"`lumos resume {self.path}`, or another run.name")

    def write_config(self, config: Config) -> None:
        write_atomically(self.config, to_yaml(config))

    @contextmanager
    def lock(self, *, rank: int) -> Iterator[None]:
        """Make the folder if need be and keep a second run out; the lock goes with the process, however it ends."""
        if rank != 0:
            yield
            return
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "the run's folder cannot be made", file=self.path, where="run.dir", got=error.strerror
            ) from error
        with file_lock(self.path / "run.lock"):
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
