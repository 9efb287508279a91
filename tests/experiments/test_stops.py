"""Signals at any moment of a run: it leaves soon, with the last step that was over, and goes on as if it never had."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from lumos_pl.checkpoints.complete import kept_checkpoints, step_of
from lumos_pl.machinery.stop_request import SIGNALS
from lumos_pl.module import LumosModule
from tests.experiments.conftest import Train, metrics, result
from tests.refusals import told

UNSAVED = "checkpoint.every_n_steps=0"


def signal_before(
    kind: type,
    method: str,
    when: Callable[[Any], bool],
    patch: pytest.MonkeyPatch,
    number: signal.Signals = signal.SIGTERM,
) -> list[int]:
    """Have a signal come before a method is called, once; the steps that were over whenever it was called."""
    original, called = getattr(kind, method), list[int]()

    def step(module: Any, *arguments: Any, **named: Any) -> Any:
        called.append(getattr(module, "global_step", 0))
        if when(called):
            os.kill(os.getpid(), number)
        return original(module, *arguments, **named)

    patch.setattr(kind, method, step)
    return called


def stuck(kind: type, method: str, patch: pytest.MonkeyPatch, *, at: int) -> None:
    """Have SIGTERM come in a call of a method that then goes on for ever, unless it is broken off."""
    original, calls = getattr(kind, method), count(1)

    def step(*arguments: Any, **named: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(60)
        return original(*arguments, **named)

    patch.setattr(kind, method, step)


def stopped(train: Train, *settings: str, by: signal.Signals = signal.SIGTERM) -> Path:
    """A run that left on a signal."""
    folder: list[Path] = []
    with pytest.raises(SystemExit) as left:
        folder.append(train("stopped", *settings))
    assert left.value.code == 128 + by
    return folder[0] if folder else Path()


def test_a_stop_says_what_is_saved_and_what_goes_on(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_before(LumosModule, "training_step", lambda called: len(called) == 3, monkeypatch)
    stopped(train, "trainer.max_steps=9", UNSAVED)
    what, folder, fix = told(capsys.readouterr().err)
    (saved,) = kept_checkpoints(Path(folder) / "checkpoints")
    assert str(step_of(saved)) in what
    command = shlex.split(fix.split("`")[1])
    assert command == ["lumos", "resume", folder]
    with pytest.raises(SystemExit):
        signal_before(LumosModule, "training_step", lambda called: len(called) == 2, monkeypatch)
        main(command[1:])
    assert told(capsys.readouterr().err)[1] == folder
    assert step_of(kept_checkpoints(Path(folder) / "checkpoints")[-1]) > step_of(saved)


@pytest.mark.parametrize(("dry", "n_parts"), [([], 3), (["trainer.fast_dev_run=true"], 1)])
def test_a_stop_before_anything_is_written_says_so(
    dry: list[str], n_parts: int, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As while a run's clips are made, or its data opened, which may take minutes."""
    monkeypatch.setattr("experiments.train.assemble", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    stopped(train, *dry)
    said = told(capsys.readouterr().err)
    assert len(said) == n_parts and not any("resume" in part for part in said)  # there is no run that would go on


@pytest.mark.seconds
@pytest.mark.parametrize("number", SIGNALS)
def test_however_a_scheduler_warns_the_step_is_saved(
    number: signal.Signals, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some warn the whole group, and the data worker goes on as long as the run needs it."""
    ignored = tmp_path / "ignored"

    def note(sample: Any) -> None:
        status = Path("/proc/self/status").read_text()
        ignored.write_text(status.partition("SigIgn:")[2].split()[0])

    monkeypatch.setattr("data_modules.stream.loader.end_with_parent", note)  # which a worker begins with
    signal_before(LumosModule, "training_step", lambda called: len(called) == 3, monkeypatch, number)
    stopped(train, "trainer.max_steps=9", UNSAVED, "data.num_workers=1", by=number)
    assert steps_saved(tmp_path / "runs" / "debug" / "stopped")
    assert int(ignored.read_text(), 16) >> (number - 1) & 1


def steps_saved(run: Path) -> list[str]:
    return [checkpoint.name for checkpoint in kept_checkpoints(run / "checkpoints")]


def same(run: Path, whole: Path) -> None:
    """Both ended alike, with the same figures, each once."""
    for key in "steps", "loss", "frame_loss", "weights_sha256":
        assert result(run)[key] == result(whole)[key]
    plain = [
        sorted(
            (record["step"], name, value)
            for record in metrics(of)
            for name, value in record.items()
            if not name.startswith(("step", "throughput", "epoch", "checkpoint/", "step_time", "data_wait", "restarts"))
        )
        for of in (run, whole)
    ]
    assert plain[0] == plain[1]


@pytest.mark.seconds
def test_a_validation_is_cut_short_and_done_again(
    train: Train, trained: Train, tmp_path: Path, handlers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("whole", UNSAVED)
    run = tmp_path / "runs" / "debug" / "stopped"
    with monkeypatch.context() as patch:
        validated = signal_before(LumosModule, "validation_step", lambda called: len(called) == 1, patch)
        stopped(train, UNSAVED)
    assert validated == [4]  # no other batch
    assert steps_saved(run) == ["step-00000004.ckpt"]
    assert not any("loss/val" in record for record in metrics(run))
    assert main(["resume", str(run)]) == 0
    same(run, whole)


@pytest.mark.seconds
@pytest.mark.parametrize("stuck_in", ["a batch", "the data"])
def test_a_step_that_outlasts_half_of_the_grace_is_dropped(
    stuck_in: str, train: Train, trained: Train, tmp_path: Path, handlers: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the step before is saved, which nothing has changed since."""
    whole = trained("whole", UNSAVED)
    run = tmp_path / "runs" / "debug" / "stopped"
    with monkeypatch.context() as patch:
        if stuck_in == "a batch":
            stuck(LumosModule, "training_step", patch, at=10)  # the second one of step 5
        else:
            stuck(LumosModule, "on_before_batch_transfer", patch, at=12)
        stopped(train, UNSAVED, "trainer.grace_s=0.3")
    assert steps_saved(run) == ["step-00000004.ckpt"]
    assert main(["resume", str(run)]) == 0
    same(run, whole)
