"""Reads colour, shape, motion, size and place off the frames of a clip, by plain image processing.

Objects are vivid and backgrounds grey, so a pixel's chroma says how much of it an object covers and
its hue whose it is. Shapes are compared with the renderer's own at the same centre and area. No
learned part: what it finds on true clips is checked before it judges generated ones.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lumos_pl.shape_world.render import coverage
from lumos_pl.shape_world.scene import (
    COLORS,
    LATER_COLORS,
    LATER_SHAPES,
    PAIR_RADIUS,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    STAYS,
    TRAVEL,
    ZOOM,
    Actor,
    Scene,
)
from lumos_pl.world import Frames

CHROMA_FLOOR = 36  # of 255; grey backgrounds stay below it after coding
LEAST_CORE = 6e-4  # share of the picture that an object fills with full colour: its fringes may look like another
CORE_COVER = 0.65
LARGEST_HUE_ERROR = 0.12  # of the circle of hues: beyond it a pixel belongs to no colour
SHAPE_FRAMES = 5
JUMP = 0.08  # root mean square distance from steady motion, as a share of the side, above which it is none
LEAST_TRAVEL, LEAST_ZOOM = 0.4, 0.4  # of the ordinary motion

_RGB = COLORS | LATER_COLORS
_HUES = {name: colorsys.rgb_to_hsv(*(value / 255 for value in rgb))[0] for name, rgb in _RGB.items()}
_HUES["kiwi"] = 104 / 360  # as the tokenizer that comes with the project paints it, whose greens are bluer
_UNIT_AREA = {
    shape: float(coverage(shape, 256, *np.array([[128.0], [128.0], [64.0]])).sum()) / 64**2
    for shape in (*SHAPES, *LATER_SHAPES)
}
_MIDDLE_SIZE = (SIZES["small"] + SIZES["big"]) / 2


@dataclass(frozen=True, kw_only=True)
class Detected:
    """One object of a clip; x, y at the first frame, as shares of the side.

    Args:
        motion: a word of `MOTIONS`, or `erratic`.
        radius: mean over the frames, as a share of the side.
        way: distance covered over the ordinary one, or for a zoom its logarithm over the ordinary one's.
    """

    color: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    way: float


def detect(frames: Frames, later: Collection[str] = ()) -> list[Detected]:
    """The objects of a clip [N, H, W, 3] that are there in every frame, the largest first; one per colour.

    Args:
        later: the words of `LATER_COLORS` and `LATER_SHAPES` that it may be beside the others.
    """
    rgb = np.moveaxis(frames, -1, 0).astype(np.float32, order="C")  # numpy is slow along a last axis of a few
    chroma = rgb.max(0) - rgb.min(0)
    vivid = chroma > CHROMA_FLOOR
    hue = _hue(rgb[:, vivid], chroma[vivid])
    names = [*COLORS, *(name for name in LATER_COLORS if name in later)]
    shapes = [*SHAPES, *(name for name in LATER_SHAPES if name in later)]
    gaps = np.abs(hue - np.array([[_HUES[name]] for name in names], np.float32))  # [names, vivid pixels]
    gaps = np.minimum(gaps, 1 - gaps)
    nearest = np.full(chroma.shape, -1)
    nearest[vivid] = np.where(gaps.min(0) < LARGEST_HUE_ERROR, gaps.argmin(0), -1)
    least = LEAST_CORE * frames.shape[1] * frames.shape[2]
    found: list[tuple[float, Detected]] = []
    for index, name in enumerate(names):
        if np.count_nonzero(nearest == index, axis=(1, 2)).min() <= least:
            continue
        full = max(_RGB[name]) - min(_RGB[name])
        cover = np.where(nearest == index, np.clip(chroma / full, 0, 1), 0)  # [N, H, W]
        area = cover.sum((1, 2))
        core = (cover > CORE_COVER).sum((1, 2))
        if np.median(core) > least and area.min() > least:
            found.append((float(area.mean()), _measure(name, shapes, cover, area)))
    return [detected for _, detected in sorted(found, key=lambda pair: -pair[0])]


def _hue(rgb: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    red, green, blue = rgb
    high, scale = rgb.max(0), np.maximum(chroma, 1e-6)
    hue = np.where(
        high == red,
        (green - blue) / scale % 6,
        np.where(high == green, (blue - red) / scale + 2, (red - green) / scale + 4),
    )
    turns: NDArray[np.float32] = (hue / 6).astype(np.float32)
    return turns


def _measure(color: str, shapes: Sequence[str], cover: NDArray[np.floating], area: NDArray[np.floating]) -> Detected:
    side = cover.shape[1]
    centers = (np.arange(side) + 0.5) / side
    x = (cover * centers).sum((1, 2)) / area
    y = (cover * centers[:, None]).sum((1, 2)) / area
    shape = _shape(shapes, cover, area, x, y)
    radius = np.sqrt(area / _UNIT_AREA[shape]) / side
    motion, way = _motion(x, y, np.log(radius))
    return Detected(
        color=color, shape=shape, motion=motion, x=float(x[0]), y=float(y[0]), radius=float(radius.mean()), way=way
    )


def _shape(
    shapes: Sequence[str],
    cover: NDArray[np.floating],
    area: NDArray[np.floating],
    x: NDArray[np.floating],
    y: NDArray[np.floating],
) -> str:
    """The shape whose drawing at the same centre and area differs least, over frames spread across the clip.

    Both are compared by halves of the resolution: video keeps no finer colour.
    """
    side = cover.shape[1]
    some = np.linspace(0, len(cover) - 1, SHAPE_FRAMES).round().astype(int)
    seen = _halve(cover[some])
    errors = {}
    for shape in shapes:
        radius = np.sqrt(area[some] / _UNIT_AREA[shape])
        drawn = _halve(coverage(shape, side, x[some] * side, y[some] * side, radius))
        errors[shape] = float((((drawn - seen) ** 2).sum((1, 2)) / area[some]).mean())
    return min(errors, key=lambda shape: errors[shape])


def _halve(pictures: NDArray[np.floating]) -> NDArray[np.floating]:
    n, height, width = pictures.shape
    means: NDArray[np.floating] = pictures.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))
    return means


def _motion(x: NDArray[np.floating], y: NDArray[np.floating], log_radius: NDArray[np.floating]) -> tuple[str, float]:
    """The motion's name, and how far it goes over the ordinary way; from straight lines through the tracks."""
    time = np.linspace(0, 1, len(x))
    slopes, jumps = {}, {}
    for name, track in ("x", x), ("y", y), ("zoom", log_radius):
        slope, start = np.polyfit(time, track, 1)
        slopes[name], jumps[name] = float(slope), float(np.sqrt(np.mean((start + slope * time - track) ** 2)))
    if max(jumps["x"], jumps["y"]) > JUMP:
        return "erratic", 0.0
    ways = {name: slopes[name] / TRAVEL for name in ("x", "y")} | {"zoom": slopes["zoom"] / np.log(ZOOM)}
    axis = max(ways, key=lambda name: abs(ways[name]))
    way = float(ways[axis])
    if abs(way) < (LEAST_ZOOM if axis == "zoom" else LEAST_TRAVEL):
        return STAYS, abs(way)
    words = {"x": ("moves left", "moves right"), "y": ("moves up", "moves down"), "zoom": ("shrinks", "grows")}
    return words[axis][way > 0], abs(way)


def judge(scene: Scene, frames: Frames, later: Collection[str] = ()) -> dict[str, bool]:
    """Which attributes that the caption names a clip has right, and `joint`: all of them.

    An actor is looked for by its colour; one that has none of its own takes what is left over, so
    that a wrong colour says nothing against the shape. Further objects count against the colour.

    Args:
        later: see `detect`; where words are learned later, `alone` is the same of clips with one object.
    """
    found = detect(frames, later)
    actors = _match(scene.actors, found)
    right = {"color": sorted(seen.color for seen in found) == sorted(actor.color for actor in scene.actors)}
    right["shape"] = all(seen is not None and seen.shape == actor.shape for actor, seen in actors)
    right["motion"] = all(seen is not None and seen.motion == actor.motion for actor, seen in actors)
    if scene.relation is not None:
        first, second = (seen for _, seen in actors)
        right["relation"] = first is not None and second is not None and _stands(first, second, scene.relation)
    if any(actor.size for actor in scene.actors):
        is_pair = len(actors) > 1
        right["size"] = all(seen is not None and _has_size(actor, seen, is_pair) for actor, seen in actors)
    if any(actor.speed for actor in scene.actors):
        right["speed"] = all(seen is not None and _has_speed(actor, seen) for actor, seen in actors)
    right["joint"] = all(right.values())
    if later and scene.relation is None:
        right["alone"] = right["joint"]
    return right


def _match(actors: Sequence[Actor], found: Sequence[Detected]) -> list[tuple[Actor, Detected | None]]:
    by_color = {seen.color: seen for seen in found}
    left_over = [seen for seen in found if seen.color not in {actor.color for actor in actors}]
    return [
        (actor, by_color.get(actor.color) or (left_over.pop(0) if left_over else None))  # the largest first
        for actor in actors
    ]


def _stands(first: Detected, second: Detected, relation: str) -> bool:
    """Whether the first is on that side of the second, at the first frame."""
    dx, dy = RELATIONS[relation]
    return (first.x - second.x) * dx + (first.y - second.y) * dy > 0


def _has_size(actor: Actor, seen: Detected, is_pair: bool) -> bool:
    if not actor.size or actor.motion in ("grows", "shrinks"):  # a zoom passes through all sizes
        return True
    return (seen.radius / (PAIR_RADIUS if is_pair else RADIUS) > _MIDDLE_SIZE) == (actor.size == "big")


def _has_speed(actor: Actor, seen: Detected) -> bool:
    if not actor.speed:
        return True
    exponent = 0.5 if actor.motion in ("grows", "shrinks") else 1.0
    middle: float = (SPEEDS["slowly"] ** exponent + SPEEDS["fast"] ** exponent) / 2
    return (seen.way > middle) == (actor.speed == "fast")
