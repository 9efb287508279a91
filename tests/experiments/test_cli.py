from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.cli import main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    for command in "train", "resume", "experiments", "import-tokens", "shards", "verify-golden":
        assert command in printed


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["train"], ["train", "debug", "--fast"], ["shards", "burn", "x"], ["train", "nothing"], ["resume"]],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("lumos: ") and captured.err.count("\n") == 1


def test_debug_shows_the_traceback() -> None:
    from lumos_pl.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["train", "nothing", "--debug"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_experiment_without_a_gpu_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "t2v_1b", "trainer.max_steps=10"]) == 2
    error = capsys.readouterr().err
    assert "t2v_1b needs a CUDA GPU" in error and "make train EXP=debug" in error


def test_experiments_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments"]) == 0
    printed = capsys.readouterr().out
    assert "t2v_3b_384p" in printed and "seconds on a CPU" in printed


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_shards_that_are_not_there(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["shards", "verify", str(tmp_path / folder)]) == 3
    assert main(["train", "real_tokens", f"data.root={tmp_path / folder}", f"run.dir={tmp_path}"]) == 3
    assert capsys.readouterr().err.count("\n") == 2


def test_help_does_not_wait_for_heavy_imports() -> None:
    code = "import sys; from experiments.cli import _parser; _parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
