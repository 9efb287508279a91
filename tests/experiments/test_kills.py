"""Runs killed with SIGKILL at random steps and resumed end with the weights of runs never killed.

pytest -m slow -s tests/experiments/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.conftest import SMALL, metrics, result

KILLS = 2  # of each kind of data and number of workers: 12 in all
STEPS = 40
SEED = 0


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors.decode()


def kill_at(process: subprocess.Popen[bytes], run: Path, step: int, delay: float) -> None:
    """SIGKILL the process and its data workers `delay` seconds after the run logged `step`."""
    while not (run / "metrics.jsonl").exists() or not any(record["step"] >= step for record in metrics(run)):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["image", "video", "joint"])
def test_killed_at_random_steps(kind: str, workers: int, tmp_path: Path) -> None:
    draw = random.Random(f"{SEED} {kind} {workers}")
    settings = [
        "train", "debug", *SMALL, f"run.dir={tmp_path}", f"trainer.max_steps={STEPS}", "checkpoint.every_n_steps=3",
        f"data.kind={kind}", f"data.num_workers={workers}", "trainer.val_every_n_steps=0",
    ]  # fmt: skip
    finish(start(*settings, "run.name=whole"))
    expected = result(tmp_path / "debug" / "whole")["weights_sha256"]
    for number in range(KILLS):
        run = tmp_path / "debug" / f"killed{number}"
        step = draw.randrange(STEPS - 1)
        kill_at(start(*settings, f"run.name={run.name}"), run, step, delay=draw.random() * 0.05)
        assert not (run / "result.json").exists()
        finish(start("resume", str(run)))
        print(f"{kind}, {workers} workers: killed at step {step}, equal: {result(run)['weights_sha256'] == expected}")
        assert result(run)["weights_sha256"] == expected
