"""A run whose machine is lost with its disk goes on from the object store that its checkpoints are copied to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from tests.experiments.conftest import SMALL, Train, metrics, result
from tests.refusals import told


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss/train"]) for line in metrics(run) if "loss/train" in line]


@pytest.mark.seconds
def test_a_new_machine_goes_on_bit_for_bit(
    trained: Train, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, store = trained("whole"), tmp_path / "store"
    run = train("one", f"checkpoint.upload=file://{store}")
    there = store / run.parent.name / run.name / "checkpoints"
    assert {file.name for file in there.glob("*.sha256")} == {f"step-0000000{n}.ckpt.sha256" for n in (2, 4, 6)}
    shutil.rmtree(run)
    (there / "step-00000006.ckpt.sha256").unlink()  # the machine was lost before it was whole
    again = ["train", run.parent.name, f"run.dir={run.parent.parent}", f"run.name={run.name}", *SMALL]
    capsys.readouterr()
    assert main([*again, f"checkpoint.upload=file://{store}", "--resume-or-start"]) == 0
    assert "step-00000004.ckpt" in capsys.readouterr().out
    assert result(run)["weights_sha256"] == result(whole)["weights_sha256"]
    assert losses(run) == losses(whole)
    assert (there / "step-00000006.ckpt.sha256").is_file()
    assert main([*again, f"checkpoint.upload=file://{store}", "--resume-or-start"]) == 0  # it is over


@pytest.mark.seconds
def test_another_run_of_the_name_is_told_before_the_first_step(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("one", f"checkpoint.upload=file://{tmp_path}/store")
    shutil.rmtree(run)
    capsys.readouterr()
    train("one", f"checkpoint.upload=file://{tmp_path}/store", status=2)
    assert told(capsys.readouterr().err)[2] == "checkpoint.upload"
    assert not list((run / "checkpoints").glob("step-*"))
