"""A run's own checkpoint, when the run goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.contents import Training
from lumos_pl.checkpoints.opening import open_checkpoint
from lumos_pl.checkpoints.records import in_short
from lumos_pl.errors import CheckpointError, LumosError


def read_own(checkpoint: Path) -> Training:
    """What a checkpoint holds (of a sharded one, its tensors are only described), if a training can go on from it.

    Raises:
        CheckpointError: it is damaged, or holds weights alone.
    """
    parts = open_checkpoint(checkpoint).parts
    if not isinstance(parts, Training):
        fix = "start a new run with init_from"
        raise CheckpointError("weights alone, and no training to go on with", file=checkpoint, fix=fix)
    return parts


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
