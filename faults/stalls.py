"""Ranks and data workers that stall or are lost: who it was is told in time, and every process ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from experiments import cli
from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.experiment import one_command, write_data, write_experiment
from faults.job import AGAIN, StartedJob
from faults.misbehaving import HOW
from faults.processes import children_of, of_session, orphans_of
from lumos_pl.machinery.parent_process import state_of

NAMED = "named in time"
RANKS = 2
ABSENT = "absent"
KINDS = (*HOW, ABSENT)
CANNOT_LEAVE = "stopped", "asleep in C"  # by itself: what started the ranks ends this one, once another has left
TIMEOUT_S, START_S, ADDED_S = 6, 20, 10.0
COMING_S = 90.0  # to the moment, on a busy machine
ROOT = Path(cli.__file__).parents[1]


class Ended(NamedTuple):
    """How the processes of a run did: exit status by rank (None: it did not end by itself), and what they said."""

    statuses: dict[int, int | None]
    said: str
    left: list[str]
    seconds: float | None


@contextmanager
def _stalls(folder: Path) -> Iterator[Judge]:
    data = write_data(folder / "data")

    def judge(draw: Draw) -> Verdict:
        for old in folder.glob("try*"):
            shutil.rmtree(old)
        kind, rank = KINDS[draw.number % len(KINDS)], draw.choice([0, 1])
        starts_them_itself = draw.random() < 0.35 and not (rank == 0 and kind in ("killed", ABSENT))
        tried = folder / "try"
        tried.mkdir()
        noted = tried / "noted"
        init = {"rank": rank, "step": draw.randrange(1, 6), "how": kind, "noted": str(noted)}
        extra = [] if kind == ABSENT else [{"class_path": "faults.misbehaving.Misbehaving", "init_args": init}]
        trainer = {
            "max_steps": 1000, "rank_timeout_s": TIMEOUT_S, "val_every_n_steps": 1000, "accumulate": 2,
            "devices": RANKS,
            "start_timeout_s": START_S if kind == ABSENT else 120,
        }  # fmt: skip
        added = {"extra": extra, "progress_bar": False, "log_every_n_steps": 1}
        loading = {"num_workers": 1 if kind == "worker stopped" else draw.choice([0, 1]), "timeout_s": TIMEOUT_S}
        experiment = write_experiment(
            tried / "tiny.yaml", data, tried / "runs", trainer=trainer, callbacks=added, data=loading
        )
        run = started_by_itself if starts_them_itself else started_apart
        ended = run(tried, one_command(experiment), kind, rank, noted)
        done = f"rank {rank} {kind}, {run.__name__}: {ended}"
        return _judged(ended, kind, rank, done)

    yield judge


def _limit_s(kind: str) -> float:
    return (START_S if kind == ABSENT else TIMEOUT_S) + ADDED_S


def _wait(noted: Path, kind: str, is_over: Callable[[], bool]) -> float | None:
    """Seconds from the moment that is noted to the end; None: it did not end within its limit."""
    deadline = time.monotonic() + COMING_S
    while not noted.exists() and not is_over() and time.monotonic() < deadline:
        time.sleep(0.01)
    begun = time.monotonic()
    while not is_over():
        if time.monotonic() - begun > _limit_s(kind):
            return None
        time.sleep(0.01)
    return time.monotonic() - begun


def started_apart(tried: Path, command: list[str], kind: str, rank: int, noted: Path) -> Ended:
    """By a launcher, which ends the ranks that cannot leave once another has left."""
    absent = (rank,) if kind == ABSENT else ()
    job = StartedJob(command, tried, ranks=RANKS, absent=absent)
    if absent:
        noted.touch()
    able = [one for number, one in job.runs.items() if number != rank or kind not in CANNOT_LEAVE]
    seconds = _wait(noted, kind, lambda: all(run.ended() for run in able))
    in_time = {number: run.ended() for number, run in job.runs.items()}
    statuses = job.wait(0.1)
    stalled = {rank} if kind in CANNOT_LEAVE else set()
    shown = {n: status if in_time[n] else None for n, status in statuses.items() if n not in stalled}
    return Ended(shown, job.said, [], seconds)


def started_by_itself(tried: Path, command: list[str], kind: str, rank: int, noted: Path) -> Ended:
    """As one program, which starts the other rank."""
    said = tried / "rank-0.said"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.cli", *command],
            cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    if kind == ABSENT:
        _stop_child(process.pid)
        noted.touch()
    seconds = _wait(noted, kind, lambda: process.poll() is not None)
    status = process.poll()
    if status is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [line for line in said.read_text(errors="replace").splitlines() if line.startswith(("lumos:", "Trace"))]
    left = [_shown(pid) for pid in of_session(process.pid)]
    orphans = {f"{pid}" for pid in orphans_of(process.pid)}
    return Ended({0: status}, "\n".join(lines), [one for one in left if one.partition(" ")[0] in orphans], seconds)


def _shown(pid: int) -> str:
    """Its number, state and command."""
    command = b""
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[-80:]
    return f"{pid} {state_of(pid)} {command.decode(errors='replace')}"


def _stop_child(pid: int) -> None:
    """Stop the rank that a process starts, as soon as it is there."""
    deadline = time.monotonic() + COMING_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            for child in children_of(pid):
                if b"experiments" in Path(f"/proc/{child}/cmdline").read_bytes() and state_of(child) != "stopped":
                    os.kill(child, signal.SIGSTOP)
                    return
        time.sleep(0.01)


def _judged(ended: Ended, kind: str, rank: int, done: str) -> Verdict:
    if "Traceback" in ended.said:
        return Verdict("traceback", done)
    if ended.seconds is None:
        return Verdict("late", done)
    if ended.left:
        return Verdict("processes left", done)
    lines = [line for line in ended.said.splitlines() if "lumos: " in line]
    name = "data worker" if kind == "worker stopped" else f"rank {rank}"
    if len(lines) != 1 or name not in lines[0].partition(" | ")[0]:
        return Verdict("not named", done)
    right = {3, AGAIN} if kind == "worker stopped" else {AGAIN}
    lost = {-signal.SIGKILL} if rank == 0 or kind == "killed" else set()  # the rank itself, or what another had to end
    if not set(ended.statuses.values()) <= right | lost:
        return Verdict("wrong status", done)
    return Verdict(NAMED, done)


STALLS = Campaign(
    name="stalls",
    title="stalls and losses of ranks and workers",
    instances=10,
    held=(NAMED,),
    broken=("late", "not named", "wrong status", "processes left", "traceback"),
    open=_stalls,
)
