"""Where one scene ends and another begins, told from the pictures at a clip's rate.

Pictures are compared as thumbnails of `SIDE` x `SIDE`, by the mean difference of their values (0 to 255) where they
match best: moved against each other by up to a quarter of their width (a camera turns), and in equal light (a lamp is
switched on). A scene begins

- with a cut: a picture differs from the one before by more than `CUT`, and `PEAK` times as much as pictures around it
  do from theirs; unless what was before comes back within `FLASH` pictures, as after lightning;
- behind plain pictures, whose values hardly differ (`PLAIN`): a fade to black or white. They are of no scene;
- in the middle of a dissolve: a picture is a blend of those some pictures before and after it, which differ.

What moves fast and fills the picture may be taken for a cut, which costs a clip; a dissolve of much motion, or of more
than some two seconds, is missed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum, auto
from itertools import chain

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

SIDE, MOST_SHIFT = 24, 6
CUT, PEAK, AROUND = 7.0, 2.4, 5
FLASH = 3
PLAIN = 3.0
APART, BLENDED, LAGS = 18.0, 0.2, (3, 5, 8)

Picture = NDArray[np.uint8]
Thumbnail = NDArray[np.float32]


class Place(Enum):
    """Of a picture: the first of a scene, of the same as the one before, or of none."""

    FIRST = auto()
    SAME = auto()
    OUTSIDE = auto()


def places_in_scenes(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Place]]:
    """Each picture with its place, at most `max(LAGS)` pictures later.

    Args:
        pictures: of one size each; another size begins a scene.
    """
    ahead = max(LAGS)
    waiting: deque[Picture] = deque()
    finder = _Finder()
    for picture in chain(pictures, [None] * ahead):
        if picture is not None:
            waiting.append(picture)
        finder.push(None if picture is None else _thumbnail(picture))
        if finder.n_pushed > ahead and waiting:
            yield waiting.popleft(), finder.place()


class _Finder:
    """Decides on the picture that lies `max(LAGS)` before the last that was pushed."""

    def __init__(self) -> None:
        self.n_pushed = 0
        n = 2 * max(LAGS) + 1
        self._seen: deque[Thumbnail | None] = deque([None] * n, maxlen=n)
        self._steps: deque[float] = deque([0.0] * n, maxlen=n)  # of each from the one before it
        self._since = 0  # pictures since the last beginning of a scene
        self._outside = True

    def push(self, thumbnail: Thumbnail | None) -> None:
        self.n_pushed += 1
        before = self._seen[-1]
        self._steps.append(0.0 if thumbnail is None or before is None else difference(before, thumbnail))
        self._seen.append(thumbnail)

    def place(self) -> Place:
        middle = max(LAGS)
        now = self._seen[middle]
        assert now is not None
        if now.std(axis=(0, 1)).max() < PLAIN:
            self._outside = True
            return Place.OUTSIDE
        begins = self._outside or self._is_cut(middle) or self._is_blend(middle)
        self._outside = False
        self._since = 0 if begins else self._since + 1
        return Place.FIRST if begins else Place.SAME

    def _is_cut(self, at: int) -> bool:
        step = self._steps[at]
        if step < CUT:
            return False
        around = sorted(self._steps[i] for i in range(at - AROUND, at + AROUND + 1) if i != at)
        if step < PEAK * around[-3]:  # another cut or two may be near
            return False
        for back in range(1, FLASH + 1):
            for on in range(FLASH + 1 - back + 1):
                if back + on < 2:
                    continue
                a, b = self._seen[at - back], self._seen[at + on]
                if a is not None and b is not None and difference(a, b) < step / 2:
                    return False
        return True

    def _is_blend(self, at: int) -> bool:
        now = self._seen[at]
        assert now is not None
        for lag in LAGS:
            a, b = self._seen[at - lag], self._seen[at + lag]
            if self._since < lag or a is None or b is None:
                continue
            away = b - a
            most = BLENDED * np.abs(away).mean()
            share = float(((now - a) * away).sum() / ((away * away).sum() + 1e-3))
            if 0.3 < share < 0.7 and np.abs(now - a - share * away).mean() < most and difference(a, b) > APART:
                return True
        return False


def _thumbnail(picture: Picture) -> Thumbnail:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float32)


def difference(a: Thumbnail, b: Thumbnail) -> float:
    """The mean difference where two thumbnails match best."""
    least = float(np.abs(a - b).mean())
    if least < CUT / 2:
        return least
    (flat_a, spread_a), (flat_b, spread_b) = _in_equal_light(a), _in_equal_light(b)
    flat = _least_moved(flat_a, flat_b) * math.sqrt(spread_a * spread_b)
    return min(least, _least_moved(a, b), flat)


def _in_equal_light(thumbnail: Thumbnail) -> tuple[Thumbnail, float]:
    """Around zero with a spread of one, and the spread that it had."""
    around_zero = thumbnail - thumbnail.mean((0, 1))
    spread = float(around_zero.std()) + 1e-3
    return around_zero / spread, spread


def _least_moved(a: Thumbnail, b: Thumbnail) -> float:
    """The middle of the one, laid anywhere on the other."""
    rows, columns = SIDE - MOST_SHIFT, SIDE - 2 * MOST_SHIFT
    middle = b[MOST_SHIFT // 2 :][:rows, MOST_SHIFT : MOST_SHIFT + columns]
    places = sliding_window_view(a, (rows, columns), axis=(0, 1))  # [down, across, colour, row, column]
    return float(np.abs(places - middle.transpose(2, 0, 1)).mean((2, 3, 4)).min())
