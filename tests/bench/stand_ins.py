"""What a worker may be asked in the tests of the kit's driver: no torch, so that a worker starts at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from bench.gpu.case import Case
from bench.gpu.driver import Workers
from bench.gpu.record import Record
from bench.gpu.run import measure

HERE = "tests.bench.stand_ins"
DESCRIBE = f"{HERE}:describe"


def describe() -> dict[str, Any]:
    return {"device": "cpu", "name": "stand-in", "torch": "none", "triton": None, "python": "", "driver": None}


def count(*, log: str, name: str) -> dict[str, Any]:
    """Note that it ran; the figures say which process it was."""
    with Path(log).open("a") as stream:
        stream.write(f"{name}\n")
    return {"seconds": 1.0, "pid": os.getpid()}


def hang(*, pids: str) -> None:
    """Never end, and start another process that does not."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def fail() -> None:
    raise ValueError("no such\nthing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def spoil() -> dict[str, Any]:
    """Leave a GPU behind that no longer answers."""

    def refuse() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = SimpleNamespace(is_initialized=lambda: True, synchronize=refuse)
    sys.modules["torch"] = SimpleNamespace(cuda=cuda)  # type: ignore[assignment]
    return {"seconds": 1.0, "pid": os.getpid()}


def case(name: str, function: str, limit_s: float = 20.0, /, **settings: Any) -> Case:
    return Case(name=name, about="", measure=f"{HERE}:{function}", limit_s=limit_s, settings=settings)


def counted(log: Path, *names: str) -> list[Case]:
    return [case(name, "count", log=str(log), name=name) for name in names]


def drive(
    listed: list[Case], out: Path, *, seconds: float = 60.0, console: Console | None = None, again: bool = False
) -> Record:
    """One call of the kit, but for its command line."""
    deadline = time.monotonic() + seconds
    with Workers(out.with_suffix(".log"), DESCRIBE) as workers:
        workers.start()
        record = Record(out, workers.machine, toy=True, command="", order=listed)
        todo = [each for each in listed if again or not record.has(each)]
        measure(todo, workers, record, deadline=deadline, console=console or Console(quiet=True))
    return record


def drive_until_killed(out: str, log: str, pids: str) -> None:
    """For a process of its own: two cases, and one that hangs until somebody kills this driver."""
    drive([*counted(Path(log), "one", "two"), case("three", "hang", 500.0, pids=pids)], Path(out), seconds=600)
