"""Large pictures of dead leaves: shapes of all sizes that hide each other, with the spectrum and edges of photographs.

A canvas is seen by clips through moving windows (clip.py). Sizes follow a power law, so it looks alike at every scale
(Lee, Mumford and Huang, "Occlusion models for natural images", 2001); shapes have colours of a common palette,
shading, and textures of 1/f noise, stripes and letter-like strokes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

SIDE = 384  # px of a canvas
LEVELS = 4  # of its pyramid, each half as large as the one before
SMALLEST, LARGEST = 1.5, 110.0  # px: radii of leaves
OPPONENT = np.array([[0.9, 0.25, -1.0], [0.6, -0.7, 0.2]], np.float32)  # colours differ less than brightness: yellow
# against blue most, red against green less

Array = NDArray[np.floating[Any]]  # of 32 bits


class Palette(NamedTuple):
    """What the colours of a canvas have in common.

    Args:
        brightness, contrast: mean and spread of the leaves, of 0 to 1.
        chroma: spread along both axes of `OPPONENT`.
        tint: of everything, RGB.
    """

    brightness: float
    contrast: float
    chroma: float
    tint: Array

    @classmethod
    def draw(cls, rng: Generator) -> Palette:
        tint = rng.normal(0, log_uniform(rng, 0.02, 0.25), 2).astype(np.float32) @ OPPONENT
        return cls(rng.uniform(0.25, 0.7), log_uniform(rng, 0.1, 0.4), log_uniform(rng, 0.015, 0.2), tint)

    def color(self, rng: Generator) -> Array:
        light = self.brightness + self.contrast * rng.normal()
        vivid = 3.0 if rng.random() < 0.08 else 1.0
        color = light + self.tint + (vivid * self.chroma * rng.normal(size=2)) @ OPPONENT
        return np.clip(color, 0, 1).astype(np.float32)


def draw_canvas(rng: Generator, *, sparse: bool) -> list[Tensor]:
    """A canvas as a pyramid, [4, side, side] each: RGB from 0 to 1 times the cover, and the cover.

    Args:
        sparse: leaves on nothing, to be laid over another canvas; else everything is covered.
    """
    palette = Palette.draw(rng)
    noise = _noise(rng, 256, rng.uniform(0.7, 1.6))
    canvas = np.zeros((4, SIDE, SIDE), np.float32)
    if not sparse:
        _paint_ground(canvas, noise, palette, rng)
    smallest = SMALLEST if rng.random() < 0.4 else log_uniform(rng, SMALLEST, 25)
    count = int(log_uniform(rng, 12, 250) if sparse else log_uniform(rng, 150, 900))
    largest = log_uniform(rng, 6, 60) if sparse else LARGEST
    radii = _power_law(rng, min(smallest, largest / 2), largest, count)
    order = np.argsort(-radii * np.exp(rng.normal(0, 0.6, count)))  # small ones mostly in front, or few would be seen
    texture, softness = log_uniform(rng, 0.01, 0.25), log_uniform(rng, 0.6, 3.0)
    for radius in radii[order]:
        _paint_leaf(canvas, float(radius), noise, palette, texture, softness, rng)
    for _ in range(rng.poisson(0.5 if sparse else 1.5)):
        _paint_letters(canvas, palette, rng)
    pyramid = [torch.from_numpy(canvas)]
    for _ in range(LEVELS - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1][None], 2)[0])
    return pyramid


def _paint_ground(canvas: Array, noise: Array, palette: Palette, rng: Generator) -> None:
    """A slope between two colours under 1/f noise."""
    y, x = np.ogrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.clip(0.5 + 0.5 * (np.cos(angle) * x + np.sin(angle) * y), 0, 1).astype(np.float32)
    one, other = palette.color(rng)[:, None, None], palette.color(rng)[:, None, None]
    rough = np.tile(noise, (2, 2))[:SIDE, :SIDE] * palette.contrast * rng.uniform(0, 1)
    canvas[:3] = np.clip(one + (other - one) * slope + rough, 0, 1)
    canvas[3] = 1


def _paint_leaf(
    canvas: Array, radius: float, noise: Array, palette: Palette, texture: float, softness: float, rng: Generator
) -> None:
    """One shape somewhere on the canvas, over what is there."""
    longer = np.exp(abs(rng.normal(0, 0.5)))
    reach = int(radius * longer * 1.3 + softness) + 1
    cx, cy = rng.uniform(0, SIDE, 2)
    x0, x1, y0, y1 = (int(np.clip(v, 0, SIDE)) for v in (cx - reach, cx + reach, cy - reach, cy + reach))
    if x0 >= x1 or y0 >= y1:
        return
    angle = rng.uniform(0, 2 * np.pi)
    x = (np.arange(x0, x1, dtype=np.float32) - np.float32(cx))[None]
    y = (np.arange(y0, y1, dtype=np.float32) - np.float32(cy))[:, None]
    cos, sin = np.float32(np.cos(angle) / radius), np.float32(np.sin(angle) / radius)
    u, v = (cos * x + sin * y) / np.float32(longer), cos * y - sin * x
    cover = np.clip(0.5 - _outside(u, v, rng) * np.float32(radius / softness), 0, 1)
    inside = _texture(u, v, noise, radius, rng) * np.float32(texture * rng.exponential())
    gx, gy, round_ = rng.normal(0, 0.12, 3).astype(np.float32)
    inside = inside + gx * u + gy * v
    if rng.random() < 0.3:
        inside = inside - abs(round_) * 2 * (u * u + v * v)
    color = np.clip(palette.color(rng)[:, None, None] + inside, 0, 1)
    there = canvas[:, y0:y1, x0:x1]
    there *= 1 - cover
    there[:3] += cover * color
    there[3] += cover


def _outside(u: Array, v: Array, rng: Generator) -> Array:
    """How far outside of a shape of radius 1 about the origin; negative inside."""
    kind = rng.random()
    if kind < 0.4:
        return np.sqrt(u * u + v * v) - 1
    if kind < 0.75:  # a convex polygon
        corners = rng.integers(3, 7)
        turns = (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) * (2 * np.pi / corners)
        out = np.float32(np.cos(turns[0])) * u + np.float32(np.sin(turns[0])) * v
        for turn in turns[1:]:
            np.maximum(out, np.float32(np.cos(turn)) * u + np.float32(np.sin(turn)) * v, out=out)
        return out - np.float32(0.8)
    wave = np.arctan2(v, u)
    lobes, depth = rng.integers(2, 8), np.float32(rng.uniform(0.05, 0.3))
    return np.sqrt(u * u + v * v) - 1 + depth * np.cos(np.float32(lobes) * wave)


def _texture(u: Array, v: Array, noise: Array, radius: float, rng: Generator) -> Array:
    """Values about 0 with a spread about 1: 1/f noise, stripes or checks."""
    if rng.random() < 0.75 or radius < 6:
        oy, ox = rng.integers(0, len(noise), 2)
        step = int(rng.integers(1, 3))
        rows, columns = oy + step * np.arange(u.shape[0]), ox + step * np.arange(u.shape[1])
        rough: Array = noise.take(rows, 0, mode="wrap").take(columns, 1, mode="wrap")
        return rough
    period = log_uniform(rng, 3.0, max(4.0, radius))
    sharp = np.float32(rng.uniform(1, 4))
    waves: Array = np.sin(u * np.float32(2 * np.pi * radius / period))
    if rng.random() < 0.4:
        waves = waves * np.sin(v * np.float32(2 * np.pi * radius / period * rng.uniform(0.5, 2)))
    return np.asarray(np.clip(waves * sharp, -1, 1))


def _paint_letters(canvas: Array, palette: Palette, rng: Generator) -> None:
    """Rows of small strokes, as of writing, in a colour on another or on what is there."""
    rows, columns, size = int(rng.integers(1, 5)), int(rng.integers(3, 12)), int(rng.integers(1, 5))
    marks = rng.random((rows, 5, columns, 3)) < 0.55
    page = np.zeros((rows * 7, columns * 4), np.float32)
    page.reshape(rows, 7, columns, 4)[:, 1:6, :, :3] = marks
    page = page.repeat(size, 0).repeat(size, 1)[:SIDE, :SIDE]
    h, w = page.shape
    y, x = int(rng.integers(0, SIDE - h + 1)), int(rng.integers(0, SIDE - w + 1))
    there = canvas[:, y : y + h, x : x + w]
    if rng.random() < 0.6:
        there[:3], there[3] = palette.color(rng)[:, None, None], 1
    there *= 1 - page
    there[:3] += palette.color(rng)[:, None, None] * page
    there[3] += page


def _noise(rng: Generator, side: int, slope: float) -> Array:
    """Noise whose amplitude falls with frequency f as f**-slope; it tiles, and has mean 0 and spread 1."""
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * frequency**-slope
    noise = np.fft.irfft2(spectrum, (side, side))
    scaled: Array = (noise / noise.std()).astype(np.float32)
    return scaled


def _power_law(rng: Generator, low: float, high: float, count: int) -> NDArray[np.float64]:
    """Radii with density r**-3: equal areas at every scale."""
    share = rng.random(count)
    return (low**-2 - share * (low**-2 - high**-2)) ** -0.5


def log_uniform(rng: Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
