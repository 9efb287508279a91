"""What becomes of a clip that goes on: windows of the run's length, each continued from the last picture before it.

    window 1              window 2               window 3 ...
    a circle moves left   a circle moves right   a circle moves left
    true picture -> 17 frames, the last of them -> 16 more -> ...

Nothing leaves the picture: at the end of a window the motion turns round, and so does the caption. In the world of
shapes the way back is as ordinary a clip as the way there, so each window asks for nothing that training lacks, and
the first picture and the captions tell all the others: the truth is known to the pixel.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from experiments.evaluation.bootstrap import Measured
from experiments.evaluation.context import behind
from experiments.evaluation.loss import score
from experiments.evaluation.settings import EvalSettings, OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.layout import TokenSequence
from lumos_pl.seeding import derive_seed
from lumos_pl.shape_world.fidelity import FRESH_SEED, format_of
from lumos_pl.shape_world.scene import Scene, is_held_out, way_back
from lumos_pl.shape_world.world import ShapeWorld


def horizon_rows(settings: EvalSettings) -> list[str]:
    """A row for each window, and of all of them together."""
    return [*(f"window_{number}" for number in range(1, settings.windows + 1)), "all", "fall", "truth"]


def measure_horizon(subject: Subject, on_step: OnStep) -> Measured:
    """Per caption and window what the judge finds, the share of the codes that are the truth's, and the loss.

    `loss` is that of the true codes of the later latent frames, behind the model's own as sampling shows them. `all`
    is right where every window is; `fall` is by how much the last window is worse than the first; `truth` is what the
    judge says of the true pictures, encoded and decoded.
    """
    settings, lumos = subject.settings, subject.lumos
    world = ShapeWorld(subject.config.world)
    there = _scenes(world, settings.captions)
    ways = there, [way_back(scene) for scene in there]
    films = [[torch.from_numpy(world.film(scene)) for scene in way] for way in ways]
    truths = [[lumos.encode(film) for film in way] for way in films]
    windows = horizon_rows(settings)[: settings.windows]

    rows: dict[str, list[dict[str, float]]] = {}
    given = [film[:1] for film in films[0]]
    for number, row in enumerate(windows):
        scenes, true_codes = ways[number % 2], truths[number % 2]
        made = lumos.generate(
            [scene.caption for scene in scenes],
            seed=derive_seed(settings.seed, "horizon", number),
            clip=format_of(subject.config.world),
            sampling=replace(lumos.sampling, given_context="partial"),
            given=given,
        )
        given = [clip.frames[-1:] for clip in made]
        rows[row] = []
        for place, (scene, true, clip) in enumerate(zip(scenes, true_codes, made, strict=True)):
            found = {name: float(right) for name, right in world.judge(scene, clip.frames.numpy()).items()}
            found["codes"] = (clip.codes[1:] == true[1:]).double().mean().item()
            rows[row].append(found | {"loss": _loss(subject, scene, true, clip.codes, f"{number}/{place}")})
        on_step(number + 1, len(windows))

    first, last = rows[windows[0]], rows[windows[-1]]
    joints = [[found["joint"] for found in rows[row]] for row in windows]
    rows["all"] = [{"joint": min(each), "mean": fmean(each)} for each in zip(*joints, strict=True)]
    rows["fall"] = [
        {name: before[name] - after[name] for name in before if name != "loss"}
        | {"loss": after["loss"] - before["loss"]}
        for before, after in zip(first, last, strict=True)
    ]
    pictures = [
        [lumos.decode(codes)[: len(way[0])].numpy() for codes in true] for way, true in zip(films, truths, strict=True)
    ]
    judged = zip(*(map(world.judge, way, shown) for way, shown in zip(ways, pictures, strict=True)), strict=True)
    rows["truth"] = [{"joint": fmean(float(found["joint"]) for found in both)} for both in judged]

    return Measured.of("horizon", rows, [scene.caption for scene in there], seed=settings.seed)


def _scenes(world: ShapeWorld, count: int) -> list[Scene]:
    """New scenes whose way back is no held-out combination either: both ways are asked for alike."""
    both = (
        scene
        for number in itertools.count()
        for scene in [world.scene("val", number, seed=FRESH_SEED)]
        if not any(is_held_out(actor.color, actor.shape, actor.motion) for actor in way_back(scene).actors)
    )
    return list(itertools.islice(both, count))


def _loss(subject: Subject, scene: Scene, true: Tensor, own: Tensor, key: str) -> float:
    """The mean loss of a window's true frames after the first, behind the model's own."""
    request = subject.lumos.request(scene.caption, format_of(subject.config.world), seed=0)
    sequence = TokenSequence(text_ids=request.text_ids, codes=true, duration=request.duration, fps=request.fps)
    batch = behind(subject, sequence, own, f"own_rho_{subject.lumos.sampling.partial_context:g}", key)
    return score(subject, batch)["loss"]
