"""Clips for callbacks to show, and a model that makes them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.shape_world.fidelity import SPLITS, fresh_scenes
from lumos_pl.shape_world.render import render
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import build_world

WORLD = WorldConfig()
CLIP = ClipFormat(width=64, height=64, frames=17, fps=8)
CONFIG = SamplingConfig(steps=2)


class TrueClips:
    """A model that draws every caption of the world right, but for the one numbered `wrong`."""

    def __init__(self, wrong: int | None = None) -> None:
        scenes = [scene for split in SPLITS.values() for scene in fresh_scenes(build_world(WORLD), split, 4)]
        self.drawn = {scene.caption: torch.from_numpy(render(scene, WORLD)) for scene in scenes}
        self.wrong = wrong
        self.asked: list[tuple[list[str], list[int]]] = []

    def encode(self, frames):
        return frames

    def decode(self, frames):
        return frames

    def generate(self, captions, *, seed, clip, sampling, on_step=lambda done, in_all: None):
        assert clip == CLIP and sampling is CONFIG
        for step in range(len(captions)):
            on_step(step + 1, len(captions))
        self.asked.append((list(captions), seed))
        clips = torch.stack(
            [self.drawn.get(caption, torch.zeros(17, 64, 64, 3, dtype=torch.uint8)) for caption in captions]
        )
        if self.wrong is not None:
            clips[self.wrong] = 0
        return [SimpleNamespace(frames=clip, fps=CLIP.fps) for clip in clips]


def clips(n: int, frames: int, color: tuple[int, int, int] | None = None) -> Tensor:
    """Random noise, or one colour."""
    if color is None:
        return torch.randint(0, 256, (n, frames, 16, 24, 3), dtype=torch.uint8)
    return torch.tensor(color, dtype=torch.uint8).expand(n, frames, 16, 24, 3)
