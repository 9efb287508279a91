"""Where the extra `games` is not installed: its name is told, and what plays no game goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from examples.games.play import console
from examples.games.record import main
from experiments import cli
from experiments.study.cells import plan_cells
from experiments.study.config import load_study
from tests.refusals import told

HINT = "pip install 'lumos_pl[games]'"


@pytest.fixture(autouse=True)
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ale_py", "ale_py.roms":
        monkeypatch.setitem(sys.modules, name, None)
    console.cache_clear()  # where it is installed, a test before this one has played


def test_recording_names_the_extra(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--clips", "1"]) == 2
    assert HINT in told(capsys.readouterr().err)


def test_so_does_a_run_that_would_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "examples/games/games.yaml", f"run.dir={tmp_path}", f"world.folder={tmp_path / 'clips'}"]
    assert cli.main(words) == 2
    assert HINT in told(capsys.readouterr().err)


def test_a_study_of_games_is_planned_all_the_same(tmp_path: Path) -> None:
    assert len(plan_cells(load_study("another_world"), [f"run.dir={tmp_path}"])) == 6
