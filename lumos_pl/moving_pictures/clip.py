"""Clips of moving layers: a ground, and leaves before it, each seen through a window that moves its own way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor

from lumos_pl.moving_pictures.canvas import LEVELS, SIDE, draw_canvas, log_uniform
from lumos_pl.seeding import derive_seed

VERSION = 1  # of what is drawn: a run does not go on with other clips
CLIPS_OF_A_CANVAS = 24  # a new canvas is drawn after so many clips
CANVASES_AT_ONCE = 16  # that a clip may be of: the latest ones


@dataclass(frozen=True)
class _Motion:
    """A window's way over a canvas.

    Args:
        scale: px of the canvas to a px of the clip.
        shift, turn, zoom: per frame: px of the clip, radians, and share.
    """

    scale: float
    shift: tuple[float, float]
    turn: float
    zoom: float


def draw_clip(seed: int, number: int, *, frames: int, size: tuple[int, int], split: str = "train") -> Tensor:
    """Clip `number` of an endless series: RGB uint8, [frames, height, width, 3]; the same at every call."""
    rng = np.random.default_rng(derive_seed(seed, "moving pictures", split, number))
    video = _layer(rng, seed, split, number, frames, size, sparse=False)[:, :3]
    for _ in range(rng.choice(4, p=[0.4, 0.35, 0.15, 0.1])):
        layer = _layer(rng, seed, split, number, frames, size, sparse=True)
        video = video * (1 - layer[:, 3:]) + layer[:, :3]
    return _exposed(video, rng)


def _layer(
    rng: Generator, seed: int, split: str, number: int, frames: int, size: tuple[int, int], *, sparse: bool
) -> Tensor:
    """What a moving window shows of a canvas, [frames, 4, height, width]."""
    latest = number // CLIPS_OF_A_CANVAS
    pyramid = _canvas(seed, split, latest - int(rng.integers(CANVASES_AT_ONCE)), sparse)
    scale = log_uniform(rng, 0.2, 4.0)
    level = int(np.clip(np.floor(np.log2(scale) + rng.uniform(-0.4, 0.3)), 0, LEVELS - 1))
    grid = _window(rng, _draw_motion(rng, scale, still=0.1 if sparse else 0.35), frames, size)
    return F.grid_sample(
        pyramid[level].expand(frames, -1, -1, -1), grid, padding_mode="reflection", align_corners=False
    )


def _draw_motion(rng: Generator, scale: float, *, still: float) -> _Motion:
    if rng.random() < still:
        return _Motion(scale, (0.0, 0.0), 0.0, 0.0)
    speed, way = min(rng.exponential(1.1), 8.0), rng.uniform(0, 2 * np.pi)
    turn = rng.normal(0, 0.02) if rng.random() < 0.4 else 0.0
    zoom = rng.normal(0, 0.015) if rng.random() < 0.4 else 0.0
    return _Motion(scale, (speed * np.cos(way), speed * np.sin(way)), turn, zoom)


def _window(rng: Generator, motion: _Motion, frames: int, size: tuple[int, int]) -> Tensor:
    """Where each pixel of each frame looks, in the units of `grid_sample`, [frames, height, width, 2]."""
    height, width = size
    t = np.arange(frames, dtype=np.float32)
    pace = 1 + rng.uniform(-0.5, 0.5) * np.sin(rng.uniform(0.1, 0.6) * t + rng.uniform(0, 2 * np.pi))
    way = np.cumsum(pace)[:, None] * np.array(motion.shift, np.float32)
    way += rng.normal(0, 1, (frames, 2)) * (log_uniform(rng, 0.05, 0.8) if rng.random() < 0.25 else 0)  # by hand
    angle = rng.uniform(0, 2 * np.pi) + motion.turn * t
    scale = motion.scale * np.exp(motion.zoom * t)
    cos, sin = (torch.from_numpy(f(angle) * scale).float()[:, None, None] for f in (np.cos, np.sin))
    y = torch.arange(height).float()[None, :, None] - height / 2 + torch.from_numpy(way[:, 1]).float()[:, None, None]
    x = torch.arange(width).float()[None, None] - width / 2 + torch.from_numpy(way[:, 0]).float()[:, None, None]
    if rng.random() < 0.3:  # water, cloth, leaves in the wind
        depth, length, pace = log_uniform(rng, 0.3, 3), log_uniform(rng, 10, 60), rng.normal(0, 0.6)
        phase = torch.from_numpy(pace * t + rng.uniform(0, 6)).float()[:, None, None]
        x, y = x + depth * torch.sin(y * (6.28 / length) + phase), y + depth * torch.sin(x * (6.28 / length) + phase)
    middle = rng.uniform(0, 2, 2)
    places = torch.stack(torch.broadcast_tensors(cos * x - sin * y, sin * x + cos * y), dim=-1)
    return places * (2 / SIDE) + torch.from_numpy(middle).float() - 1


def _exposed(video: Tensor, rng: Generator) -> Tensor:
    """Light, contrast and grain of a camera: [N, 3, H, W] from 0 to 1 to RGB uint8 [N, H, W, 3]."""
    n = len(video)
    gain, gamma = torch.full((n, 1, 1, 1), rng.uniform(0.75, 1.25)), np.exp(rng.normal(0, 0.25))
    if rng.random() < 0.2:  # clouds, a flickering lamp
        gain = gain + torch.from_numpy(np.cumsum(rng.normal(0, 0.02, n))).float()[:, None, None, None]
    video = (video * gain).clamp(0, 1) ** gamma
    if rng.random() < 0.3:
        video = video + log_uniform(rng, 0.003, 0.03) * torch.from_numpy(
            rng.standard_normal(video.shape, dtype=np.float32)
        )
    return (video * 255).clamp(0, 255).round().to(torch.uint8).movedim(1, -1).contiguous()


@lru_cache(maxsize=2 * CANVASES_AT_ONCE + 4)
def _canvas(seed: int, split: str, number: int, sparse: bool) -> list[Tensor]:
    kind = "sparse" if sparse else "full"
    return draw_canvas(np.random.default_rng(derive_seed(seed, "canvas", split, kind, number)), sparse=sparse)
