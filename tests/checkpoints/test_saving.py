from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints.complete import kept_checkpoints, step_of
from lumos_pl.checkpoints.digests import check_digest, digest_lines
from lumos_pl.checkpoints.saving import CheckpointConfig, Checkpointing
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.stop_request import StopRequest
from tests.refusals import refused


class Connector:
    def update_train_step_metrics(self) -> None:
        """As Lightning's, without loggers."""


def fake_trainer(save: Any, writing: Future[str] | None = None) -> Any:
    strategy = SimpleNamespace(barrier=lambda name: None, writing=writing)
    return SimpleNamespace(
        save_checkpoint=save,
        is_global_zero=True,
        world_size=1,
        loggers=[],
        _logger_connector=Connector(),
        strategy=strategy,
        global_step=10,
        max_steps=-1,
        should_stop=False,
        fast_dev_run=False,
        train_dataloader=None,
        val_dataloaders=None,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
    )


def checkpointing(folder: Path, keep: int, stay: int = 0) -> Checkpointing:
    config = CheckpointConfig(every_n_steps=5, keep=keep, keep_every_n_steps=stay)
    return Checkpointing(folder, config, {}, StopRequest())


def save_at(step: int, saving: Checkpointing, trainer: Any) -> None:
    trainer.global_step = step
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]


def steps(folder: Path) -> list[str]:
    return [path.name for path in kept_checkpoints(folder)]


def test_later_checkpoints_that_were_passed_over_do_not_push_out_good_ones(tmp_path: Path) -> None:
    trainer = fake_trainer(lambda path: torch.save({}, path))
    for step in 10, 20, 30, 40, 50:
        save_at(step, checkpointing(tmp_path, 9), trainer)
    save_at(35, checkpointing(tmp_path, 2), trainer)  # resumed from 30, as 40 and 50 were damaged
    assert [name[9:13].lstrip("0") or name for name in steps(tmp_path)] == ["30", "35", "40", "50"]


def test_milestones_stay(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        save_at(step, checkpointing(tmp_path, 2, stay=20), fake_trainer(lambda path: torch.save({}, path)))
    assert [step_of(path) for path in kept_checkpoints(tmp_path)] == [20, 40, 60, 80, 90]


def test_a_full_disk_in_a_sharded_save_is_an_expected_failure(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise CheckpointException("no space left", {})

    with refused(CheckpointError, file="step-00000010.ckpt"):
        save_at(10, checkpointing(tmp_path, 2), fake_trainer(full))


def save_folder(path: Path) -> None:
    path.mkdir()
    (path / "meta.pt").write_bytes(b"0")


def test_what_the_background_writes_is_complete_only_when_it_is_written(tmp_path: Path) -> None:
    writing: Future[str] = Future()
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(save_folder, writing)
    save_at(10, saving, trainer)
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    assert steps(tmp_path) == [] and not list(tmp_path.glob("*.sha256"))
    (written,) = tmp_path.glob(".*/meta.pt")
    writing.set_result(digest_lines([written], "step-00000010.ckpt"))
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    check_digest(tmp_path / "last.ckpt")


def test_what_was_begun_is_complete_before_the_next_and_when_a_run_fails(tmp_path: Path) -> None:
    complete_before: list[list[str]] = []

    def save(path: Path) -> None:
        complete_before.append(steps(tmp_path))
        save_folder(path)
        trainer.strategy.writing = Future()
        Timer(0.05, trainer.strategy.writing.set_result, [""]).start()

    saving, trainer = checkpointing(tmp_path, 3), fake_trainer(save)
    for step in 10, 20:
        save_at(step, saving, trainer)
    saving.on_exception(trainer, None, RuntimeError())  # type: ignore[arg-type]
    assert complete_before == [[], ["step-00000010.ckpt"]]
    assert steps(tmp_path) == ["step-00000010.ckpt", "step-00000020.ckpt"]


def test_what_fails_in_the_background_stops_the_run_at_the_next_step(tmp_path: Path) -> None:
    writing: Future[str] = Future()
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(save_folder, writing)
    save_at(10, saving, trainer)
    writing.set_exception(CheckpointException("no space left", {}))
    with refused(CheckpointError, file="step-00000010.ckpt"):
        saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    saving.on_exception(trainer, None, KeyboardInterrupt())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []  # and no record: nothing was complete
