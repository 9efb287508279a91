"""Caption fidelity: how often a clip of a new caption shows what it says, in the world of the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import chain

from torch import Tensor

from experiments.evaluation.bootstrap import Measured, of_rows
from experiments.evaluation.settings import OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.shape_world.fidelity import SPLITS, format_of, fresh_scenes, round_trip
from lumos_pl.world import Captioned, build_world

ROWS = (*SPLITS, "old", "round_trip", "clip")


def measure_fidelity(subject: Subject, on_step: OnStep) -> Measured:
    """Per caption and attribute 1 if the clip has it right, else 0; rows as in `CaptionFidelity`.

    And how long it took to make a clip.
    """
    world, settings = build_world(subject.config.world), subject.settings
    scenes = {row: fresh_scenes(world, split, settings.captions) for row, split in SPLITS.items()}
    if world.old is not None:
        scenes["old"] = fresh_scenes(world.old, "val", settings.captions)
    started = time.monotonic()
    clips = {
        row: _generate(subject, drawn, partial(_of_all, on_step, i, len(scenes)))
        for i, (row, drawn) in enumerate(scenes.items())
    }
    seconds = (time.monotonic() - started) / sum(map(len, clips.values()))
    true_scenes = list(chain.from_iterable(scenes.values()))
    scenes["round_trip"] = true_scenes
    clips["round_trip"] = [round_trip(scene, world, subject.lumos) for scene in true_scenes]

    measured = Measured({}, {}, {"fidelity/clip/seconds": seconds})
    for row, drawn in scenes.items():
        judged = [world.judge(scene, frames.numpy()) for scene, frames in zip(drawn, clips[row], strict=True)]
        measured.measures.update(of_rows(f"fidelity/{row}", judged, seed=settings.seed))
        measured.samples[f"fidelity/{row}"] = [scene.caption for scene in drawn]
    return measured


def _generate(subject: Subject, scenes: Sequence[Captioned], on_step: OnStep) -> list[Tensor]:
    """What the model makes of the scenes' captions, RGB uint8 [N, H, W, 3] each."""
    lumos = subject.lumos
    made = lumos.generate(
        [scene.caption for scene in scenes],
        seed=subject.settings.seed,
        clip=format_of(subject.config.world),
        sampling=lumos.sampling,
        on_step=on_step,
    )
    return [one.frames for one in made]


def _of_all(on_step: OnStep, before: int, parts: int, done: int, total: int) -> None:
    """Tell the steps of one of several parts, all of the same length, as steps of all."""
    on_step(before * total + done, parts * total)
