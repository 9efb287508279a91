"""What the card is, and what it can do at best."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from bench.measure import time_each
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.machinery.devices import data_sheet_flops, resolve_device

Figures = dict[str, Any]
REPEATS = 10


def describe() -> Figures:
    """The device, the software, and the memory that a process can have, in bytes; wakes the GPU up."""
    import lightning  # noqa: F401 - seconds from a cold disk, which no case should lose of its limit

    set_up_memory()
    device = resolve_device("auto")
    described: Figures = {
        "device": device,
        "torch": torch.__version__,
        "triton": _triton(),
        "compiler": shutil.which("cc"),  # without which triton compiles no kernel
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if device == "cpu":
        torch.set_num_threads(1)  # of which two wait longer for each other than they compute
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that this one starts
        return described | {"name": platform.processor() or platform.machine(), "bytes": None, "driver": None}
    torch.ones(1, device=device).sum().item()
    properties = torch.cuda.get_device_properties(0)
    return described | {"name": properties.name, "bytes": properties.total_memory, "driver": _driver()}


def peak_flops(device: str) -> float | None:
    """Of products in bf16, by the data sheet; None where it is not known."""
    return None if device == "cpu" else data_sheet_flops(torch.device(device), torch.bfloat16)


def card(*, n: int, copied_bytes: int) -> Figures:
    """Operations a second of a product in bf16, and bytes a second that a copy reads and writes.

    Args:
        n: rows and columns of the two matrices.
    """
    device = resolve_device("auto")
    left, right = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.empty_like(source)

    def median_seconds(work: Any) -> float:
        time_each(work, 3, device)
        return statistics.median(time_each(work, REPEATS, device))

    product = median_seconds(lambda: torch.mm(left, right))
    copy = median_seconds(lambda: target.copy_(source))
    return {
        "product_flops": 2 * n**3 / product,
        "copy_bytes": 2 * source.nbytes / copy,
        "peak_flops": peak_flops(device),
    }


def _triton() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None
