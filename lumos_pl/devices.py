"""Where the work is done, by name."""

from __future__ import annotations

import re

import torch

from lumos_pl.errors import ConfigError


def resolve_device(name: str) -> str:
    """The device that `cpu`, `cuda`, `cuda:N` or `auto` (a GPU if there is one) stands for; raises ConfigError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name)
    return name


def check_device(name: str, *, where: str = "device") -> None:
    """Raise ConfigError unless `name` is `cpu`, `cuda` or `cuda:N`, and there; `where` is what gave it."""
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", name)
    if match is None:
        raise ConfigError("unknown device", where=where, got=name, expected="cpu, cuda or cuda:N")
    n_gpus = torch.cuda.device_count()
    if name != "cpu" and int(match[1] or 0) >= n_gpus:
        raise ConfigError("no such GPU", where=where, got=name, expected=f"one of this machine's {n_gpus} GPUs, or cpu")
