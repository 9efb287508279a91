from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import kept_checkpoints
from lumos_pl.checkpoints.saving import CheckpointConfig, Checkpointing
from lumos_pl.errors import CheckpointError
from lumos_pl.stop_request import StopRequest


def fake_trainer(save: Any) -> Any:
    return SimpleNamespace(
        save_checkpoint=save, is_global_zero=True, strategy=SimpleNamespace(barrier=lambda name: None)
    )


def checkpointing(folder: Path, keep: int) -> Checkpointing:
    return Checkpointing(folder, CheckpointConfig(keep=keep), {}, StopRequest())


def steps(folder: Path) -> list[str]:
    return [path.name for path in kept_checkpoints(folder)]


def test_later_checkpoints_that_were_passed_over_do_not_push_out_good_ones(tmp_path: Path) -> None:
    trainer = fake_trainer(lambda path: torch.save({}, path))
    for step in 10, 20, 30, 40, 50:
        checkpointing(tmp_path, 9)._save(trainer, step)
    checkpointing(tmp_path, 2)._save(trainer, 35)  # resumed from 30, as 40 and 50 were damaged
    assert [name[9:13].lstrip("0") or name for name in steps(tmp_path)] == ["30", "35", "40", "50"]


def test_a_full_disk_in_a_sharded_save_is_an_expected_failure(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise CheckpointException("no space left", {})

    with pytest.raises(CheckpointError, match="cannot be saved"):
        checkpointing(tmp_path, 2)._save(fake_trainer(full), 10)
