from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.shape_world.clips import WorldClipsConfig, write_clips
from lumos_pl.shape_world.render import render
from lumos_pl.shape_world.scene import WorldConfig, draw_scene
from tests.refusals import refused
from tests.shape_world.media import decode

WORLD = WorldConfig(frames=5, side=32)


def test_clips_are_the_scenes_with_their_captions(tmp_path: Path) -> None:
    listed = write_clips(tmp_path / "a", WORLD, split="val", count=3)
    rows = list(csv.DictReader(listed.open()))
    assert [row["path"] for row in rows] == ["val-000000.mp4", "val-000001.mp4", "val-000002.mp4"]
    for number, row in enumerate(rows):
        scene = draw_scene(WORLD, seed=0, split="val", number=number)
        frames = decode((tmp_path / "a" / row["path"]).read_bytes())
        assert row["caption"] == scene.caption and frames.shape == (5, 32, 32, 3)
        assert np.abs(frames.astype(int) - render(scene, WORLD)).mean() < 6


def test_same_bytes_every_time_and_nothing_is_made_twice(tmp_path: Path) -> None:
    for name in "a", "b":
        write_clips(tmp_path / name, WORLD, split="train", count=2)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    (tmp_path / "a" / "train-000001.mp4").unlink()
    write_clips(tmp_path / "a", WORLD, split="train", count=2)
    assert not (tmp_path / "a" / "train-000001.mp4").exists()  # the list says that they are complete
    (tmp_path / "a" / "captions.csv").unlink()
    write_clips(tmp_path / "a", WORLD, split="train", count=2)
    assert (tmp_path / "a" / "train-000001.mp4").exists()


def test_files_of_the_users_among_the_clips_are_kept(tmp_path: Path) -> None:
    """Also a list of captions that is another: the clips are not taken for made."""
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "captions.csv").write_text("path,caption\nmine.mp4,mine\n")
    (tmp_path / "a" / "val-000000.mp4").symlink_to(theirs)
    for name in "a", "b":
        write_clips(tmp_path / name, WORLD, split="val", count=1)
    for name in "captions.csv", "val-000000.mp4":
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "captions.kept-1.csv").read_text().endswith("mine\n")
    assert theirs.read_text() == "theirs"


def test_clips_made_before_there_was_a_record_are_not_made_again(tmp_path: Path) -> None:
    write_clips(tmp_path, WORLD, split="val", count=1)
    (tmp_path / RECORD).unlink()
    (tmp_path / "val-000000.mp4").unlink()
    write_clips(tmp_path, WORLD, split="val", count=1)
    assert not (tmp_path / "val-000000.mp4").exists()


def test_clips_of_another_world_are_not_mixed(tmp_path: Path) -> None:
    write_clips(tmp_path, WORLD, split="train", count=1)
    with refused(DataError):
        write_clips(tmp_path, WorldConfig(frames=9, side=32), split="train", count=1)


def test_frames_survive_coding() -> None:
    world = WorldConfig()
    frames = render(draw_scene(world, seed=0, split="train", number=0), world)
    error = decode(encode_mp4(frames, 8)).astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 32


def test_a_folder_is_claimed_for_the_world_alone_whatever_else_a_section_says(tmp_path: Path) -> None:
    write_clips(tmp_path, WORLD, split="val", count=1)
    claimed = (tmp_path / "world.json").read_bytes()
    section = WorldClipsConfig(frames=WORLD.frames, side=WORLD.side, folder="elsewhere", train=7)
    write_clips(tmp_path, section, split="val", count=1)
    assert (tmp_path / "world.json").read_bytes() == claimed and b"folder" not in claimed


def test_counts_are_checked() -> None:
    with refused(ConfigError, where="world.train"):
        WorldClipsConfig(train=-1)


def test_another_number_of_clips_is_told_from_another_world(tmp_path: Path) -> None:
    world = WorldConfig(side=32, frames=5)
    write_clips(tmp_path, world, split="val", count=2)
    with refused(DataError, got="2", expected="3"):
        write_clips(tmp_path, world, split="val", count=3)
