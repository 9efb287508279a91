"""Time and memory of alternatives, each run in a process of its own, one after the other, in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One alternative: medians over its runs.

    Args:
        seconds: of the work alone, its preparation left out.
        cpu_seconds: that this process and those it waited for were computing: what the work costs where
            other programs take the cores away.
        peak_mib: highest memory during the work above that before it: resident, or of the GPU.
        result: what the work returned, in plain values; alike in alternatives that do the same.
        notes: figures that the module adds.
    """

    seconds: float
    cpu_seconds: float
    peak_mib: float
    result: Any
    notes: dict[str, Any]


def measure_here(work: Callable[[], Any], device: str = "cpu") -> dict[str, Any]:
    """Run `work` once in this process, on a CPU or a GPU.

    Returns:
        what `Measured` lists, and `total_mib`: the highest memory altogether.
    """
    before, peak = watch_memory(device)
    cpu = sum(os.times()[:4])
    begun = time.perf_counter()
    result = work()
    if device == "cuda":
        _wait_for_gpu()
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "cpu_seconds": sum(os.times()[:4]) - cpu,
        "peak_mib": max(0.0, peak() - before),
        "total_mib": peak(),
        "result": result,
    }


def time_each(work: Callable[[], Any], repeats: int, device: str) -> list[float]:
    """Seconds of each of several runs: on a GPU by its own clock, so that it need not wait between them."""
    if device != "cuda":
        clock = [time.perf_counter()]
        for _ in range(repeats):
            work()
            clock.append(time.perf_counter())
        return [after - before for before, after in pairwise(clock)]
    from torch import cuda

    events = [cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    _wait_for_gpu()
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    _wait_for_gpu()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]


def watch_memory(device: str) -> tuple[float, Callable[[], float]]:
    """MiB in use now, and what tells the most since: allocated of a GPU, or resident of this process."""
    return _gpu_memory() if device == "cuda" else _resident_memory()


def _resident_memory() -> tuple[float, Callable[[], float]]:
    """MiB now, and what tells the highest since."""

    def mebibytes(field: str) -> float:
        lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return int(lines[field].split()[0]) / 1024  # of the kernel's kB

    before = mebibytes("VmRSS")
    CLEAR_REFS.write_text("5")  # resets VmHWM
    return before, lambda: mebibytes("VmHWM")


def _gpu_memory() -> tuple[float, Callable[[], float]]:
    from torch import cuda  # here, for torch takes seconds that a start-up is not to be measured with

    _wait_for_gpu()
    cuda.reset_peak_memory_stats()
    return cuda.memory_allocated() / 2**20, lambda: cuda.max_memory_allocated() / 2**20


def _wait_for_gpu() -> None:
    from torch import cuda

    cuda.synchronize()


def run_case(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Measure in a process of its own.

    Args:
        module: run as `python -m MODULE ARGUMENTS...`; prints what `measure_here` returned, as its last line.
    Raises:
        subprocess.CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def alternate(
    module: str, cases: Mapping[str, Sequence[str]], *, rounds: int, on_run: Callable[[], None] = lambda: None
) -> dict[str, Measured]:
    """Measure every case `rounds` times, in turn, so that a machine's moods meet all of them.

    Args:
        cases: arguments by name, see `run_case`.
        on_run: called after each.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, arguments in cases.items():
            runs[name].append(run_case(module, arguments))
            on_run()
    return {name: _median(each) for name, each in runs.items()}


def _median(runs: list[dict[str, Any]]) -> Measured:
    def middle(name: str) -> float:
        return float(statistics.median(run[name] for run in runs))

    return Measured(
        seconds=middle("seconds"),
        cpu_seconds=middle("cpu_seconds"),
        peak_mib=middle("peak_mib"),
        result=runs[0]["result"],
        notes=runs[0].get("notes", {}),
    )
