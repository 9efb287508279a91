"""Runs, checkpoints and exports of before this version: they open, and go on as they would have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from experiments.config import plain
from experiments.read_config import saved_config
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.run_settings import RunSettings
from tests.experiments.conftest import metrics, result

MADE_BEFORE = Path(__file__).parents[1] / "made_before"
WHOLE = json.loads((MADE_BEFORE / "result.json").read_text())  # of the run, had it not been stopped at step 4 of 8


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE_BEFORE / "run", tmp_path / "debug" / "before", symlinks=True))


@pytest.mark.seconds
def test_a_run_of_before_goes_on(run: Path) -> None:
    """Bit for bit on a machine of the kind that made it; elsewhere as near as another processor computes."""
    assert main(["resume", str(run), "callbacks.progress_bar=false"]) == 0
    now = result(run)
    assert now["steps"] == WHOLE["steps"]
    assert now["loss"]["loss/train"] == pytest.approx(WHOLE["loss"]["loss/train"], rel=1e-4)
    for phase, frames in WHOLE["frame_loss"].items():
        for got, expected in zip(now["frame_loss"][phase]["frames"], frames["frames"], strict=True):
            assert got == (None if expected is None else pytest.approx(expected, rel=1e-4))
    assert sorted({line["step"] for line in metrics(run)}) == [1, 3, 5, 7]


def test_how_it_makes_clips_is_read_from_where_it_was_said_then(run: Path) -> None:
    saved = load_decoder(run)
    settings = RunSettings.read(saved.config, saved.file)
    assert (settings.sampling.guidance, settings.sampling.steps) == (3.0, 2)
    assert (settings.clip.width, settings.clip.height, settings.clip.frames) == (64, 64, 9)


def test_nothing_that_a_checkpoint_says_is_filled_in(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "told")
    saved = load_decoder(run)
    config = saved_config(saved.config | {"about": "${oc.env:SECRET}"}, saved.file)
    assert config.about == "${oc.env:SECRET}"
    assert saved_config(plain(config), saved.file) == config


def test_an_export_of_before_says_how_it_makes_clips() -> None:
    file = MADE_BEFORE / "config.json"
    settings = RunSettings.read(json.loads(file.read_text())["lumos"]["config"], file)
    assert (settings.sampling.guidance, settings.sampling.steps, settings.clip.frames) == (1.6, 6, 17)
    assert (settings.visual_tokenizer, settings.text_tokenizer) == ("embedded", "embedded")
