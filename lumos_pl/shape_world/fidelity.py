"""How often clips show what their captions say, by the judge of their world: no learned part takes part."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

import torch
from torch import Tensor

from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat
from lumos_pl.shape_world.detector import judge
from lumos_pl.shape_world.scene import Scene, WorldConfig
from lumos_pl.world import Captioned, Split, World

SPLITS: dict[str, Split] = {"seen": "val", "heldout": "heldout"}
LEAST_ROUND_TRIP = 0.97  # joint, of true clips; below it the figures do not judge the model
FRESH_SEED = 1_000_003  # of scenes and sampling; training and its pictures use none near it


def fresh_scenes(world: World, split: Split, count: int) -> list[Captioned]:
    """Scenes that no training or validation clip was made of."""
    return [world.scene(split, number, seed=FRESH_SEED) for number in range(count)]


def fidelity(scenes: Sequence[Scene], clips: Iterable[Tensor]) -> dict[str, float]:
    """Share of the clips with each attribute right, among those whose caption names it; of the first words."""
    return shares(judge(scene, frames.numpy()) for scene, frames in zip(scenes, clips, strict=True))


def shares(judged: Iterable[Mapping[str, bool]]) -> dict[str, float]:
    """The same, of clips that were judged."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for of_clip in judged:
        right.update(name for name, is_right in of_clip.items() if is_right)
        asked.update(of_clip.keys())
    return {name: round(right[name] / count, 4) for name, count in asked.items()}


def lost(before: Sequence[Mapping[str, bool]], after: Sequence[Mapping[str, bool]]) -> dict[str, float]:
    """How much less of the same captions is right in all attributes: the mean, with its 95% interval (normal)."""
    fallen = [float(old["joint"]) - float(new["joint"]) for old, new in zip(before, after, strict=True)]
    half = 1.96 * stdev(fallen) / math.sqrt(len(fallen)) if len(fallen) > 1 else 1.0
    mean = fmean(fallen)
    return {"joint": round(mean, 4), "low": round(mean - half, 4), "high": round(mean + half, 4)}


def round_trip(scene: Captioned, world: World, lumos: LumosPipeline) -> Tensor:
    """A true clip, encoded and decoded, [N, H, W, 3]."""
    true = torch.from_numpy(world.film(scene))
    return lumos.decode(lumos.encode(true))[: len(true)]


def format_of(world: WorldConfig) -> ClipFormat:
    """What every clip of the world is like."""
    return ClipFormat(width=world.side, height=world.side, frames=world.frames, fps=world.fps)
