"""Samples of the model that is tuned: which they are, that they are drawn once, how they are mixed with the data."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from data_modules.config import MixtureSource
from data_modules.shards.folders import FolderShards
from data_modules.shards.manifest import Manifest
from experiments.cli import main
from experiments.config import ExperimentConfig
from experiments.prior import PriorConfig, draw_prior, with_prior
from experiments.read_config import load_experiment
from experiments.sample import run as sampling
from lumos_pl.errors import ConfigError, DataError
from tests.experiments.conftest import codes, result, train_small
from tests.refusals import refused, told
from tests.tiny_checkpoint import write_checkpoint

CAPTIONS = ["a red circle", "a green square", "a blue triangle"]
FORMAT = [
    "clip.width=32",
    "clip.height=32",
    "clip.frames=9",
    "clip.fps=8",
    "sampling.steps=2",
    "visual_tokenizer=embedded",
]
CHANGING = {"a": MixtureSource(root="a", weight=[[0, 1], [9, 2]])}


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    """A run that keeps two samples of each caption, which are drawn."""
    folder = tmp_path_factory.mktemp("prior")
    base = write_checkpoint(folder / "base.ckpt")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    words = [f"init_from={base}", f"prior.captions={folder / 'captions.txt'}", f"prior.folder={folder / 'drawn'}"]
    more = ["prior.share=0.25", "prior.samples_per_caption=2", "data.kind=video"]
    config = cast(ExperimentConfig, load_experiment("debug", [*FORMAT, *words, *more]))
    draw_prior(config)
    return config


def shards(config: ExperimentConfig) -> Path:
    return Path(config.prior.folder) / "shards" / "videos"


def read_whole(folder: Path) -> FolderShards:
    return FolderShards(folder=folder, manifest=Manifest.load(folder))


@pytest.mark.seconds
def test_the_shards_hold_what_was_drawn(asked: ExperimentConfig) -> None:
    drawn, read = codes(Path(asked.prior.folder)), read_whole(shards(asked))
    samples = read.read(0)
    assert [sample.key for sample in samples] == list(drawn)
    assert [sample.text for sample in samples] == [caption for caption in CAPTIONS for _ in range(2)]
    assert all(np.array_equal(sample.codes, drawn[sample.key]) for sample in samples)
    assert {sample.codes.shape for sample in samples} == {(3, 4, 4)}


def test_they_are_drawn_once_and_a_kill_costs_what_was_not_done(
    asked: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    make = sampling.make_clips
    monkeypatch.setattr(sampling, "make_clips", lambda *args, **more: made.append(make(*args, **more)) or made[-1])
    draw_prior(asked)
    assert made == []
    again = replace(asked, prior=replace(asked.prior, folder=str(tmp_path / "again")))
    shutil.copytree(asked.prior.folder, tmp_path / "again")
    shutil.rmtree(shards(again))
    (tmp_path / "again" / "records" / "00001-1.json").unlink()
    draw_prior(again)
    assert made == [1]
    files = [file.name for file in shards(asked).iterdir()]
    assert all((shards(again) / name).read_bytes() == (shards(asked) / name).read_bytes() for name in files)


def test_others_are_refused(asked: ExperimentConfig, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other.ckpt", seed=3)
    with refused(DataError, where="init_from", file=asked.prior.folder):
        draw_prior(replace(asked, init_from=str(other)))
    with refused(DataError, where="prior.seed", got=7, expected=0):
        draw_prior(replace(asked, prior=replace(asked.prior, seed=7)))


def test_its_share_of_the_steps_is_theirs(asked: ExperimentConfig) -> None:
    alone = with_prior(replace(asked, data=replace(asked.data, root="mine", val_root="its")))
    assert alone.data.shares(100) == {"video": 0.75, "prior": 0.25}
    assert alone.data.named("video").root == "mine" and alone.data.named("video").val_root == "its"
    assert with_prior(alone) == alone
    held = with_prior(replace(asked, data=replace(asked.data, root="mine", val_root=None, val_share=0.1)))
    assert held.data.named("video").held_out == 0.1 and held.data.named("prior").held_out is None
    chosen = with_prior(replace(asked, data=replace(asked.data, root="mine", val_root=None, where="score > 5")))
    assert {one.name: one.where for one in chosen.data.all_sources} == {"video": "score > 5", "prior": None}
    two = {"a": MixtureSource(root="a", weight=3), "b": MixtureSource(root="b", kind="image", weight=3)}
    mixed = with_prior(replace(asked, data=replace(asked.data, root=None, val_root=None, sources=two)))
    assert {name: source.weight for name, source in mixed.data.sources.items()} == {"a": 3, "b": 3, "prior": 2}


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"init_from": None}, "init_from"),
        ({"kind": "joint"}, "data.kind"),
        ({"captions": ["short"]}, "data.captions"),
        (
            {"root": None, "val_root": None, "sources": {"a": MixtureSource(root="a", weight=[[0, 1], [9, 2]])}},
            "data.sources",
        ),
    ],
)
def test_what_cannot_be_mixed_is_named(asked: ExperimentConfig, changes: dict[str, Any], where: str) -> None:
    own = {name: value for name, value in changes.items() if name != "init_from"}
    config = replace(asked, data=replace(asked.data, **own), **({"init_from": None} if "init_from" in changes else {}))
    with refused(ConfigError, where=where):
        with_prior(config)


def test_a_share_needs_captions() -> None:
    with refused(ConfigError, where="prior.captions"):
        PriorConfig(share=0.5)


@pytest.mark.slow
def test_a_run_goes_on_without_the_list(asked: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    words = [
        f"init_from={asked.init_from}",
        f"data.root={shards(asked)}",
        "data.val_root=null",
        "layout.codebook_size=1000",
    ]
    own = [f"prior.captions={tmp_path / 'captions.txt'}", f"prior.folder={tmp_path / 'drawn'}", "prior.share=0.5"]
    few = [
        "layout.codebook_size=1000",
        "trainer.max_steps=4",
        "trainer.val_every_n_steps=0",
        "loggers=[]",
        "data.kind=video",
    ]
    run = train_small(tmp_path, "kept", *FORMAT, *words, *own, *few)
    expected = result(run)
    (tmp_path / "captions.txt").unlink()
    for file in (run / "checkpoints").glob("*4.ckpt"):
        file.unlink()
    (run / "result.json").unlink()
    assert main(["resume", str(run)]) == 0
    assert result(run)["weights_sha256"] == expected["weights_sha256"]


def test_nothing_is_drawn_for_data_that_are_not_there(asked: ExperimentConfig, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("\n".join(CAPTIONS))
    own = [f"prior.captions={tmp_path / 'captions.txt'}", f"prior.folder={tmp_path / 'drawn'}", "prior.share=0.5"]
    words = [f"init_from={asked.init_from}", "data.val_root=null", "layout.codebook_size=1000", "data.kind=video"]
    lacking = [f"data.root={tmp_path / 'nowhere'}", "trainer.val_every_n_steps=0"]
    train_small(tmp_path, "none", *FORMAT, *words, *own, *lacking, status=DataError.exit_status)
    assert not list((tmp_path / "drawn").glob("*.mp4"))


def test_shards_of_a_part_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "a", "--shards", str(tmp_path / "shards"), "--shard", "0/2"]
    assert main(["sample", *words]) == ConfigError.exit_status
    assert told(capsys.readouterr().err)[1:3] == ["--shards", "got --shard 0/2"]
