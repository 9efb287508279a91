from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from experiments.read_config import load_experiment
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.shape_world.detector import detect, judge
from lumos_pl.shape_world.fidelity import LEAST_ROUND_TRIP, shares
from lumos_pl.shape_world.render import coverage, render
from lumos_pl.shape_world.scene import LATER_COLORS, LATER_SHAPES, SHAPES, WorldConfig, draw_scene
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.shape_world.media import decode
from tests.shape_world.rich import RICH


@pytest.mark.seconds
@pytest.mark.parametrize(("world", "least"), [(WorldConfig(), 1.0), (RICH, 0.95)], ids=["simple", "rich"])
def test_true_clips_pass_after_video_coding(world: WorldConfig, least: float) -> None:
    right: Counter[str] = Counter()
    for number in range(60):
        scene = draw_scene(world, seed=0, split="train", number=number)
        right.update(k for k, v in judge(scene, decode(encode_mp4(render(scene, world), world.fps))).items() if v)
    assert right["joint"] >= least * 60, right


@pytest.mark.seconds
def test_later_words_pass_the_tokenizer_that_comes_with_the_project() -> None:
    world = load_experiment("finetune_demo").world
    tokenizer = load_visual_tokenizer("embedded")
    scenes = [draw_scene(world, seed=0, split="train", number=number) for number in range(112)]
    clips = tokenizer.decode(tokenizer.encode(torch.stack([torch.from_numpy(render(s, world)) for s in scenes])))
    judged = [judge(scene, clip[: world.frames].numpy(), world.new) for scene, clip in zip(scenes, clips, strict=True)]
    assert shares(judged)["joint"] >= LEAST_ROUND_TRIP, shares(judged)


def test_a_later_word_is_none_of_the_first_ones() -> None:
    for words in ["kiwi", "bar"], ["red", "bar"], ["kiwi", "square"]:
        world = WorldConfig(colors=words[:1], shapes=words[1:])
        clip = render(scene := draw_scene(world, seed=0, split="train", number=0), world)
        later = {*words} & {*LATER_COLORS, *LATER_SHAPES}
        judged = judge(scene, clip, later)
        assert judged["joint"] and not judge(scene, clip)["joint"]
        assert ("alone" in judged) == (scene.relation is None)


def test_another_caption_fails() -> None:
    world = WorldConfig()
    scenes = [draw_scene(world, seed=0, split="train", number=n) for n in range(40)]
    clips = [render(scene, world) for scene in scenes]
    for scene, other, clip in zip(scenes, scenes[1:], clips[1:], strict=False):
        verdict = judge(scene, clip)
        for word in ("color", "shape", "motion"):
            assert verdict[word] == (getattr(scene.actors[0], word) == getattr(other.actors[0], word))


def test_wrong_clips_fail_each_in_its_attribute() -> None:
    world = WorldConfig()
    scene = next(
        s
        for n in range(99)
        if (s := draw_scene(world, seed=0, split="train", number=n)).actors[0].motion == "moves left"
    )
    clip = render(scene, world)
    assert judge(scene, clip)["joint"]
    assert not judge(scene, np.full_like(clip, 25))["color"]  # nothing there
    assert not judge(scene, clip[::-1])["motion"]
    assert not judge(scene, clip[:1].repeat(17, axis=0))["motion"]
    frozen = clip.copy()
    frozen[8:] = 25  # gone half-way
    assert not judge(scene, frozen)["joint"]
    jumping = clip[np.random.default_rng(0).permutation(17)]
    assert not judge(scene, jumping)["motion"]
    crowded = clip.copy()
    crowded[:, :12, :12] = (240, 240, 0) if scene.actors[0].color != "yellow" else (255, 0, 0)
    assert not judge(scene, crowded)["color"]


@pytest.mark.parametrize("shape", [*SHAPES, *LATER_SHAPES])
def test_coverage_is_centred_and_of_about_the_same_area(shape: str) -> None:
    (cover,) = coverage(shape, 64, np.array([30.0]), np.array([34.0]), np.array([12.0]))
    ys, xs = np.mgrid[:64, :64] + 0.5
    assert (cover * xs).sum() / cover.sum() == pytest.approx(30, abs=0.3)
    assert (cover * ys).sum() / cover.sum() == pytest.approx(34, abs=0.3)
    assert 2.3 * 144 < cover.sum() < 3.4 * 144


def test_places_and_ways_are_measured() -> None:
    world = WorldConfig()
    for number in range(10):
        scene = draw_scene(world, seed=1, split="val", number=number)
        (seen,) = detect(render(scene, world))
        assert (seen.x, seen.y) == pytest.approx((scene.actors[0].x, scene.actors[0].y), abs=0.02)
        assert seen.way == pytest.approx(1, abs=0.08)
