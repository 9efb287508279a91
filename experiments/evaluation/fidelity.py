"""Caption fidelity: how often a clip of a new caption shows what it says, in the world of the run."""

from __future__ import annotations

import time
from itertools import chain

from torch import Tensor

from experiments.evaluation.bootstrap import Measured, of_rows
from experiments.evaluation.settings import OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.shape_world.fidelity import SPLITS, format_of, fresh_scenes, round_trip
from lumos_pl.world import build_world

ROWS = (*SPLITS, "old", "round_trip", "clip")


def measure_fidelity(subject: Subject, on_step: OnStep) -> Measured:
    """Per caption and attribute 1 if the clip has it right, else 0; rows as in `CaptionFidelity`.

    And how long it took to make a clip.
    """
    world, settings, lumos = build_world(subject.config.world), subject.settings, subject.lumos
    scenes = {row: fresh_scenes(world, split, settings.captions) for row, split in SPLITS.items()}
    if world.old is not None:
        scenes["old"] = fresh_scenes(world.old, "val", settings.captions)
    started = time.monotonic()
    clips: dict[str, list[Tensor]] = {}
    for row, drawn in scenes.items():

        def tell(done: int, total: int) -> None:  # of all rows, which have as many steps each
            on_step(len(clips) * total + done, len(scenes) * total)

        made = lumos.generate(
            [scene.caption for scene in drawn],
            seed=settings.seed,
            clip=format_of(subject.config.world),
            sampling=lumos.sampling,
            on_step=tell,
        )
        clips[row] = [one.frames for one in made]
    seconds = (time.monotonic() - started) / sum(map(len, clips.values()))
    true_scenes = list(chain.from_iterable(scenes.values()))
    scenes["round_trip"] = true_scenes
    clips["round_trip"] = [round_trip(scene, world, lumos) for scene in true_scenes]

    measured = Measured({}, {}, {"fidelity/clip/seconds": seconds})
    for row, drawn in scenes.items():
        judged = [world.judge(scene, frames.numpy()) for scene, frames in zip(drawn, clips[row], strict=True)]
        measured.measures.update(of_rows(f"fidelity/{row}", judged, seed=settings.seed))
        measured.samples[f"fidelity/{row}"] = [scene.caption for scene in drawn]
    return measured
