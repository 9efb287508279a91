"""A run's own checkpoint, when the run goes on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.contents import Training
from lumos_pl.checkpoints.description import made_with, shortly
from lumos_pl.checkpoints.opening import PREFIXES, open_checkpoint
from lumos_pl.checkpoints.records import in_short
from lumos_pl.errors import CheckpointError, LumosError
from lumos_pl.optimized_module import OF_THE_WEIGHTS, OptimizedModule
from lumos_pl.settings.differences import differences

_MISFIT = "the checkpoint does not fit the run's settings"
_RESTORE = "restore them, or start a new run with init_from"


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


def check_fits(module: OptimizedModule, saved: Training, checkpoint: Path) -> None:
    """Raise CheckpointError where a module cannot go on from a checkpoint, whatever changes are allowed.

    Asked before the run's settings are written down, with which it could not go on as it was either.
    """
    expected, begun = module.saved_tensors(), made_with(saved.lumos)
    if expected is None:
        return
    there = {n: tuple(t.shape) for n, t in saved.state_dict.items() if n.startswith(tuple(PREFIXES.values()))}
    is_another = there != {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for where, made, asked in differences(begun, module.identity()):
        section = where.partition(".")[0]
        if section == "optimizer" or (is_another and section in OF_THE_WEIGHTS):
            raise CheckpointError(
                _MISFIT, file=checkpoint, where=where, got=shortly(asked), expected=shortly(made), fix=_RESTORE
            )


def misfit(error: BaseException, checkpoint: Path) -> LumosError | None:
    """What an error while the run's state is loaded says: possible where changes were allowed."""
    if isinstance(error, torch.OutOfMemoryError | OSError):
        return None
    of_ranks = error.failures.values() if isinstance(error, CheckpointException) else []
    cause = next((own for own, _ in of_ranks), error)  # what the whole would bury under tracebacks
    return CheckpointError(
        _MISFIT,
        file=checkpoint,
        got=in_short(cause),
        fix=_RESTORE,
    )
