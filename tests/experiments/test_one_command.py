"""`lumos train EXP run.name=x --resume-or-start`, repeated by a scheduler, from any moment of any earlier attempt."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from experiments.run_folder import NAME_VARIABLE, RunFolder
from lumos_pl.checkpoints.complete import kept_checkpoints
from lumos_pl.checkpoints.remote import Upload
from lumos_pl.errors import CheckpointError, ConfigError, TemporaryError
from lumos_pl.machinery.attempts import read_attempts
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.store import Store
from lumos_pl.module import LumosModule
from tests.experiments.conftest import SMALL, Train, metrics, result
from tests.refusals import told

ONE_COMMAND = "--resume-or-start"


@pytest.fixture
def again(train: Train) -> Train:
    """The one command, for the run `one`."""
    return partial(train, "one", ONE_COMMAND)


def without_result(run: Path) -> None:
    (run / "result.json").unlink()


def before_the_config(run: Path) -> None:
    shutil.rmtree(run)
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.lock").write_text("4194304000")


def amid_the_config(run: Path) -> None:
    before_the_config(run)
    partial_of(run / "config.yaml").write_text("seed")


def before_the_first_checkpoint(run: Path) -> None:
    without_result(run)
    shutil.rmtree(run / "checkpoints")


def amid_a_save(run: Path) -> None:
    without_result(run)
    newest = kept_checkpoints(run / "checkpoints")[-1]
    newest.rename(partial_of(newest))


def with_a_damaged_one(run: Path) -> None:
    without_result(run)
    kept_checkpoints(run / "checkpoints")[-1].write_bytes(b"")


def with_a_torn_account(run: Path) -> None:
    without_result(run)
    with (run / "attempts.jsonl").open("a") as file:
        file.write('{"event": "st')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')


def with_another_config(run: Path) -> None:
    without_result(run)
    (run / "config.yaml").write_text("seed: [")


@pytest.mark.parametrize(
    "moment",
    [
        without_result,
        before_the_config,
        amid_the_config,
        before_the_first_checkpoint,
        amid_a_save,
        with_a_damaged_one,
        with_a_torn_account,
        with_another_config,
    ],
)
def test_it_goes_on_from_any_moment(moment: Callable[[Path], None], trained: Train, again: Train) -> None:
    whole, run = trained("whole"), trained("one")
    moment(run)
    assert again() == run
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]
    assert [line["step"] for line in metrics(run) if "loss/train" in line] == list(range(6))
    assert not list(run.rglob("*.partial"))
    for line in (run / "attempts.jsonl").read_text().splitlines():
        json.loads(line)


def test_it_starts_and_leaves_what_is_over_as_it_is(
    again: Train, no_training: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = again()
    no_training()
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.name != "run.lock"}
    again("data.num_workers=1", "trainer.rank_timeout_s=7", "callbacks.log_every_n_steps=3")
    for checkpoint in kept_checkpoints(run / "checkpoints"):  # moved away, the run is over all the same
        checkpoint.rename(checkpoint.with_suffix(".moved"))
    again()
    assert {file: file.stat().st_mtime_ns for file in before if file.exists() and file.is_file()}.items() <= (
        before.items()
    )
    capsys.readouterr()
    again("seed=7", status=ConfigError.exit_status)
    assert told(capsys.readouterr().err)[2:4] == ["seed", "got 7, expected 0"]


def test_what_a_resume_refuses_is_refused(trained: Train, again: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one")
    without_result(run)
    capsys.readouterr()
    again("data.caption_dropout=0.2", status=CheckpointError.exit_status)
    assert told(capsys.readouterr().err)[2] == "data.caption_dropout"


def test_what_a_resume_says_is_said(again: Train) -> None:
    run = again("trainer.max_steps=2")
    again("trainer.max_steps=3", "optimizer.lr=1e-9")
    assert "optimizer.lr" in (run / "changes.jsonl").read_text()


def test_two_at_once_are_one(trained: Train, again: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained("one")
    without_result(run)
    before = read_attempts(run)
    with RunFolder(run).lock(rank=0):
        again(status=TemporaryError.exit_status)
    assert told(capsys.readouterr().err)[1:3] == [str(run), f"got pid {os.getpid()}"]
    assert read_attempts(run) == before


def test_a_run_without_a_name_cannot_be_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(NAME_VARIABLE, raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["train", "debug", *SMALL, ONE_COMMAND, f"run.dir={tmp_path}"]) == 2
    assert told(capsys.readouterr().err)[1] == "run.name"
    assert not list(tmp_path.iterdir())


@pytest.mark.seconds
def test_every_attempt_is_written_down(again: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    step_of = LumosModule.training_step

    def step(module: LumosModule, *arguments: Any) -> object:
        if module.global_step == 3:
            raise TemporaryError("the storage went away")
        return step_of(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LumosModule, "training_step", step)
        run = again(status=TemporaryError.exit_status)
    again()
    events = [{name: event[name] for name in event if name != "time"} for event in read_attempts(run)]
    here = {"ranks": 1, "host": os.uname().nodename, "pid": os.getpid()}
    assert events == [
        {"event": "start", "step": 0, **here},
        {"event": "end", "step": 3, "status": 75, "line": "the storage went away"},
        {"event": "start", "step": 2, **here},
        {"event": "end", "step": 6, "status": 0, "line": ""},
    ]


def test_an_account_of_anothers_is_kept(again: Train, trained: Train) -> None:
    run = trained("one")
    without_result(run)
    (run / "attempts.jsonl").write_text("my notes\n")
    again()
    assert (run / "attempts.kept-1.jsonl").read_text() == "my notes\n"
    assert [event["event"] for event in read_attempts(run)] == ["start", "end"]


@pytest.mark.seconds
def test_a_new_machine_goes_on_from_the_object_store(
    trained: Train, again: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started from is on the old machine, too."""
    source = trained("source") / "checkpoints" / "last.ckpt"
    settings = [f"init_from={source}", f"checkpoint.upload=file://{tmp_path}/store", "checkpoint.keep=1"]
    step_of = LumosModule.training_step

    def step(module: LumosModule, *arguments: Any) -> object:
        if module.global_step == 5:
            raise TemporaryError("the node goes away")
        return step_of(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(LumosModule, "training_step", step)
        run = again(*settings, status=TemporaryError.exit_status)
    whole = result(again(*settings))["weights_sha256"]  # on the old machine
    shutil.rmtree(tmp_path / "store" / "debug" / "one")
    shutil.rmtree(run)
    with monkeypatch.context() as patch:
        patch.setattr(LumosModule, "training_step", step)
        again(*settings, status=TemporaryError.exit_status)
    shutil.rmtree(tmp_path / "runs")
    assert again(*settings) == run
    assert result(run)["weights_sha256"] == whole
    assert [line["step"] for line in metrics(run) if "loss/train" in line] == list(range(6))
    assert [event["step"] for event in read_attempts(run) if event["event"] == "start"][-1] == 4


def test_a_run_that_fails_has_its_last_checkpoint_copied_first(
    again: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store takes it only once the end of the run waits for that, and nothing is copied after the run."""
    waited_for, step_of, send, finish = threading.Event(), LumosModule.training_step, Store.send, Upload.finish

    def step(module: LumosModule, *arguments: Any) -> object:
        if module.global_step == 5:
            raise TemporaryError("the node goes away")
        return step_of(module, *arguments)

    def send_late(store: Store, *what: Any) -> None:
        assert waited_for.wait(10)
        send(store, *what)

    def wait(upload: Upload, within_s: float) -> None:
        waited_for.set()
        finish(upload, within_s)

    with monkeypatch.context() as patch:
        patch.setattr(LumosModule, "training_step", step)
        patch.setattr(Store, "send", send_late)
        patch.setattr(Upload, "finish", wait)
        again(f"checkpoint.upload=file://{tmp_path}/store", status=TemporaryError.exit_status)
        there = tmp_path / "store" / "debug" / "one" / "checkpoints"
        assert "step-00000004.ckpt.sha256" in {file.name for file in there.iterdir()}
