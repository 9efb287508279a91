"""A run's own checkpoint, when the run goes on from it: what the two must have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from experiments.assemble import optimizer_identity
from lumos_pl.checkpoints import saving
from lumos_pl.checkpoints.complete import in_short, read_checkpoint
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER
from lumos_pl.checkpoints.sharded import check_pickles, is_sharded
from lumos_pl.differences import differences
from lumos_pl.errors import CheckpointError, LumosError


def read_own(checkpoint: Path) -> dict[str, Any]:
    """A checkpoint's content (of a sharded one: all but its tensors), if this project wrote it."""
    if is_sharded(checkpoint):
        check_pickles(checkpoint)
    content = read_checkpoint(checkpoint)
    match content:
        case {"global_step": int(), "lumos": {"format": saving.FORMAT, "config": dict(), "identity": dict()}}:
            return content
    own = content.get("lumos")
    found = own.get("format") if isinstance(own, dict) else None
    raise CheckpointError(
        "not a checkpoint of this version", file=checkpoint, where="lumos.format", got=found, expected=saving.FORMAT
    )


def made_with(own: dict[str, Any]) -> dict[str, Any]:
    """The identity of the run that a checkpoint is of.

    Checkpoints of before the optimizer was part of it have its settings all the same, in their configuration.
    """
    identity: dict[str, Any] = own["identity"]
    return (
        identity
        if "optimizer" in identity
        else identity | {"optimizer": optimizer_identity(own["config"]["optimizer"])}
    )


def refuse_changes(checkpoint: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise CheckpointError at the first thing in which a run's identity is not what it was."""
    for where, old, new in differences(saved, now):
        if where == f"data.{VISUAL_TOKENIZER}" and VISUAL_TOKENIZER not in saved["data"]:
            continue  # an older checkpoint; the manifests' digests tell it too
        raise CheckpointError(
            "the run was made with something else",
            file=checkpoint,
            where=where,
            got=new,
            expected=old,
            fix="restore it, or add --allow-changes to go on all the same",
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
