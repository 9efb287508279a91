"""Where the work is done, by name."""

from __future__ import annotations

import os
import platform
import re

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError

AUTO = "auto"  # a GPU if there is one

# NVIDIA's data sheet, without sparsity; Lightning knows an H200 by names only that most do not give themselves.
H200_FLOPS = {torch.bfloat16: 989.4e12, torch.float16: 989.4e12}


def resolve_device(name: str) -> str:
    """The device that `cpu`, `cuda`, `cuda:N` or `auto` (a GPU if there is one) stands for; raises ConfigError."""
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str, *, where: str = "device") -> None:
    """Raise ConfigError unless `name` is `cpu`, `cuda` or `cuda:N`, and there; `where` is what gave it."""
    number = check_device_name(name, where=where)
    n_gpus = torch.cuda.device_count()
    if name != "cpu" and number >= n_gpus:
        raise ConfigError("no such GPU", where=where, got=name, expected=f"one of this machine's {n_gpus} GPUs, or cpu")


def check_device_name(name: str, *, where: str = "device") -> int:
    """Raise ConfigError unless `name` is `cpu`, `cuda` or `cuda:N`, on whatever machine; returns N, by default 0."""
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise ConfigError("unknown device", where=where, got=name, expected="cpu, cuda or cuda:N")
    return int(match[1] or 0)


def has_bf16(device: str) -> bool:
    """Whether a device multiplies in bf16 itself: a processor that does not takes several times as long as in fp32."""
    if torch.device(device).type != "cpu":
        return True
    if platform.machine() in ("x86_64", "AMD64"):  # oneDNN's own word is for AVX-512, which may still lack it
        return bool(torch.cpu._is_avx512_bf16_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def data_sheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second of dense products on a device, by its maker; None where that is not known."""
    from lightning.fabric.utilities.throughput import get_available_flops

    if device.type == "cuda" and "H200" in torch.cuda.get_device_name(device) and dtype in H200_FLOPS:
        return H200_FLOPS[dtype]
    return get_available_flops(device, dtype)


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device, without making the host wait: a copy to a GPU from pageable memory would.

    What it is copied from is pinned first; torch keeps pinned memory for the next copy until this one is done.
    """
    to_gpu = torch.device(device).type == "cuda"
    if to_gpu and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=to_gpu)  # from one it is there on return


class Sent:
    """Numbers on their way to the host. Asked for later, the host waits for what made them, not for what came since."""

    def __init__(self, *numbers: Tensor) -> None:
        self._numbers = torch.stack([number.detach().float() for number in numbers]).to("cpu", non_blocking=True)
        self._there = torch.cuda.Event() if numbers[0].is_cuda else None
        if self._there is not None:
            self._there.record()

    def values(self) -> list[float]:
        if self._there is not None:
            self._there.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers


def own_gpu() -> str:
    """The GPU on which this process of several will train, by its number on its node, before a Trainer says so."""
    number = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    return f"cuda:{number % max(1, torch.cuda.device_count())}"  # a launcher may show each process its own alone
