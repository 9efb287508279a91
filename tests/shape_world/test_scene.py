from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from lumos_pl.errors import ConfigError
from lumos_pl.shape_world.render import PATTERN_TRAVEL, render
from lumos_pl.shape_world.scene import (
    MOTIONS,
    PHASES,
    RELATIONS,
    SIZES,
    SPEEDS,
    STAYS,
    TRAVEL,
    Actor,
    Scene,
    Split,
    WorldConfig,
    described,
    draw_scene,
    is_held_out,
    travel,
    way_back,
    zoom_factor,
)
from tests.refusals import refused
from tests.shape_world.rich import RICH


def _mover(scene: Scene) -> Actor:
    return next((actor for actor in scene.actors if actor.motion != STAYS), scene.actors[0])


@pytest.mark.parametrize("world", [WorldConfig(), RICH], ids=["simple", "rich"])
def test_every_actor_stays_in_the_picture(world: WorldConfig) -> None:
    for number in range(300):
        for actor in draw_scene(world, seed=0, split="train", number=number).actors:
            radius = actor.radius * max(1.0, zoom_factor(actor))
            ends = (actor.x, actor.y), tuple(a + b for a, b in zip((actor.x, actor.y), travel(actor), strict=True))
            assert all(0.9 * radius <= place <= 1 - 0.9 * radius for end in ends for place in end), actor


def test_everything_that_moves_keeps_step_with_the_cells() -> None:
    """In a latent frame (4 RGB frames) by whole or half cells of 8 px, and patterns from one phase to another."""
    cell, latent_frames = 8 / RICH.side, (RICH.frames - 1) / 4
    for speed in SPEEDS:
        assert (TRAVEL * SPEEDS[speed] / latent_frames / cell * 2).is_integer()
    assert (PATTERN_TRAVEL / latent_frames * PHASES).is_integer()
    phases = {draw_scene(RICH, seed=0, split="train", number=number).phase * PHASES for number in range(200)}
    assert phases == set(range(PHASES))
    assert not (draw_scene(replace(RICH, grid=0), seed=0, split="train", number=0).phase * PHASES).is_integer()


def test_the_way_back_is_the_clip_backwards_and_as_ordinary_a_clip() -> None:
    world = WorldConfig()
    for number in range(12):
        scene = draw_scene(world, seed=3, split="val", number=number)
        back = way_back(scene)
        assert (render(back, world) == render(scene, world)[::-1]).all()
        assert back.caption != scene.caption and way_back(back).caption == scene.caption
        (there,), (actor,) = scene.actors, back.actors
        places = {(*map(round, (a.x * 64, a.y * 64, a.radius * 640)),) for a in (way_back(back).actors[0], there)}
        assert len(places) == 1 and actor.motion in MOTIONS


def test_held_out_combinations_are_in_their_split_only() -> None:
    world = WorldConfig()
    seen = {name: set() for name in ("train", "val", "heldout")}
    for split, combinations in seen.items():
        for number in range(400):
            (actor,) = draw_scene(world, seed=0, split=split, number=number).actors
            combinations.add((actor.color, actor.shape, actor.motion))
    everything = set(product(world.colors, world.shapes, world.motions))
    assert seen["heldout"] == {c for c in everything if is_held_out(*c)}
    assert seen["train"] | seen["val"] == everything - seen["heldout"]
    assert 10 <= len(seen["heldout"]) <= 25


def test_the_mover_of_a_pair_is_never_held_out_in_training() -> None:
    for number in range(200):
        mover = _mover(draw_scene(RICH, seed=0, split="train", number=number))
        assert not is_held_out(mover.color, mover.shape, mover.motion)


def test_a_scene_follows_from_seed_split_and_number() -> None:
    one = draw_scene(RICH, seed=3, split="train", number=5)
    assert one == draw_scene(RICH, seed=3, split="train", number=5)
    others = [
        draw_scene(RICH, seed=s, split=p, number=n) for s, p, n in ((4, "train", 5), (3, "val", 5), (3, "train", 6))
    ]
    assert one not in others


def test_captions_say_what_is_there() -> None:
    words = {"color": "orange", "shape": "circle", "motion": "moves up", "size": "", "speed": ""}
    actor = Actor(**words, x=0.3, y=0.5, radius=0.1)
    assert Scene(actors=(actor,), relation=None, background="plain", phase=0).caption == "an orange circle moves up"
    big = Actor(color="red", shape="square", motion=STAYS, size="big", speed="", x=0.7, y=0.5, radius=0.1)
    fast = Actor(**words | {"speed": "fast"}, x=0.3, y=0.5, radius=0.1)
    pair = Scene(actors=(fast, big), relation="left of", background="stripes", phase=0)
    assert pair.caption == "an orange circle left of a big red square, the circle moves up fast, on stripes"


def test_pairs_stand_as_the_relation_says_and_differ() -> None:
    pairs = [scene for n in range(200) if (scene := draw_scene(RICH, seed=0, split="train", number=n)).relation]
    assert 80 < len(pairs) < 160
    for scene in pairs:
        first, second = scene.actors
        dx, dy = RELATIONS[scene.relation]
        assert (first.x - second.x) * dx + (first.y - second.y) * dy > 0.1
        assert first.color != second.color and first.shape != second.shape
        assert STAYS in (first.motion, second.motion)
    assert {scene.relation for scene in pairs} == set(RELATIONS)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"colors": ["pink"]}, "world.colors"),
        ({"sizes": []}, "world.sizes"),
        ({"side": 8}, "world.side"),
        ({"pairs": 0.5, "shapes": ["circle"]}, "world.pairs"),
    ],
)
def test_unknown_worlds_are_refused(change: dict[str, object], where: str) -> None:
    with refused(ConfigError, where=where):
        WorldConfig(**change)


def test_words_have_an_unspoken_middle() -> None:
    assert SIZES[""] == SPEEDS[""] == 1.0


LATER = WorldConfig(
    colors=["red", "blue", "kiwi"],
    shapes=["circle", "square", "bar"],
    new=["bar", "kiwi"],
    apart=["moves up", "shrinks", "above", "right of"],
    pairs=0.5,
)


def test_words_apart_meet_the_new_ones_in_their_split_only() -> None:
    for split in "train", "val", "heldout":
        for number in range(200):
            words = draw_scene(LATER, seed=0, split=split, number=number).words
            assert not words.isdisjoint(LATER.new), words
            assert words.isdisjoint(LATER.apart) == (split != "heldout"), words


def test_a_world_without_its_new_words_is_the_old_one() -> None:
    assert LATER.old == WorldConfig(colors=["red", "blue"], shapes=["circle", "square"], pairs=0.5)
    assert described(WorldConfig()).keys() == described(LATER).keys() - {"new", "apart"}  # clips made before are known


@pytest.mark.parametrize(
    ("asked", "where"),
    [
        ({"new": ["bar"]}, "world.new"),
        ({"shapes": ["bar"], "new": ["bar"]}, "world.shapes"),
        ({"apart": ["left of", "stays"]}, "world.apart"),
        ({"colors": ["pink"]}, "world.colors"),
    ],
    ids=lambda value: str(value),
)
def test_words_that_a_world_does_not_have(asked: dict[str, list[str]], where: str) -> None:
    with refused(ConfigError, where=where):
        WorldConfig(**asked)


def test_a_world_in_which_the_new_word_cannot_occur_is_refused() -> None:
    with refused(ConfigError, where="world.apart"):
        draw_scene(replace(LATER, pairs=0, apart=["above"]), seed=0, split="heldout", number=0)


@pytest.mark.parametrize("split", ["train", "val", "heldout"])
def test_choosing_by_words_leaves_the_share_of_pairs_as_it_is(split: Split) -> None:
    world = replace(LATER, pairs=0.3)
    pairs = sum(draw_scene(world, seed=3, split=split, number=number).relation is not None for number in range(200))
    assert 40 <= pairs <= 80
