"""One training step under torch's profiler: which kernels take the time, and when the GPU has none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from bench.gpu.card import Figures
from bench.gpu.steps import WARM_UP, StepSetting, take_steps
from lumos_pl.machinery.devices import resolve_device

TOP = 20


@dataclass(frozen=True)
class Kernel:
    """One run of a kernel, or on a CPU of an operation; times in microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Gap:
    """Microseconds without a kernel, and the names of those around it."""

    length: float
    after: str
    before: str


def traced_step(**settings: Any) -> Figures:
    """The kernels with the most time, and the gaps, of a step as it is."""
    setting, device = StepSetting(**settings), resolve_device("auto")
    assert setting.recompute is not None
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    profiler = profile(activities=activities)
    batches = [setting.clip()] * (WARM_UP + setting.steps)
    with ExitStack() as stack:
        take_steps(setting, setting.recompute, batches, lambda: stack.enter_context(profiler))
    return summarize(kernels(profiler, device), n_steps=setting.steps)


def kernels(profiler: profile, device: str) -> list[Kernel]:
    """All that ran on the device, by its start; of a CPU the operations that no other operation called."""

    def is_one(event: FunctionEvent) -> bool:
        if getattr(event, "is_user_annotation", False):  # spans a whole range of kernels
            return False
        parent = event.cpu_parent
        return device == "cuda" or (_is_operation(event) and (parent is None or not _is_operation(parent)))

    found = [
        Kernel(event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or []
        if event.device_type.name.lower() == device and is_one(event)
    ]
    return sorted(found, key=lambda kernel: kernel.start)


def _is_operation(event: FunctionEvent) -> bool:
    return bool(event.name.startswith("aten::"))


def find_gaps(ran: Sequence[Kernel]) -> list[Gap]:
    """Where nothing ran between two kernels, the longest first; kernels may overlap."""
    gaps, last = [], ran[0]
    for kernel in ran[1:]:
        if kernel.start > last.end:
            gaps.append(Gap(kernel.start - last.end, last.name, kernel.name))
        last = max(last, kernel, key=lambda each: each.end)
    return sorted(gaps, key=lambda gap: -gap.length)


def summarize(ran: Sequence[Kernel], *, n_steps: int) -> Figures:
    """Figures, and all of it as a text."""
    if not ran:
        raise RuntimeError("the profiler saw no kernel")
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in ran:
        times[kernel.name].append(kernel.end - kernel.start)
    span = max(kernel.end for kernel in ran) - ran[0].start
    total = sum(map(sum, times.values()))
    top = sorted(times, key=lambda name: -sum(times[name]))[:TOP]
    gaps = find_gaps(ran)
    longest = gaps[0] if gaps else Gap(0.0, "", "")
    idle = sum(gap.length for gap in gaps)
    lines = [
        f"{n_steps} steps, {span / n_steps / 1000:.1f} ms and {len(ran) / n_steps:,.0f} kernels each,"
        f" idle {idle / span:.1%} of the time",
        "",
        "   ms a step   share   runs a step   kernel",
        *(
            f"{sum(times[name]) / n_steps / 1000:12.3f} {sum(times[name]) / total:7.1%}"
            f" {len(times[name]) / n_steps:13.1f}   {name[:140]}"
            for name in top
        ),
        "",
        "  us idle   after -> before",
        *(f"{gap.length:9.1f}   {gap.after[:70]} -> {gap.before[:70]}" for gap in gaps[:TOP]),
    ]
    return {
        "seconds": span / n_steps / 1e6,
        "kernels": len(ran) / n_steps,
        "idle": idle / span,
        "longest_gap_seconds": longest.length / 1e6,
        "top": [[name[:140], sum(times[name]) / n_steps / 1e6, len(times[name]) / n_steps] for name in top],
        "text": "\n".join(lines) + "\n",
    }
