"""Cuts of made-up films, which are known: found, and nothing else taken for one; no clip crosses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_modules.media.decode import Several, decode_clips
from data_modules.media.scenes import Place, places_in_scenes
from lumos_pl.errors import DataError
from tests.data_modules.media.cuts import JOINS, SCENES, SIDE, Film, Frames, account, film_of
from tests.data_modules.media.files import request, write_video
from tests.refusals import refused


def found_in(frames: Frames) -> list[int]:
    places = [place for _, place in places_in_scenes(iter(frames))]
    return [i for i, place in enumerate(places) if place is Place.FIRST and i > 0]


@pytest.mark.parametrize(
    ("join", "recall", "precision"), [("hard", 0.85, 0.9), ("fade", 0.95, 0.9), ("dissolve", 0.6, 0.9)]
)
def test_cuts_are_found(join: str, recall: float, precision: float) -> None:
    hit = missed = false = 0
    for seed in range(5):
        rng = np.random.default_rng([seed, 77])
        scenes = [str(name) for name in rng.choice(list(SCENES), 4)]
        film = film_of(rng, scenes, [join] * (len(scenes) - 1))
        counts = account(film, found_in(film.frames))
        hit, missed, false = hit + counts[0], missed + counts[1], false + counts[2]
    print(f"{join}: recall {hit / (hit + missed):.2f}, precision {hit / (hit + false):.2f} of {hit + missed}")
    assert hit >= recall * (hit + missed) and hit >= precision * (hit + false)
    assert join in JOINS


def test_one_scene_is_one_scene() -> None:
    """What moves, turns, flashes, comes near or is lit otherwise is no cut: two pictures in a thousand may be."""
    false = {}
    for name in SCENES:
        films = [film_of(np.random.default_rng([seed, 78]), [name], [], (90, 91)) for seed in range(1)]
        false[name] = sum(len(found_in(film.frames)) for film in films)
    print(f"cuts where there are none, in 90 pictures each: {false}")
    assert sum(false.values()) <= 0.002 * 90 * len(SCENES) and false["still"] == false["flashing"] == 0


def test_plain_pictures_are_of_no_scene() -> None:
    film = film_of(np.random.default_rng(1), ["still", "moving"], ["fade"])
    places = [place for _, place in places_in_scenes(iter(film.frames))]
    (first, last) = film.cuts[0]
    assert Place.OUTSIDE in places[first : last + 1] and Place.OUTSIDE not in places[:first] + places[last + 1 :]
    plain = [np.zeros((SIDE, SIDE, 3), np.uint8)] * 30
    assert {place for _, place in places_in_scenes(iter(plain))} == {Place.OUTSIDE}


def test_every_picture_comes_back_in_order() -> None:
    frames = film_of(np.random.default_rng(2), ["moving"], [], (5, 6)).frames
    for n in range(6):
        assert [picture.tobytes() for picture, _ in places_in_scenes(iter(frames[:n]))] == [
            f.tobytes() for f in frames[:n]
        ]


# -- clips of a file -------------------------------------------------------------------------------


def starts(path: Path, per_video: int | None = None, *, frames: int = 8, done: int = 0) -> tuple[list[int], int]:
    """At which frame each clip starts, and how many pieces were left out."""
    clips, found = (
        decode_clips(path, request(max_frames=frames), Several(per_video=per_video, scenes=True, done=done)),
        [],
    )
    while True:
        try:
            found.append(next(clips).start * 12)
        except StopIteration as end:
            return [round(start) for start in found], end.value


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Film]:
    rng = np.random.default_rng(5)
    film = Film()
    for name, n in ("still", 21), ("moving", 5), ("shaken", 30):
        JOINS["hard"](film, SCENES[name](rng, n), rng)
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    return write_video(path, film.frames, rate=12, options={"crf": "10"}), film


def test_no_clip_crosses_a_cut(film: tuple[Path, Film]) -> None:
    path, made = film
    assert [first for first, _ in made.cuts] == [0, 21, 26]
    assert starts(path) == ([0, 8, 26, 34, 42], 3)  # what is left of each scene, and the short one
    assert starts(path, done=3) == ([34, 42], 3)


def test_some_clips_of_scenes_lie_evenly_over_the_video(film: tuple[Path, Film]) -> None:
    path, _ = film
    assert starts(path, 2)[0] == [8, 42]  # those at or behind 14 and 42 of 56
    assert starts(path, 1)[0] == [26]
    assert starts(path, 100)[0] == [0, 8, 26, 34, 42]


def test_scenes_that_are_all_too_short_give_nothing(film: tuple[Path, Film], tmp_path: Path) -> None:
    path, made = film
    with refused(DataError, file="a.mp4", expected="40"):
        starts(path, frames=40)
    one = write_video(tmp_path / "b.mp4", made.frames[:6], rate=12)
    assert starts(one) == ([0], 0)  # a video that is no longer than a clip gives what it has
