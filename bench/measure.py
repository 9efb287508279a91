"""Time and memory of alternatives, each run in a process of its own, one after the other, in turn."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MIB = 1024  # of the kernel's kB


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One alternative: medians over its runs.

    Args:
        seconds: of the work alone, its preparation left out.
        peak_mib: highest resident memory during the work, above that before it.
        result: what the work returned, in plain values.
    """

    seconds: float
    peak_mib: float
    result: Any


def measure_here(work: Callable[[], Any]) -> dict[str, Any]:
    """Run `work` once in this process."""
    before = _resident("VmRSS")
    CLEAR_REFS.write_text("5")  # resets VmHWM
    begun = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak_mib": (_resident("VmHWM") - before) / MIB, "result": result}


def _resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0])


def alternate(module: str, cases: dict[str, list[str]], *, rounds: int) -> dict[str, Measured]:
    """Measure every case `rounds` times, in turn, so that a machine's moods meet all of them.

    Args:
        module: run as `python -m MODULE ARGUMENTS...`; prints what `measure_here` returned, as JSON.
        cases: arguments by name.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, arguments in cases.items():
            done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, check=True)
            runs[name].append(json.loads(done.stdout))
    return {
        name: Measured(
            seconds=statistics.median(run["seconds"] for run in each),
            peak_mib=statistics.median(run["peak_mib"] for run in each),
            result=each[0]["result"],
        )
        for name, each in runs.items()
    }
