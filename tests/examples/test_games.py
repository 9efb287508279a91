"""Six games as a world: what their memory says holds in the pictures, and so does what the judge finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ale_py", reason="an optional extra: games")

from examples.games.catalogue import FIELD, GAMES, HELD_OUT
from examples.games.judge import track_of
from examples.games.motion import motion_of
from examples.games.play import Scene, play
from examples.games.record import main
from examples.games.world import KIND, Games, captions
from lumos_pl.errors import ConfigError
from lumos_pl.shape_world.scene import WorldConfig
from tests.refusals import refused

PIXELS = 3.5  # of the console's screen: a boxer's middle moves as he strikes
ONE_OF_EACH = len(GAMES)


@pytest.fixture(scope="module")
def world() -> Games:
    return Games(WorldConfig(kind=KIND, side=64, frames=17))


@pytest.fixture(scope="module")
def scenes(world: Games) -> list[Scene]:
    return [world.scene("val", number, seed=1) for number in range(ONE_OF_EACH)]


def test_the_memory_tells_where_the_colour_is(world: Games, scenes: list[Scene]) -> None:
    for scene in scenes:
        game = GAMES[scene.game]
        seen = track_of(game, game.things[scene.thing], scene.field)
        assert np.abs(seen - scene.track).max() * FIELD < PIXELS, scene.caption


def test_true_clips_are_right_and_others_are_not(world: Games, scenes: list[Scene]) -> None:
    clips = [world.film(scene) for scene in scenes]
    assert all(world.judge(scene, clip)["joint"] for scene, clip in zip(scenes, clips, strict=True))
    for scene, clip, other in zip(scenes, clips, clips[1:] + clips[:1], strict=True):
        backwards, noise = clip[::-1], np.random.default_rng(0).integers(0, 256, clip.shape, np.uint8)
        assert world.judge(scene, backwards) == {"game": True, "motion": False, "joint": False}
        assert not world.judge(scene, other)["game"]
        assert not world.judge(scene, noise)["motion"]


def test_a_scene_is_its_number_alone(world: Games, scenes: list[Scene]) -> None:
    again = world.scene("val", 1, seed=1)  # after other games
    assert again.caption == scenes[1].caption and again.packed == scenes[1].packed


def test_what_is_held_out_is_in_no_other_split() -> None:
    for game in GAMES:
        held_out, trained = ({(game, *caption) for caption in captions(game, split)} for split in ("heldout", "train"))
        assert held_out == {caption for caption in HELD_OUT if caption[0] == game} and not held_out & trained


def test_too_short_a_clip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.games.play.LONGEST", 60)
    with refused(ConfigError, where="frames"):
        play("pong", "ball", "moves left", 2, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("track", "word"),
    [
        (np.linspace((0.2, 0.5), (0.8, 0.6), 9), "moves right"),
        (np.linspace((0.5, 0.8), (0.6, 0.2), 9), "moves up"),
        (np.full((9, 2), 0.5), None),
        (np.tile([[0.1, 0.5], [0.9, 0.5], [0.3, 0.5]], (3, 1)), None),  # it jumps
        (np.full((9, 2), np.nan), None),
    ],
)
def test_the_word_of_a_motion(track: np.ndarray, word: str | None) -> None:
    assert motion_of(track, ["moves left", "moves right", "moves up", "moves down"]) == word


def test_recorded_twice_the_bytes_are_the_same(tmp_path: Path) -> None:
    words = ["--games", "pong", "--side", "32", "--clips", "2", "--val", "1", "--heldout", "1", "--seed", "3"]
    for folder in "first", "second":
        assert main(["--out", str(tmp_path / folder), *words]) == 0
    first, second = (
        {file.relative_to(tmp_path / folder): file.read_bytes() for file in (tmp_path / folder).rglob("*.*")}
        for folder in ("first", "second")
    )
    assert len(first) > 9 and first == second
    listed = (tmp_path / "first/train/captions.csv").read_text().splitlines()
    assert listed[1].startswith('train-000000.mp4,"pong, the ')
