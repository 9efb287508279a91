"""torch's profiler over a few batches of a run; all of them would fill memory and disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lumos_pl.machinery.lightning_private.loops import LenientProfiler

WARMUP = 2  # batches traced but dropped, because they include the tracer's own start


class WindowProfiler(LenientProfiler):
    """Lightning's, once over `batches` batches from batch `first` on; each rank leaves a trace and a table.

        fit-profile-0.1795816381976113654.pt.trace.json   for https://ui.perfetto.dev, chrome://tracing or TensorBoard
        fit-profile-0.txt                                 operators by the time that they took

    Args:
        first: batches before the window, in which memory, compilation and data workers settle; counted from this
            start, not from the run's. If the run ends before the window does, the trace holds what there was.
        batches: micro-batches, each with its backward pass, and with the update if it closes a step.
        kwargs: arguments of `PyTorchProfiler` and `torch.profiler.profile`, such as `record_shapes`, `profile_memory`.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        *,
        first: int = 10,
        batches: int = 3,
        **kwargs: Any,
    ) -> None:
        warmup = min(WARMUP, first)
        window = torch.profiler.schedule(wait=first - warmup, warmup=warmup, active=batches, repeat=1)
        super().__init__(dirpath, filename, schedule=window, on_trace_ready=self._export, **kwargs)

    def _export(self, profiler: torch.profiler.profile) -> None:
        if self.dirpath is not None:
            torch.profiler.tensorboard_trace_handler(str(self.dirpath), self.worker_name)(profiler)
