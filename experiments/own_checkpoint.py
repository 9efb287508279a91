"""A run's own checkpoint, when the run goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import in_short, read_checkpoint
from lumos_pl.checkpoints.description import FORMAT
from lumos_pl.checkpoints.sharded import check_pickles, is_sharded
from lumos_pl.errors import CheckpointError, LumosError


def read_own(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's content (of a sharded one: all but its tensors), if this project wrote it."""
    if is_sharded(checkpoint):
        check_pickles(checkpoint)
    content = read_checkpoint(checkpoint)
    match content:
        case {"global_step": int(), "lumos": {"format": int(made), "config": dict(), "identity": dict()}} if (
            made == FORMAT
        ):
            return content
    own = content.get("lumos")
    found = own.get("format") if isinstance(own, dict) else None
    raise CheckpointError(
        "not a checkpoint of this version", file=checkpoint, where="lumos.format", got=found, expected=FORMAT
    )


def misfit(error: BaseException, checkpoint: Path) -> LumosError | None:
    """What an error while the run's state is loaded says: possible where changes were allowed."""
    if isinstance(error, torch.OutOfMemoryError | OSError):
        return None
    of_ranks = error.failures.values() if isinstance(error, CheckpointException) else []
    cause = next((own for own, _ in of_ranks), error)  # what the whole would bury under tracebacks
    return CheckpointError(
        "the checkpoint does not fit the run's settings",
        file=checkpoint,
        got=in_short(cause),
        fix="restore them, or start a new run with init_from",
    )
