"""Jobs of SLURM that are warned before their time is up, put back into the queue, and started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.cli import main
from lumos_pl.checkpoints.complete import kept_checkpoints
from lumos_pl.module import LumosModule
from tests.experiments.conftest import SMALL, Train, metrics, result
from tests.refusals import told

Job = Callable[..., int]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: object) -> Job:
    """Runs `lumos train debug`, small, as a job of a cluster whose `scontrol` only notes what it is told."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\nexit ${{REFUSES:-0}}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)

    def run(number: int, *overrides: str, restarts: int = 0) -> int:
        for name, value in {"JOB_ID": number, "JOB_NAME": "lumos", "NTASKS": 1, "NTASKS_PER_NODE": 1}.items():
            monkeypatch.setenv(f"SLURM_{name}", str(value))
        for name in "PROCID", "LOCALID", "NODEID":
            monkeypatch.setenv(f"SLURM_{name}", "0")
        if restarts:
            monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
        return main(["train", "debug", f"run.dir={tmp_path / 'runs'}", *SMALL, *overrides])

    return run


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Send a signal to this process once, before the last of a step's batches."""
    step_of, sent = LumosModule.training_step, []

    def training_step(module: LumosModule, *arguments: object) -> object:
        if module.global_step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), number)
        return step_of(module, *arguments)  # type: ignore[arg-type]

    patch.setattr(LumosModule, "training_step", training_step)


@pytest.mark.seconds
def test_a_job_whose_time_is_up_is_requeued_and_goes_on(
    job: Job, trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained("whole")
    signal_at(2, signal.SIGUSR1, monkeypatch)
    with pytest.raises(SystemExit) as left:
        job(17)
    assert left.value.code == 128 + signal.SIGUSR1
    run = tmp_path / "runs" / "debug" / "slurm-17"
    assert kept_checkpoints(run / "checkpoints")[-1].name == "step-00000003.ckpt"
    assert not list(run.glob("hpc_ckpt*"))
    assert (tmp_path / "scontrol.log").read_text() == "requeue 17\n"

    assert job(17, restarts=1) == 0
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]
    assert sum("loss/train" in record for record in metrics(run)) <= 6  # none was trained twice


@pytest.mark.seconds
def test_a_requeued_job_finds_the_run_by_the_name_it_was_given(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_at(2, signal.SIGTERM, patch)  # a preemption: SLURM itself requeues
        with pytest.raises(SystemExit) as left:
            job(17, "run.name=mine")
    assert left.value.code == 143 and not (tmp_path / "scontrol.log").exists()
    assert job(17, "run.name=mine", restarts=1) == 0
    assert result(tmp_path / "runs" / "debug" / "mine")["steps"] == 6


@pytest.mark.seconds
def test_another_jobs_run_and_other_settings_are_refused(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["run.name=mine", "trainer.max_steps=1"]
    assert job(17, *short) == 0
    assert job(17, *short) == 0  # at its end
    capsys.readouterr()
    assert job(18, *short) == 2
    assert told(capsys.readouterr().err)[1].endswith("/mine")
    assert job(17, *short, "seed=7") == 2
    assert told(capsys.readouterr().err)[2:4] == ["seed", "got 7, expected 0"]


def test_it_is_said_when_a_job_cannot_be_requeued(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signal_at(0, signal.SIGUSR1, monkeypatch)
    monkeypatch.setenv("REFUSES", "1")
    with pytest.raises(SystemExit):
        job(17)
    assert "lumos: the job cannot be requeued | job 17" in capsys.readouterr().err
