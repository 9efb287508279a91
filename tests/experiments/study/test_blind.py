from __future__ import annotations

import pytest

from experiments.study.blind import OTHER, TEMPLATE, WORDS, agreement, seen_by_detector
from experiments.web_page import render_page
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.shape_world.world import ShapeWorld


def test_the_detector_says_words_that_the_reader_can_say() -> None:
    world = ShapeWorld(WorldConfig())
    scene = world.scene("heldout", 1, seed=0)
    (actor,) = scene.actors
    film = world.film(scene)
    assert seen_by_detector(film) == {"color": actor.color, "shape": actor.shape, "motion": actor.motion}
    assert seen_by_detector(film[:, :8, :8]) == dict.fromkeys(WORDS, OTHER)  # nothing is there


def test_agreement_counts_what_was_looked_at_by_run() -> None:
    one = {"color": "red", "shape": "circle", "motion": "grows"}
    key = [{"run": run, **one} for run in ("a", "a", "b")]
    found = agreement(key, [one, None, {**one, "shape": "square"}])
    assert found == {
        "a": {"color": 1, "shape": 1, "motion": 1, "all": 1},
        "b": {"color": 1, "shape": 0, "motion": 1, "all": pytest.approx(2 / 3)},
    }


def test_the_page_says_nothing_of_where_its_clips_are_from() -> None:
    page = render_page(TEMPLATE, words=WORDS, clips=[b"GIF", b"GIF"]).decode()
    assert page.count("data:image/gif") == 2 and "run" not in page.replace("running", "")
    for known in WORDS.values():
        for key, word in known.items():
            assert f'data-key="{key}" data-word="{word}"' in page
