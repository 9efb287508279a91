"""The word for how a thing moves, from its places in the pictures of a clip: the same for the game's memory and for
what a judge finds in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WAYS = {"moves left": (0, -1), "moves right": (0, 1), "moves up": (1, -1), "moves down": (1, 1)}
"""Axis (x, y) and sign, y downwards."""
LEAST_SEEN = 0.7  # of the pictures
Track = NDArray[np.float64]
"""[N, 2], x and y of a clip's pictures as shares of the field's side; NaN where the thing is not seen."""


@dataclass(frozen=True, kw_only=True)
class Plainness:
    """What a motion has to be like to be called one.

    Args:
        travel: from first to last, by a straight line through the places, as a share of the side.
        jump: root mean square distance from that line, at most.
        dominance: travel along its axis over travel along the other, at least.
    """

    travel: float
    jump: float
    dominance: float


SEEN = Plainness(travel=0.08, jump=0.12, dominance=1.0)  # by whoever looks at a clip
RECORDED = Plainness(travel=0.15, jump=0.03, dominance=1.7)  # of what is recorded: nobody could take it for another


def motion_of(track: Track, motions: Sequence[str], plainness: Plainness = SEEN) -> str | None:
    """Which of the motions it is, or None: it stays, jumps, or is not seen in enough of the pictures."""
    seen = np.isfinite(track).all(1)
    if seen.mean() < LEAST_SEEN:
        return None
    time = np.linspace(0, 1, len(track))[seen]
    slopes, starts = np.polyfit(time, track[seen], 1)
    jumps = np.sqrt(np.mean((starts + time[:, None] * slopes - track[seen]) ** 2, axis=0))
    axes = sorted({WAYS[motion][0] for motion in motions}, key=lambda axis: -abs(slopes[axis]))
    first = axes[0]
    other = max((abs(slopes[axis]) for axis in axes[1:]), default=0.0)
    if abs(slopes[first]) < max(plainness.travel, plainness.dominance * other) or jumps[first] > plainness.jump:
        return None
    return next((word for word in motions if WAYS[word] == (first, np.sign(slopes[first]))), None)
