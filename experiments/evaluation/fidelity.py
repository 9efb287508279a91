"""Caption fidelity: how often a clip of a new caption shows what it says, in the world of shapes."""

from __future__ import annotations

import time

from callbacks.caption_fidelity import SPLITS, fresh_scenes, round_trip
from data_modules.shape_world.detector import judge
from experiments.evaluation.bootstrap import Measured, of_rows
from experiments.evaluation.settings import OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.sampling.config import ClipFormat
from lumos_pl.sampling.text_to_video import TextToVideo


def measure_fidelity(subject: Subject, on_step: OnStep) -> Measured:
    """Per caption and attribute 1 if the clip has it right, else 0; rows as in `CaptionFidelity`.

    And how long it took to make a clip.
    """
    config, settings = subject.config, subject.settings
    world, data, tokenizer = config.clips.world, subject.data, subject.visual_tokenizer
    assert data.tokenizer is not None and tokenizer is not None
    maker = TextToVideo(
        layout=subject.layout, prompt=data.prompt, text_tokenizer=data.tokenizer, visual_tokenizer=tokenizer
    )
    clip = ClipFormat(width=world.side, height=world.side, frames=world.frames, fps=world.fps)
    scenes = {row: fresh_scenes(world, split, settings.captions) for row, split in SPLITS.items()}
    clips, started = {}, time.monotonic()
    for number, (row, drawn) in enumerate(scenes.items()):
        with subject.autocast():
            made = maker.sample(
                subject.saved.net,
                [scene.caption for scene in drawn],
                clip,
                config.callbacks.sampling,
                seed=settings.seed,
                on_step=lambda done, total, before=number: on_step(before * total + done, len(scenes) * total),  # type: ignore[misc]
            )
        clips[row] = [one.frames for one in made]
    seconds = (time.monotonic() - started) / sum(map(len, clips.values()))
    scenes["round_trip"] = [scene for drawn in scenes.values() for scene in drawn]
    clips["round_trip"] = [round_trip([scene], world, tokenizer)[0] for scene in scenes["round_trip"]]

    measured = Measured({}, {}, {"fidelity/clip/seconds": seconds})
    for row, drawn in scenes.items():
        judged = [judge(scene, frames.numpy()) for scene, frames in zip(drawn, clips[row], strict=True)]
        measured.measures.update(of_rows(f"fidelity/{row}", judged, seed=settings.seed))
        measured.samples[f"fidelity/{row}"] = [scene.caption for scene in drawn]
    return measured
