"""Reading a checkpoint's file: nothing of it is executed, and what it gives is plain values and sound tensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lumos_pl.checkpoints.digests import has_digest
from lumos_pl.checkpoints.plain_content import check_plain
from lumos_pl.checkpoints.records import check_file, in_short
from lumos_pl.errors import CheckpointError

PLAIN_VALUES = "meta.pt"  # of a sharded checkpoint, by which name Lightning reads it: all but the tensors


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint file, or what a sharded one holds beside its tensors; the tensors are views of the file.

    Raises:
        CheckpointError: it is damaged, or holds something other than tensors and plain values.
    """
    file = path / PLAIN_VALUES if path.is_dir() else path
    if not file.exists():
        what = "a part of the checkpoint is missing" if path.is_dir() else "no such checkpoint"
        raise CheckpointError(what, file=path, where=file.name if path.is_dir() else None)
    check_file(file, compare_crc=not has_digest(path))
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=not path.is_dir())
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "checkpoint refused", file=path, got=in_short(error), fix="load only checkpoints you trust"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointError("checkpoint cannot be read", file=path, got=in_short(error)) from None
    if not isinstance(content, dict):
        raise CheckpointError("not a checkpoint of this project", file=path, got=type(content).__name__)
    check_plain(content, file=path)
    return content
