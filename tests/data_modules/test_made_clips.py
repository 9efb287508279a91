"""Clips that are made before a training reads them."""

from __future__ import annotations

import csv
from pathlib import Path

from data_modules.made_clips import make_clips
from lumos_pl.shape_world.clips import WorldClipsConfig


def captions(folder: Path) -> list[str]:
    with (folder / "captions.csv").open() as lines:
        return [row["caption"] for row in csv.DictReader(lines)]


def test_what_is_remembered_lies_apart_and_is_without_the_new_words(tmp_path: Path) -> None:
    world = WorldClipsConfig(
        folder=str(tmp_path), train=6, val=2, remembered=5, shapes=["circle", "bar"], new=["bar"], side=32, frames=5
    )
    make_clips(world, None)
    assert [len(captions(tmp_path / part)) for part in ("train", "val", "remembered")] == [6, 2, 5]
    assert all("bar" in caption for part in ("train", "val") for caption in captions(tmp_path / part))
    assert not any("bar" in caption for caption in captions(tmp_path / "remembered"))


def test_of_a_world_without_them_nothing_is_remembered(tmp_path: Path) -> None:
    make_clips(WorldClipsConfig(folder=str(tmp_path), train=2, val=1, side=32, frames=5), None)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"train", "val"}
