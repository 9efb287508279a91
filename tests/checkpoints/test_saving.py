from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from lumos_pl.checkpoints import complete
from lumos_pl.checkpoints.complete import kept_checkpoints, step_of
from lumos_pl.checkpoints.digests import check_digest, digest_lines
from lumos_pl.checkpoints.saves import DirectCheckpointIO, Writing
from lumos_pl.checkpoints.saving import CheckpointConfig, Checkpointing
from lumos_pl.errors import TemporaryError
from lumos_pl.machinery import own_files
from lumos_pl.machinery.own_files import name_of
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.stop_request import StopRequest
from tests.refusals import refused


class Connector:
    def update_train_step_metrics(self) -> None:
        """As Lightning's, without loggers."""


class Figures:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.logged.append(metrics)

    def of(self, name: str) -> list[float]:
        return [metrics[name] for metrics in self.logged if name in metrics]


def fake_trainer(save: Callable[[Path], Any]) -> Any:
    """A trainer whose saves `save` writes; what it returns, if anything, is done when all is written."""

    def save_checkpoint(path: Path, storage_options: Writing) -> None:
        storage_options.written = save(path) or storage_options.written

    return SimpleNamespace(
        save_checkpoint=save_checkpoint,
        is_global_zero=True,
        world_size=1,
        loggers=[Figures()],
        _logger_connector=Connector(),
        strategy=SimpleNamespace(barrier=lambda name: None),
        global_step=10,
        max_steps=-1,
        should_stop=False,
        fast_dev_run=False,
        train_dataloader=None,
        val_dataloaders=None,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
    )


def save_file(path: Path) -> None:
    torch.save({}, path)


def checkpointing(folder: Path, keep: int, stay: int = 0) -> Checkpointing:
    retry = RetryConfig(attempts=2, wait_s=0)
    config = CheckpointConfig(every_n_steps=5, keep=keep, keep_every_n_steps=stay, retry=retry, max_failed_saves=2)
    return Checkpointing(folder, config, {}, StopRequest())


def save_at(step: int, saving: Checkpointing, trainer: Any) -> None:
    trainer.global_step = step
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]


def steps(folder: Path) -> list[str]:
    return [path.name for path in kept_checkpoints(folder)]


def test_later_checkpoints_that_were_passed_over_do_not_push_out_good_ones(tmp_path: Path) -> None:
    trainer = fake_trainer(save_file)
    for step in 10, 20, 30, 40, 50:
        save_at(step, checkpointing(tmp_path, 9), trainer)
    save_at(35, checkpointing(tmp_path, 2), trainer)  # resumed from 30, as 40 and 50 were damaged
    assert [name[9:13].lstrip("0") or name for name in steps(tmp_path)] == ["30", "35", "40", "50"]


def test_milestones_stay(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        save_at(step, checkpointing(tmp_path, 2, stay=20), fake_trainer(save_file))
    assert [step_of(path) for path in kept_checkpoints(tmp_path)] == [20, 40, 60, 80, 90]


def save_folder(path: Path) -> None:
    path.mkdir()
    (path / "meta.pt").write_bytes(b"0")


def test_what_the_background_writes_is_complete_only_when_it_is_written(tmp_path: Path) -> None:
    writing: Future[str] = Future()
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(lambda path: save_folder(path) or writing)
    save_at(10, saving, trainer)
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    assert steps(tmp_path) == [] and not list(tmp_path.glob("*.sha256"))
    (written,) = tmp_path.glob(".*/meta.pt")
    writing.set_result(digest_lines([written], "step-00000010.ckpt"))
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    check_digest(tmp_path / "last.ckpt")


def test_what_was_begun_is_complete_before_the_next_and_when_a_run_fails(tmp_path: Path) -> None:
    complete_before: list[list[str]] = []

    def save(path: Path) -> Future[str]:
        complete_before.append(steps(tmp_path))
        save_folder(path)
        writing: Future[str] = Future()
        Timer(0.05, writing.set_result, [""]).start()
        return writing

    saving, trainer = checkpointing(tmp_path, 3), fake_trainer(save)
    for step in 10, 20:
        save_at(step, saving, trainer)
    saving.on_exception(trainer, None, RuntimeError())  # type: ignore[arg-type]
    assert complete_before == [[], ["step-00000010.ckpt"]]
    assert steps(tmp_path) == ["step-00000010.ckpt", "step-00000020.ckpt"]


# -- saves that fail -------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")
GONE = OSError(errno.EIO, "Input/output error")


def failing(errors: Sequence[BaseException | None], work: Callable[..., Any]) -> Callable[..., Any]:
    """The work, which raises one error after the other instead; None lets it be."""
    left = list(errors)

    def tried(*arguments: Any, **named: Any) -> Any:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return work(*arguments, **named)

    return tried


def written(error: BaseException | None = None) -> Callable[[Path], Future[str]]:
    """A folder written in the background, or what that failed of."""

    def save(path: Path) -> Future[str]:
        save_folder(path)
        future: Future[str] = Future()
        if error is None:
            digest = hashlib.sha256(b"0").hexdigest()
            future.set_result(f"{digest}  {name_of(path)}/meta.pt\n")
        else:
            future.set_exception(error)
        return future

    return save


BY_RANK = CheckpointException("write", {1: (FULL, None)})  # type: ignore[dict-item]


@pytest.mark.parametrize("error", [FULL, GONE, CheckpointException("no space left", {}), BY_RANK])
def test_a_save_that_fails_is_dropped_and_the_next_one_tried(tmp_path: Path, error: BaseException) -> None:
    saving = checkpointing(tmp_path, 2)
    trainer = fake_trainer(written())
    save_at(10, saving, trainer)
    before = {path.name for path in tmp_path.iterdir()}
    trainer.save_checkpoint = fake_trainer(written(error)).save_checkpoint
    save_at(15, saving, trainer)
    assert {path.name for path in tmp_path.iterdir()} == before  # nothing half stays
    trainer.save_checkpoint = fake_trainer(written()).save_checkpoint
    save_at(20, saving, trainer)
    assert steps(tmp_path) == ["step-00000010.ckpt", "step-00000020.ckpt"]
    assert trainer.loggers[0].of("checkpoint/failed") == [1]
    assert len(trainer.loggers[0].of("checkpoint/seconds")) == 2
    assert saving.save_seconds.longest >= saving.save_seconds.last > 0


def test_a_file_that_may_not_be_so_large_needs_no_more_space(tmp_path: Path) -> None:
    """`ulimit -f`, or a file system of another time: there is space."""
    saving = checkpointing(tmp_path, 2)
    trainer = fake_trainer(written(OSError(errno.EFBIG, os.strerror(errno.EFBIG))))
    trainer.max_steps = 11
    with refused(TemporaryError) as caught:
        save_at(11, saving, trainer)
    assert "ulimit -f" in str(caught.value.fix) and "space" not in str(caught.value.fix)


def test_after_too_many_in_a_row_the_run_ends_with_the_last_whole_one(tmp_path: Path) -> None:
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(written())
    save_at(10, saving, trainer)
    trainer.save_checkpoint = fake_trainer(written(FULL)).save_checkpoint
    save_at(15, saving, trainer)
    trainer.save_checkpoint = fake_trainer(written()).save_checkpoint
    save_at(20, saving, trainer)  # in between one succeeds
    trainer.save_checkpoint = fake_trainer(written(FULL)).save_checkpoint
    save_at(25, saving, trainer)
    save_at(26, saving, trainer)
    save_at(30, saving, trainer)
    with refused(TemporaryError, file="step-00000030.ckpt", got="No space left on device") as caught:
        save_at(31, saving, trainer)
    assert caught.value.exit_status == 75 and "step-00000020.ckpt" in str(caught.value.fix)
    assert steps(tmp_path) == ["step-00000010.ckpt", "step-00000020.ckpt"]


@pytest.mark.parametrize("stopping", [True, False])
def test_a_run_whose_last_save_fails_ends_so(tmp_path: Path, stopping: bool) -> None:
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(written(GONE))
    saving.stop.number = signal.SIGTERM if stopping else None
    trainer.max_steps = -1 if stopping else 11
    with refused(TemporaryError, file="step-00000011.ckpt"):
        save_at(11, saving, trainer)


def test_one_that_was_dropped_before_the_last_one_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writing: Future[str] = Future()
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(lambda path: save_folder(path) or writing)
    save_at(10, saving, trainer)
    writing.set_exception(GONE)
    trainer.save_checkpoint, trainer.max_steps = fake_trainer(written()).save_checkpoint, 11
    saving.on_train_batch_end(trainer, None)  # type: ignore[arg-type]
    save_at(11, saving, trainer)
    assert any("step-00000010.ckpt" in line for line in caplog.messages)
    assert steps(tmp_path) == ["step-00000011.ckpt"]


def test_a_failure_that_is_not_the_storages_ends_the_run(tmp_path: Path) -> None:
    saving, trainer = checkpointing(tmp_path, 2), fake_trainer(written(RuntimeError("Connection closed by peer")))
    with pytest.raises(RuntimeError):
        save_at(10, saving, trainer)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("place", "name"),
    [
        (torch, "save"),
        (os, "fsync"),
        (hashlib, "file_digest"),
        (own_files, "rename_new"),
        (complete, "rename_new"),
        (Path, "symlink_to"),
        (Path, "unlink"),
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_a_write_that_fails_once_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, sharded: bool
) -> None:
    def save(path: Path, storage_options: Writing) -> None:
        DirectCheckpointIO().save_checkpoint({"step": torch.zeros(9)}, path, storage_options)

    for attempt in range(12):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        saving, trainer = checkpointing(folder, 1), fake_trainer(written())
        if not sharded:
            trainer.save_checkpoint = save
        with monkeypatch.context() as patched:
            patched.setattr(place, name, failing([*[None] * attempt, GONE], getattr(place, name)))
            for step in 5, 10:
                save_at(step, saving, trainer)
        assert steps(folder) == ["step-00000010.ckpt"]
        check_digest(folder / "last.ckpt")
        assert not trainer.loggers[0].of("checkpoint/failed")
        assert not list(folder.glob(".*.partial"))


def always(*_: Any, **__: Any) -> Any:
    raise GONE


def test_a_link_that_cannot_be_made_loses_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "symlink_to", always)
    saving, trainer = checkpointing(tmp_path, 1), fake_trainer(save_file)
    for step in 5, 10:
        save_at(step, saving, trainer)
    assert steps(tmp_path) == ["step-00000010.ckpt"]
    assert not trainer.loggers[0].of("checkpoint/failed")


def test_old_ones_that_cannot_be_removed_end_no_run_and_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, trainer = checkpointing(tmp_path, 1), fake_trainer(save_file)
    save_at(5, saving, trainer)
    with monkeypatch.context() as patched:
        patched.setattr(complete, "rename_new", always)
        save_at(10, saving, trainer)
    assert steps(tmp_path) == ["step-00000005.ckpt", "step-00000010.ckpt"]
    save_at(15, saving, trainer)
    assert steps(tmp_path) == ["step-00000015.ckpt"]


def test_what_a_failed_attempt_has_written_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the system failed to force to the disk it may have forgotten: another attempt would find nothing wrong."""
    file, synced = tmp_path / "a.ckpt", []

    def sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        if len(synced) == 1:
            keep.append(os.dup(descriptor))  # else the next file may have its number
            raise GONE

    keep: list[int] = []
    monkeypatch.setattr(os, "fsync", sync)
    writing = Writing(RetryConfig(attempts=2, wait_s=0))
    DirectCheckpointIO().save_checkpoint({"a": 1}, file, writing)
    assert writing.written.exception() is None and synced[1] != synced[0]
    os.close(keep[0])


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fake_trainer(save_file)
    for step in 5, 10:
        save_at(step, checkpointing(tmp_path, 2), trainer)
    once = RetryConfig(attempts=2, wait_s=0)
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", failing([GONE], digest))
    assert complete.newest_complete(tmp_path, retry=once)[0].name == "step-00000010.ckpt"
    monkeypatch.setattr(hashlib, "file_digest", failing([GONE, GONE], digest))
    with refused(TemporaryError, file="step-00000010.ckpt"):
        complete.newest_complete(tmp_path, retry=once)
