"""`lumos study` from the command line, with real runs in processes of their own."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest

from experiments.cli import main
from experiments.evaluation.evaluate import evaluate
from experiments.study import cell as module
from experiments.study.cell import run_cell
from experiments.study.cells import Cell, plan_cells
from experiments.study.collect import read_curves
from experiments.study.config import load_study
from experiments.study.run import last_step
from lumos_pl.errors import ConfigError, DataError
from tests.experiments.study.toy import plan_toy, pretend, write_toy
from tests.processes import fork
from tests.refusals import refused, told


class ForkedPopen:
    """A process that a study starts, forked from one that has imported all that it needs."""

    def __init__(self, command: list[str], *, stdin: int, stdout: IO[bytes], stderr: int, env: dict[str, str]) -> None:
        _, is_module, name, *arguments = command
        assert (is_module, stdin, stderr) == ("-m", subprocess.PIPE, subprocess.STDOUT)
        self._forked = fork(Path(stdout.name), env, run_module, name, arguments)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.returncode = self._forked.wait()
        return self.returncode

    poll = wait

    def communicate(self) -> None:
        self.wait()


def run_module(name: str, arguments: list[str]) -> None:
    ours, _ = os.pipe()  # which stays open, as the study's to its cells does
    os.dup2(ours, 0)
    sys.exit(import_module(name).main(*arguments))


@pytest.mark.seconds
def test_a_failed_cell_loses_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is done is not done again."""
    monkeypatch.setattr(
        "experiments.study.run.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": ForkedPopen})
    )
    grid = {"data": {"nowhere": [f"data.root={tmp_path / 'nowhere'}"], "made up": []}}
    command = ["study", write_toy(tmp_path, grid=grid, seeds=[0]), f"run.dir={tmp_path / 'runs'}"]
    assert main(command) == 3
    printed = capsys.readouterr()
    first, *last = printed.out.splitlines()
    assert "spread" in first  # a measure that is none is told while the others run
    assert any("1 of 2 cells done" in line for line in last)
    assert "nowhere-seed0" in told(printed.err)[0]
    folder = tmp_path / "runs" / "studies" / "toy"
    assert (folder / "report.html").exists()
    lines = (folder / "results.csv").read_text().splitlines()
    assert lines[1] == "nowhere,0,failed,," and lines[2].startswith("made up,0,done,")

    done = folder / "made_up-seed0" / "result.json"
    before = done.stat().st_mtime_ns
    assert main([*command, "--only", "made_up-seed0"]) == 0
    assert done.stat().st_mtime_ns == before


@pytest.mark.seconds
def test_a_cell_is_evaluated_as_lumos_eval_does(tmp_path: Path) -> None:
    """With clips to look at; what is done is not done again, what is missing is."""
    changes: dict[str, Any] = {
        "base": "demo",
        "overrides": [
            f"world.folder={tmp_path / 'clips'}",
            "world.train=4",
            "world.val=2",
            "world.side=32",
            "world.frames=5",
            "data.video.batch_size=2",
            "model.size=debug",
            "trainer.max_steps=1",
            "trainer.precision=32-true",
            "optimizer.ema_decay=0.9",
            "trainer.val_every_n_steps=0",
        ],
        "grid": {},
        "seeds": [0],
        "sampling": {"steps": [1, 2]},
        "evals": {
            "eval": {"only": ["loss", "fidelity"], "clips": 2, "captions": 2, "mask_ratios": [0.5]},
            "average": {"only": ["fidelity"], "captions": 2, "weights": "ema"},
        },
        "measures": {"joint": "eval.fidelity/heldout/joint", "seconds": "eval.fidelity/clip/seconds"},
    }
    _, (cell,) = plan_toy(tmp_path, **changes)
    run_cell(cell)
    assert cell.is_done()
    first, second, averaged, _ = cell.evaluations
    assert [json.loads(e.file.read_text())["sampling"]["steps"] for e in cell.evaluations] == [1, 2, 1, 2]
    assert first.clips_file.read_bytes() != averaged.clips_file.read_bytes()
    apart = replace(first.settings, out=tmp_path / "apart")
    assert evaluate(cell.folder.path, apart)["measures"] == json.loads(first.file.read_text())["measures"]
    with np.load(second.clips_file) as clips:
        assert clips["frames"].shape == (4, 2, 32, 32, 3)
    second.file.unlink()
    before = first.file.stat().st_mtime_ns
    run_cell(cell)
    assert cell.is_done() and first.file.stat().st_mtime_ns == before


def test_a_cell_fails_as_every_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cell: Cell) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "eval.json")

    monkeypatch.setattr(threading.Thread, "start", lambda self: None)  # which waits for the end of a parent
    monkeypatch.setattr(module, "run_cell", refuse)
    _, cells = plan_toy(tmp_path)
    words = [str(tmp_path / "toy.yaml"), cells[0].name, f"run.dir={tmp_path / 'runs'}"]
    assert module.main(*words) == 3
    assert told(capsys.readouterr().err)[1:3] == ["eval.json", "got No space left on device"]
    with pytest.raises(OSError):
        module.main(*words, "--debug")


def test_a_training_that_another_study_has_finished_is_taken_over(tmp_path: Path) -> None:
    """And none with other settings, of a study that is not named, or that has not ended."""
    _, (tube, random) = plan_toy(tmp_path, seeds=[0])
    run_cell(tube)
    random.begin()
    again = Path(write_toy(tmp_path, seeds=[0, 1], reuse=["toy"])).rename(tmp_path / "again.yaml")
    cells = plan_cells(load_study(str(again)), [f"run.dir={tmp_path / 'runs'}"])
    taken = cells[0]
    assert [cell.take_over() for cell in cells] == [tube.folder.path, None, None, None]

    shutil.rmtree(tube.folder.path)
    run_cell(taken)
    assert taken.is_done() and list(taken.folder.path.glob("events.out.*"))
    tube.take_over()
    assert not tube.is_trained()
    with refused(ConfigError, where="reuse", got="toys"):
        plan_toy(tmp_path, reuse=["toys"])


def start(folder: Path, study: str, *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.cli", "study", study, f"run.dir={folder}", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def stop_at(process: subprocess.Popen[bytes], metrics: Path, step: int, number: int) -> int:
    while last_step(metrics) < step:
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.02)
    os.kill(process.pid, number)
    return process.wait(120)


@pytest.mark.slow
def test_killed_twice_and_resumed_the_results_are_the_same(tmp_path: Path) -> None:
    """Once told to stop, in the first cell; once killed outright, in the second, whose process then ends by itself.

    And the same as of cells side by side.
    """
    evals = {"eval": {"only": ["loss"], "clips": 4, "mask_ratios": [0.5]}}
    measures = {"loss": "metrics.loss/train", "on common ground": "eval.loss/tube_0.5/loss"}
    study = write_toy(tmp_path, seeds=[3], evals=evals, measures=measures)
    study_text = Path(study).read_text().replace("trainer.max_steps=6", "trainer.max_steps=60")
    Path(study).write_text(study_text)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole, study, "--jobs", "2").wait(300) == 0
    results = cut / "studies" / "toy"
    assert stop_at(start(cut, study), results / "tube-seed3" / "metrics.jsonl", 7, signal.SIGTERM) == 143
    assert not (results / "tube-seed3" / "result.json").exists()
    assert stop_at(start(cut, study), results / "random-seed3" / "metrics.jsonl", 5, signal.SIGKILL) == -9
    assert not (results / "random-seed3" / "result.json").exists()
    assert start(cut, study).wait(300) == 0
    name = Path("studies") / "toy" / "results.csv"
    assert (cut / name).read_text() == (whole / name).read_text()
    assert all(line.split(",")[-1] for line in (whole / name).read_text().splitlines())


def test_slurm_gets_what_is_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, cells = plan_toy(tmp_path)
    pretend(cells[1], [1.0])
    command = ["study", str(tmp_path / "toy.yaml"), f"run.dir={tmp_path / 'runs'}"]
    assert main([*command, "--slurm"]) == 0
    script = capsys.readouterr().out
    assert "--array=0-2" in script and "cells=(tube-seed0 random-seed0 random-seed1)" in script
    assert f'lumos {shlex.join(command)} --only "${{cells[$SLURM_ARRAY_TASK_ID]}}"' in script
    assert not (tmp_path / "runs" / "studies" / "toy" / "tube-seed0").exists()
    assert main([*command, "--only", "tube"]) == 2
    for cell in cells:
        pretend(cell, [1.0])
    capsys.readouterr()
    assert main([*command, "--slurm"]) == 2
    assert shlex.join(["lumos", *command]) in capsys.readouterr().err


def test_the_step_is_read_off_a_file_that_is_being_written(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_step(file) == 0
    file.write_text('{"step": 0, "a": 1}\n{"step": 1, "a": 2}\n{"step": 2, "')
    assert last_step(file) == 2
    assert read_curves(file) == {"a": [(1, 1), (2, 2)]}
    file.write_text('{"step": 0, "a": 1}\n[1]\n7\n{"step": "1"}\n{"a": 1}\n')
    assert last_step(file) == 1
    with refused(DataError, file=file, where="line 2"):
        read_curves(file)
