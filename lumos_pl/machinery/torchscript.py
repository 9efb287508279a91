"""TorchScript files of others: programs, which are executed. Open only what you trust."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from lumos_pl.errors import CheckpointError, ConfigError, DataError
from lumos_pl.machinery.regular_file import read_regular

MOST_BYTES = 4 << 30  # of one program; Cosmos's have a tenth of it


def read_program(path: Path, *, what: str, fix: str) -> bytes:
    """The content of a file; `what` it is for, and the `fix`, are for the message of a ConfigError."""
    try:
        return read_regular(path, at_most=MOST_BYTES)
    except DataError as error:
        raise ConfigError(f"cannot read {what}", file=path, got=error.got or error.what, fix=fix) from error


def open_program(path: Path, content: bytes, *, device: str, fix: str) -> Any:
    """The module that `content`, read from `path`, holds; CheckpointError if it holds none."""
    try:
        return torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
        raise CheckpointError("not a TorchScript file", file=path, got=reason, fix=fix) from error
