from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.read_config import load_experiment
from lumos_pl import LumosPipeline
from lumos_pl.checkpoints.named import EMBEDDED, resolve_latest, resolve_named, with_found_places
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.shape_world.fidelity import fidelity, fresh_scenes
from lumos_pl.world import build_world
from tests.refusals import refused


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_named(Path(EMBEDDED)).is_absolute()
    (tmp_path / EMBEDDED).mkdir()
    assert resolve_named(Path(EMBEDDED)) == Path(EMBEDDED)


def test_latest_is_the_newest_run_that_holds_what_is_meant(tmp_path: Path) -> None:
    for age, (name, file) in enumerate([("new", "other"), ("middle", "tokenizer.json"), ("old", "tokenizer.json")]):
        run = tmp_path / name
        run.mkdir()
        (run / "config.yaml").touch()
        (run / file).touch()
        os.utime(run / "config.yaml", (1000 - age, 1000 - age))
    for inside in "", "tokenizer.json", "a/b":
        found = resolve_latest(tmp_path / "latest" / inside, holding="tokenizer.json")
        assert found == tmp_path / "middle" / inside
    for holding in None, "nothing":
        with pytest.raises(ConfigError):
            resolve_latest(tmp_path / "latest", holding=holding)
    assert resolve_latest(tmp_path / "old", holding="nothing") == tmp_path / "old"
    (tmp_path / "latest").mkdir()
    assert resolve_latest(tmp_path / "latest", holding="tokenizer.json") == tmp_path / "latest"


def test_a_folder_of_runs_is_none_and_one_in_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo" / "first").mkdir(parents=True)
    (tmp_path / "demo" / "first" / "config.yaml").touch()
    with refused(CheckpointError, file=tmp_path / "demo") as found:
        LumosPipeline.load(tmp_path / "demo")
    assert str(tmp_path / "demo" / "latest") in str(found.value.fix)


def test_a_relative_path_is_found_from_the_nearest_folder_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    run = tmp_path / "project" / "runs" / "demo" / "one" / "config.yaml"
    for place in tmp_path, tmp_path / "project", tmp_path / "elsewhere":
        (place / "data").mkdir(parents=True)
    (tmp_path / "embedded").mkdir()
    there = str(tmp_path / "project" / "data")
    sources = {"a": {"root": "data"}, "b": {"root": "s3://bucket/data", "weight": 2}}
    config = {"init_from": "absent/x", "visual_tokenizer": "embedded", "data": {"root": "data/*", "sources": sources}}
    found = with_found_places(config, run)
    assert found["data"] == {"root": f"{there}/*", "sources": {**sources, "a": {"root": there}}}
    assert (found["init_from"], found["visual_tokenizer"]) == ("absent/x", "embedded")
    assert sources["a"] == {"root": "data"}
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert with_found_places(config, run) == config  # what is here comes first


def test_what_comes_with_the_project_is_small() -> None:
    files = list(resolve_named(Path(EMBEDDED)).iterdir())
    assert files and sum(file.stat().st_size for file in files) < 8_000_000


@pytest.mark.parametrize(
    ("experiment", "n"),
    [
        ("demo", 2),
        pytest.param("demo", 8, marks=pytest.mark.slow),
        pytest.param("demo_full", 8, marks=pytest.mark.slow),
    ],
)
def test_the_model_that_comes_with_the_project_obeys_captions(experiment: str, n: int) -> None:
    scenes = fresh_scenes(build_world(load_experiment(experiment).world), "val", n)
    clips = LumosPipeline.load().generate([scene.caption for scene in scenes], seed=0)
    assert fidelity(scenes, [clip.frames for clip in clips])["joint"] >= 0.75
