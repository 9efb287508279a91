"""A run is a folder:

runs/EXP/NAME/config.yaml        everything the run depends on, resolved
              checkpoints/       step-*.ckpt with digests, last.ckpt
              events.out.*       TensorBoard
              metrics.jsonl      the same numbers, a line per step
              changes.jsonl      settings that a resume changed and the weights depend on: step, setting, before, now
              attempts.jsonl     when each attempt began and how it ended, see lumos_pl/machinery/attempts.py
              left_out.jsonl     samples and shards that could not be used, see data_modules/stream/left_out.py
              uploads.json       what the run has put into an object store, see lumos_pl/checkpoints/remote.py
              result.json        at the end
              run.lock           held by the process that writes here
              slurm_job          the id of the job that began it, under SLURM
              ranks_waiting/     a file for each rank that waited for another in vain
              stalls/            of ranks that stalled: the stacks of their threads, and their exchanges
              eval/              what watchers measured of its checkpoints, see experiments/evaluation/watch.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Required

from pydantic import with_config
from typing_extensions import TypedDict

from experiments.config import Config, RunConfig, to_yaml
from experiments.slurm import job_id
from experiments.yaml_text import parse_yaml, to_yaml_text
from lumos_pl.checkpoints.complete import step_of, with_steps_names
from lumos_pl.errors import ConfigError, LumosError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.attempts import ATTEMPTS
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.folder_probe import PROBE
from lumos_pl.machinery.json_file import Count, Number, read_json
from lumos_pl.machinery.own_files import RECORD, note, remove_partials
from lumos_pl.machinery.regular_file import read_regular

LOCK = "run.lock"
TOKENS = "token", "rank"  # of which the ranks see that their folder is one
NAME_VARIABLE = "LUMOS_RUN_NAME"  # how the processes that a run starts learn a name made from the time


@with_config(extra="allow")
class RunResult(TypedDict, total=False):
    """What a run that has ended says of itself in result.json, beside what callbacks of one's own measured."""

    experiment: str
    steps: Required[Count]
    seconds: Number
    loss: dict[str, Number]
    trained_parameters: Count
    frame_loss: dict[str, Any]
    caption_fidelity: dict[str, dict[str, Number]]
    tokens_per_second: Number | None
    weights_sha256: str


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.result = path / "result.json"
        self.changes = path / "changes.jsonl"
        self.attempts = path / ATTEMPTS
        self.job = path / "slurm_job"

    @classmethod
    def named(cls, experiment: str, config: Config, *, again: bool = False) -> RunFolder:
        """Where a new run of an experiment goes; the same for all processes of a run.

        Args:
            again: whether the same command is to find the same run; then a time is no name.
        Raises:
            ConfigError: it has no name that all processes, or all attempts, know.
        """
        if again and config.run.name is None and job_id() is None and not os.environ.get(NAME_VARIABLE):
            fix = "give run.name=NAME"
            raise ConfigError("a run without a name cannot be found again", where="run.name", fix=fix)
        run = replace(config.run, name=config.run.name or _default_name())  # whoever names it, the same rules hold
        assert run.name is not None
        return cls(Path(run.dir) / experiment / run.name)

    @property
    def resuming(self) -> str:
        """The command that goes on with it, for a shell."""
        return shlex.join(["lumos", "resume", str(self.path)])

    def check_unused(self) -> None:
        """Raise ConfigError if a run of this name has checkpoints already."""
        if with_steps_names(self.checkpoints):
            raise ConfigError("this run exists", file=self.path, fix=f"`{self.resuming}`, or another run.name")

    def adopt(self) -> None:
        """Take the files of a run of before there was a record for its own, as far as nothing else is in them."""
        if os.path.lexists(self.path / RECORD):
            return
        again: dict[Path, Callable[[str], str]] = {
            self.config: lambda text: to_yaml_text(parse_yaml(text)),
            self.result: lambda text: _result_text(json.loads(text)),
            self.metrics: lambda text: "".join(f"{json.dumps(json.loads(line))}\n" for line in text.splitlines()),
        }
        for file, written in again.items():
            with suppress(LumosError, ValueError, RecursionError):
                data = read_regular(file, follow=False)
                if written(data.decode()).encode() == data:
                    note(file, hashlib.sha256(data).hexdigest())

    def note_job(self) -> None:
        if (job := job_id()) is not None:
            write_atomically(self.job, job)

    def is_of_this_job(self) -> bool:
        """Whether the run was begun by the SLURM job that this process is of: requeued, it begins once more."""
        job = job_id()
        if job is None or not (self.config.is_file() and self.job.is_file()):
            return False
        return read_regular(self.job, at_most=1 << 10) == os.fsencode(job)

    def write_config(self, config: Config) -> None:
        write_atomically(self.config, to_yaml(config))

    @contextmanager
    def lock(self, *, rank: int) -> Iterator[None]:
        """Make the folder if need be and keep a second run out; the lock goes with the process, however it ends."""
        if rank != 0:
            yield
            return
        make_folder(self.checkpoints, error=ConfigError, where="run.dir")
        with file_lock(self.path / LOCK):
            remove_partials(self.path, of=self._is_written)
            yield

    def _is_written(self, name: str) -> bool:
        """Whether an interrupted write of a file of this name may have left something: of those that a run writes."""
        names = {file.name for file in (self.config, self.metrics, self.result, self.changes, self.attempts, self.job)}
        return name in names | {RECORD, PROBE, *TOKENS}

    def is_over(self, max_steps: int) -> bool:
        """Whether there is nothing left to do: it has ended, and has not lost its last checkpoint alone since."""
        checkpoints = with_steps_names(self.checkpoints)
        return self.has_ended(max_steps) and (not checkpoints or step_of(checkpoints[-1]) >= max_steps)

    def has_ended(self, max_steps: int) -> bool:
        """Whether so many steps were done, and what comes after the last of them too."""
        return self.result.is_file() and self.read_result()["steps"] >= max_steps

    def read_result(self) -> RunResult:
        """What a run that has ended wrote of itself.

        Raises:
            DataError: the file is missing or damaged.
        """
        fix = f"move it away, then `{self.resuming}` writes it anew"
        return read_json(self.result, RunResult, fix=fix)

    def write_result(self, result: dict[str, Any]) -> None:
        write_atomically(self.result, _result_text(result))


def _result_text(result: dict[str, Any]) -> str:
    return json.dumps(_readable(result), indent=2) + "\n"


def _readable(value: Any) -> Any:
    """With texts for numbers that JSON does not have, which a callback of one's own may measure."""
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {name: _readable(item) for name, item in value.items()}
        case list() | tuple():
            return [_readable(item) for item in value]
        case _:
            return value


def _default_name() -> str:
    """A timestamp, the same for all processes of a run.

    Raises:
        ConfigError: a name from outside is none that `run.name` takes.
    """
    if not os.environ.get(NAME_VARIABLE):
        if (job := job_id()) is not None:
            os.environ[NAME_VARIABLE] = f"slurm-{job}"
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "processes started from outside cannot agree on a name", where="run.name", fix="give run.name=NAME"
            )
        else:
            os.environ[NAME_VARIABLE] = time.strftime("%Y%m%d-%H%M%S")
    name = os.environ[NAME_VARIABLE]
    try:
        RunConfig(name=name)
    except ConfigError as error:
        raise ConfigError(**error.parts | {"where": NAME_VARIABLE}) from None
    return name
