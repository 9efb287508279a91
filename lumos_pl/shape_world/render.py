"""Draws a scene: RGB frames with soft edges, straight from the geometry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lumos_pl.shape_world.scene import COLORS, LATER_COLORS, Scene, WorldConfig, travel, zoom_factor
from lumos_pl.world import Frames

DARK, LIGHT = np.array([22.0, 22.0, 28.0]), np.array([58.0, 58.0, 66.0])
PATTERN_SHARE = 0.25  # side of a stripe and its gap, as a share of the picture
PATTERN_TRAVEL = 0.5  # periods that a pattern drifts over a clip; in step with the cells, see PHASES


def render(scene: Scene, world: WorldConfig) -> Frames:
    """Frames [N, side, side, 3]; anti-aliased over one pixel."""
    side, n_frames = world.side, world.frames
    time = np.linspace(0, 1, n_frames)
    picture = _background(scene, side, time)
    for actor in scene.actors:
        (dx, dy), zoom = travel(actor), zoom_factor(actor)
        x, y, radius = actor.x + dx * time, actor.y + dy * time, actor.radius * zoom**time
        cover = coverage(actor.shape, side, x * side, y * side, radius * side)[..., None]
        picture = picture * (1 - cover) + cover * np.array((COLORS | LATER_COLORS)[actor.color], float)
    return picture.round().astype(np.uint8)


def coverage(
    shape: str, side: int, x: NDArray[np.floating], y: NDArray[np.floating], radius: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Share of each pixel that a shape covers, [len(x), side, side].

    Args:
        x, y, radius: centre and size in pixels, one per picture; all shapes of one radius have
            nearly the same area.
    """
    centers = np.arange(side) + 0.5
    dx = centers[None, None, :] - np.asarray(x)[:, None, None]
    dy = centers[None, :, None] - np.asarray(y)[:, None, None]
    r = np.asarray(radius)[:, None, None]
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - r
        case "square":
            distance = np.maximum(abs(dx), abs(dy)) - 0.9 * r
        case "triangle":  # upright, its base below; the centre is the centroid
            slope = np.hypot(1.0, 2.0)
            sides = (2 * abs(dx) - dy - 1.5 * r) / slope
            distance = np.maximum(sides, dy - 0.75 * r)
        case "bar":  # upright
            distance = np.maximum(abs(dx) - 0.6 * r, abs(dy) - 1.2 * r)
        case _:
            raise ValueError(f"no such shape: {shape!r}")
    cover: NDArray[np.floating] = np.clip(0.5 - distance, 0, 1)
    return cover


def _background(scene: Scene, side: int, time: NDArray[np.floating]) -> NDArray[np.floating]:
    """[N, side, side, 3]; patterns are grey, soft, and drift."""
    unit = (np.arange(side) + 0.5) / side
    along = (unit[None, :] / PATTERN_SHARE + scene.phase + PATTERN_TRAVEL * time[:, None]) * 2 * np.pi
    flat = np.zeros((len(time), side, side))
    match scene.background:
        case "plain":
            level = flat
        case "stripes":
            level = flat + _soft_wave(along)[:, None, :]
        case "checks":
            still = _soft_wave((unit / PATTERN_SHARE + scene.phase) * 2 * np.pi)
            level = 0.5 + 2 * (_soft_wave(along)[:, None, :] - 0.5) * (still[None, :, None] - 0.5)
        case "gradient":
            level = flat + 0.5 + 0.5 * np.cos((unit[None, None, :] + scene.phase + time[:, None, None]) * 2 * np.pi)
        case _:
            raise ValueError(f"no such background: {scene.background!r}")
    picture: NDArray[np.floating] = DARK + level[..., None] * (LIGHT - DARK)
    return picture


def _soft_wave(angle: NDArray[np.floating]) -> NDArray[np.floating]:
    """Between 0 and 1, a wave with flat tops."""
    wave: NDArray[np.floating] = np.clip(0.5 + 0.9 * np.sin(angle), 0, 1)
    return wave
