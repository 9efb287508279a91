from __future__ import annotations

from pathlib import Path

import pytest

from callbacks.caption_fidelity import fidelity, fresh_scenes
from data_modules.shape_world.scene import WorldConfig
from lumos_pl import LumosPipeline
from lumos_pl.checkpoints.named import EMBEDDED, resolve_named


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_named(Path(EMBEDDED)).is_absolute()
    (tmp_path / EMBEDDED).mkdir()
    assert resolve_named(Path(EMBEDDED)) == Path(EMBEDDED)


def test_what_comes_with_the_project_is_small() -> None:
    files = list(resolve_named(Path(EMBEDDED)).iterdir())
    assert files and sum(file.stat().st_size for file in files) < 8_000_000


def test_the_model_that_comes_with_the_project_obeys_captions() -> None:
    scenes = fresh_scenes(WorldConfig(), "val", 8)
    clips = LumosPipeline.load().generate([scene.caption for scene in scenes], seed=0)
    assert fidelity(scenes, [clip.frames for clip in clips])["joint"] >= 0.75
