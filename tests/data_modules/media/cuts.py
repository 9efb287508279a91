"""Made-up films whose cuts are known: scenes of textures that are still, move, pan, zoom, flash, fade and blend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rng = np.random.Generator
Frames = list[NDArray[np.uint8]]
SIDE = 64


@dataclass
class Film:
    """Frames, and where cuts are: the first and the last frame of which one must be the first of a scene."""

    frames: Frames = field(default_factory=list)
    cuts: list[tuple[int, int]] = field(default_factory=list)


def texture(rng: Rng, width: int, height: int) -> Image.Image:
    """Blurs of two sizes in colours of its own, from dark to bright scenes, with a few things in it."""
    ground, light = rng.uniform(20, 200, 3), rng.uniform(30, 110)
    large = rng.normal(size=(max(2, height // 24), max(2, width // 24), 3))
    small = rng.normal(size=(max(2, height // 6), max(2, width // 6), 3))
    layers = [_enlarged(layer, width, height) for layer in (large, small)]
    picture = np.clip(ground + light * (0.7 * layers[0] + 0.3 * layers[1]), 0, 255).astype(np.uint8)
    for _ in range(width * height // 1500):
        left, top = int(rng.integers(width)), int(rng.integers(height))
        picture[top : top + int(rng.integers(4, 14)), left : left + int(rng.integers(4, 14))] = rng.integers(
            256, size=3
        )
    return Image.fromarray(picture)


def _enlarged(layer: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    planes = [Image.fromarray(layer[..., i].astype(np.float32)).resize((width, height), 3) for i in range(3)]
    return np.stack([np.asarray(plane) for plane in planes], -1).astype(np.float64)


def still(rng: Rng, n: int) -> Frames:
    """With a camera's noise."""
    picture = np.asarray(texture(rng, SIDE, SIDE)).astype(float)
    return [np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8) for _ in range(n)]


def moving(rng: Rng, n: int) -> Frames:
    """A large thing crosses the picture."""
    ground, thing = texture(rng, SIDE, SIDE), texture(rng, 28, 40)
    speed, top = rng.uniform(1, 5), int(rng.integers(0, 24))
    frames = []
    for i in range(n):
        picture = ground.copy()
        picture.paste(thing, (int(speed * i) % (SIDE + 28) - 28, top))
        frames.append(np.asarray(picture))
    return frames


def pan(rng: Rng, n: int, speed: float | None = None) -> Frames:
    """The camera turns, by up to a seventh of the picture from frame to frame."""
    speed = rng.uniform(1, 9) if speed is None else speed
    ground = texture(rng, SIDE + int(speed * n) + 1, SIDE + 16)
    drift = rng.uniform(0, 16 / max(n, 1))
    return [np.asarray(ground.crop(_box(speed * i, drift * i, SIDE))) for i in range(n)]


def zoom(rng: Rng, n: int) -> Frames:
    ground = texture(rng, 2 * SIDE, 2 * SIDE)
    sides = np.geomspace(2 * SIDE, SIDE * rng.uniform(0.6, 1.2), n)
    centre = float(SIDE)
    boxes = [(centre - s / 2, centre - s / 2, centre + s / 2, centre + s / 2) for s in sides]
    return [np.asarray(ground.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)) for box in boxes]


def shaken(rng: Rng, n: int) -> Frames:
    """A camera in a hand."""
    ground = texture(rng, SIDE + 16, SIDE + 16)
    path = np.clip(8 + np.cumsum(rng.normal(0, 1.5, (n, 2)), 0), 0, 16)
    return [np.asarray(ground.crop(_box(x, y, SIDE))) for x, y in path]


def flashing(rng: Rng, n: int) -> Frames:
    """Lightning: one or two frames that are far too bright."""
    frames = moving(rng, n)
    for at in rng.choice(np.arange(3, max(4, n - 4)), size=max(1, n // 16), replace=False):
        for i in range(int(rng.integers(1, 3))):
            bright = 0.25 * frames[at + i].astype(float) + rng.uniform(150, 190)
            frames[at + i] = np.clip(bright, 0, 255).astype(np.uint8)
    return frames


def lit(rng: Rng, n: int) -> Frames:
    """The light comes and goes."""
    light = 1 + 0.5 * np.sin(np.arange(n) / rng.uniform(3, 9))
    return [np.clip(f * k, 0, 255).astype(np.uint8) for f, k in zip(shaken(rng, n), light, strict=True)]


def dark(rng: Rng, n: int) -> Frames:
    return [(frame * 0.2).astype(np.uint8) for frame in moving(rng, n)]


def _box(left: float, top: float, side: int) -> tuple[int, int, int, int]:
    return int(left), int(top), int(left) + side, int(top) + side


SCENES: dict[str, Callable[[Rng, int], Frames]] = {
    "still": still,
    "moving": moving,
    "pan": pan,
    "zoom": zoom,
    "shaken": shaken,
    "flashing": flashing,
    "lit": lit,
    "dark": dark,
}


def hard(film: Film, scene: Frames, rng: Rng) -> None:
    film.cuts.append((len(film.frames), len(film.frames)))
    film.frames += scene


def fade(film: Film, scene: Frames, rng: Rng) -> None:
    """Out to black, or to white, and in again."""
    n, colour = int(rng.integers(4, 11)), float(rng.choice([0, 255]))
    for i in range(n):
        out, into = film.frames[-1 - i], scene[i]
        film.frames[-1 - i] = _blend(out, colour, (n - i) / (n + 1))
        scene[i] = _blend(into, colour, (n - i) / (n + 1))
    film.cuts.append((len(film.frames) - n, len(film.frames) + n))
    plain = np.full((SIDE, SIDE, 3), colour, np.uint8)
    film.frames += [plain] * int(rng.integers(1, 4)) + scene


def dissolve(film: Film, scene: Frames, rng: Rng) -> None:
    n = int(rng.integers(4, 13))
    first = len(film.frames) - n
    for i in range(n):
        film.frames[first + i] = _blend(film.frames[first + i], scene[i].astype(float), (i + 1) / (n + 1))
    film.cuts.append((first, len(film.frames)))
    film.frames += scene[n:]


def _blend(a: NDArray[np.uint8], b: float | NDArray[np.float64], share: float) -> NDArray[np.uint8]:
    return np.clip((1 - share) * a + share * b, 0, 255).astype(np.uint8)


JOINS: dict[str, Callable[[Film, Frames, Rng], None]] = {"hard": hard, "fade": fade, "dissolve": dissolve}


def film_of(rng: Rng, scenes: list[str], joins: list[str], n: tuple[int, int] = (24, 48)) -> Film:
    film = Film()
    for name, join in zip(scenes, [None, *joins], strict=True):
        scene = SCENES[name](rng, int(rng.integers(*n)))
        if join is None:
            film.frames += scene
        else:
            JOINS[join](film, scene, rng)
    return film


def account(film: Film, found: list[int], slack: int = 1) -> tuple[int, int, int]:
    """Cuts that were found, cuts that were not, and what was found where none is."""
    near = [[at for at in found if first - slack <= at <= last + slack] for first, last in film.cuts]
    hit = sum(bool(places) for places in near)
    false = len(set(found) - {at for places in near for at in places})
    return hit, len(film.cuts) - hit, false
