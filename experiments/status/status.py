"""The state of a run by its files alone: nothing of them is written, no lock is taken, no process is asked."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_modules.stream.left_out import Account
from experiments.status.sources import sources_of, steps_of_sources
from experiments.yaml_text import read_yaml_file
from lumos_pl.checkpoints.complete import kept_checkpoints, step_of
from lumos_pl.checkpoints.digests import digest_file, files_of
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.attempts import Attempt, count_restarts, read_attempts
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.json_file import parse_json, read_json
from lumos_pl.machinery.last_lines import last_lines
from lumos_pl.machinery.lock_holder import Holder, lock_holder
from lumos_pl.machinery.retrying import RetryConfig

State = Literal["running", "silent", "finished", "stopped", "failed", "killed", "never started"]
Figure = tuple[int, float | str]  # the step that it stands at, and its value, "nan" for one
QUIET_S = 1800  # of a run on another machine, in which it should have written something
LOSSES = "loss/train", "loss/val", "psnr/val"
SOURCE_LOSS = "loss_source/train/"
STEP_SECONDS, TOKENS = "throughput/step_seconds_median", "throughput/tokens_per_second"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The newest complete checkpoint.

    Args:
        age: seconds since it was written.
    """

    step: int
    path: str
    age: float
    n_bytes: int


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """A data set of a mixture.

    Args:
        steps: of the optimizer steps so far, those that were of it; None: its weights cannot be read.
        loss: the last training loss of it, and the step it is of.
    """

    steps: int | None
    loss: Figure | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What is known of a run; None is not known, or not there.

    Args:
        state: `silent`: on another machine, and nothing was written for long; `killed`: it left without a word.
        said: who runs it, or how it ended.
        step, max_steps: optimizer steps, as far as they were logged or saved.
        age: seconds since a figure was logged.
        losses: by name the last one, and the step it is of.
        sources: the data sets of a mixture, by name.
        seconds_per_step, tokens_per_second: in the last interval that was logged.
        is_saving: whether a checkpoint is being written.
        next_save: the step after which it saves next; of a run that runs, as the two that follow.
        next_save_in, ends_in: seconds from now, at that speed.
        undone: steps after the checkpoint: a resumed run does them again, or would if this one were killed now.
        left_out: samples that could not be used and were left out, those of whole shards too.
        disk_free: bytes where the run lies.
        saves_left: checkpoints like the last one that there is room for.
    """

    run: str
    state: State
    said: str
    step: int
    max_steps: int | None
    age: float | None
    losses: dict[str, Figure]
    sources: dict[str, SourceStatus]
    seconds_per_step: float | None
    tokens_per_second: float | None
    saved: Saved | None
    is_saving: bool
    next_save: int | None
    next_save_in: float | None
    ends_in: float | None
    undone: int
    restarts: int | None
    left_out: int
    disk_free: int
    saves_left: int | None


def read_status(run: Path) -> Status:
    """What a run's folder tells of it.

    Raises:
        ConfigError: it is no run's folder.
        DataError: one of the files that it should have is something else.
    """
    config, now = _config(run), time.time()
    of_source = {f"{SOURCE_LOSS}{name}": name for name in sources_of(config)}
    logged = _logged(run / "metrics.jsonl", {STEP_SECONDS, TOKENS, *LOSSES, *of_source})
    attempts, saved = read_attempts(run), _saved(run / "checkpoints", now)
    steps = [step + 1 for step, _ in logged.values()] + [attempt["step"] for attempt in attempts[-1:]]
    if saved is not None:
        steps.append(saved.step)
    step, max_steps = max(steps, default=0), _whole(config, "trainer", "max_steps")
    age = _age(run / "metrics.jsonl", now)
    counts = steps_of_sources(config, step) if of_source else {}
    ages = [age, saved.age if saved else None, now - attempts[-1]["time"] if attempts else None]
    state, said = _state(run, attempts, step, max_steps, min((one for one in ages if one is not None), default=0.0))
    pace = _number(logged.get(STEP_SECONDS)) or _mean_pace(attempts, step, age, now)
    runs, disk = state == "running", shutil.disk_usage(run).free
    next_save = _next_save(step, _whole(config, "checkpoint", "every_n_steps"), max_steps) if runs else None
    return Status(
        run=str(run),
        state=state,
        said=said,
        step=step,
        max_steps=max_steps,
        age=age,
        losses={name: logged[name] for name in LOSSES if name in logged},
        sources={
            source: SourceStatus(steps=counts.get(source), loss=logged.get(name)) for name, source in of_source.items()
        },
        seconds_per_step=pace,
        tokens_per_second=_number(logged.get(TOKENS)),
        saved=saved,
        is_saving=runs and any((run / "checkpoints").glob(".step-*.partial")),
        next_save=next_save,
        next_save_in=None if next_save is None or pace is None else (next_save - step) * pace,
        ends_in=None if not runs or max_steps is None or pace is None else max(0, max_steps - step) * pace,
        undone=0 if state == "finished" else step - (saved.step if saved else 0),
        restarts=count_restarts(run),
        left_out=Account(run, most=0, retry=RetryConfig()).total(),
        disk_free=disk,
        saves_left=disk // saved.n_bytes if saved and saved.n_bytes else None,
    )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: it has the configuration of one."""
    return (folder / "config.yaml").is_file()


def _config(run: Path) -> dict[str, Any]:
    if not is_run(run):
        got = "no such folder" if not run.is_dir() else "no config.yaml"
        raise ConfigError("not a run's folder", file=run, got=got, fix="give runs/EXP/NAME")
    return read_yaml_file(run / "config.yaml")


def _whole(config: dict[str, Any], section: str, key: str) -> int | None:
    """A whole number of the configuration; all that is asked for of it, so that nothing of it has to be built."""
    found = config.get(section)
    value = found.get(key) if isinstance(found, dict) else None
    return value if type(value) is int and value >= 0 else None


# -- whether it runs -------------------------------------------------------------------------------


def _state(run: Path, attempts: Sequence[Attempt], step: int, max_steps: int | None, quiet: float) -> tuple[State, str]:
    """
    Args:
        quiet: seconds since it wrote anything.
    """
    start = next((attempt for attempt in reversed(attempts) if attempt["event"] == "start"), None)
    host = start.get("host") if start else None
    holder = lock_holder(run / "run.lock", here=host in (None, socket.gethostname(), os.uname().nodename))
    if holder.is_held:
        return "running", _who(holder, host)
    if holder.is_held is None:  # it may be another machine's process
        elsewhere = f"{_who(holder, host)}, which this machine does not see"
        return ("running" if quiet < QUIET_S else "silent"), elsewhere
    done = _result_steps(run / "result.json")
    if done is not None and done >= (max_steps or 0):
        return "finished", f"after {counted(done, 'step')}"
    last = attempts[-1] if attempts else None
    if last and last["event"] == "end":
        return _ending(last)
    if last or holder.pid is not None:
        return "killed", f"{_who(holder, host)} left without a word" if holder.pid else "it left without a word"
    return ("stopped", "nothing tells how") if step else ("never started", "no step was taken")


def _who(holder: Holder, host: str | None) -> str:
    return " on ".join(filter(None, (f"pid {holder.pid}" if holder.pid else "a process", host)))


def _ending(end: Attempt) -> tuple[State, str]:
    """What an attempt's last line says of how it ended."""
    status, line = end.get("status", 1), " ".join(end.get("line", "").split())
    if status == 0:
        return "stopped", "by its own settings, before its last step"
    if status > 128:
        with suppress(ValueError):
            return "stopped", f"by {signal.Signals(status - 128).name} (exit status {status})"
    again = "; it may pass: the same command, started again, goes on" * (status == TemporaryError.exit_status)
    return "failed", (line or f"exit status {status}") + again


def _result_steps(file: Path) -> int | None:
    if not os.path.lexists(file):
        return None
    steps = read_json(file, dict[str, Any]).get("steps")
    return steps if type(steps) is int else None


# -- what it has done ------------------------------------------------------------------------------


def _logged(file: Path, wanted: set[str]) -> dict[str, Figure]:
    """The last of the wanted figures, by name, and the last line's step under `step`."""
    found: dict[str, Figure] = {}
    if not os.path.lexists(file):
        return found
    for line in last_lines(file):
        named = [name for name in wanted if f'"{name}"'.encode() in line]
        if found and not named:
            continue
        record = _record(line)
        if record is None:
            continue
        found.setdefault("step", (record["step"], record["step"]))
        for name in named:
            if isinstance(record.get(name), int | float | str):
                found[name] = record["step"], record[name]
                wanted.discard(name)
        if not wanted:
            break
    return found


def _record(line: bytes) -> dict[str, Any] | None:
    with suppress(DataError):
        record = parse_json(line, dict[str, Any])
        if type(record.get("step")) is int:
            return record
    return None


def _number(figure: Figure | None) -> float | None:
    return float(figure[1]) if figure and isinstance(figure[1], int | float) and figure[1] > 0 else None


def _mean_pace(attempts: Sequence[Attempt], step: int, age: float | None, now: float) -> float | None:
    """Seconds per step since the last start, where the figures do not tell."""
    start = next((attempt for attempt in reversed(attempts) if attempt["event"] == "start"), None)
    if start is None or age is None or step <= start["step"]:
        return None
    return max(0.0, now - age - start["time"]) / (step - start["step"])


def _next_save(step: int, every: int | None, max_steps: int | None) -> int | None:
    due = [max_steps] * (max_steps is not None) + [(step // every + 1) * every for every in [every] if every]
    return min((one for one in due if one is not None), default=None)


def _saved(folder: Path, now: float) -> Saved | None:
    """The newest checkpoint that has its name, which it gets when it is complete, and its digest."""
    for checkpoint in reversed(kept_checkpoints(folder)):
        with suppress(OSError):  # it has just been removed: there is a newer one, of the next reading
            if digest_file(checkpoint).is_file():
                n_bytes = sum(file.stat().st_size for file in files_of(checkpoint))
                written = digest_file(checkpoint).stat().st_mtime
                return Saved(
                    step=step_of(checkpoint), path=str(checkpoint), age=max(0.0, now - written), n_bytes=n_bytes
                )
    return None


def _age(file: Path, now: float) -> float | None:
    with suppress(OSError):
        return max(0.0, now - file.stat().st_mtime)
    return None


def runs_among(folders: Sequence[Path]) -> Iterator[Path]:
    """Those of some folders that are runs, each once: `latest` may be a link to one of the others."""
    seen = set()
    for folder in folders:
        if is_run(folder) and folder.resolve() not in seen:
            seen.add(folder.resolve())
            yield folder
