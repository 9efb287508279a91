"""How good clips are, without weights from elsewhere: what comes back of a picture, and whose colours a clip has."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lumos_pl.tokenizers.reconstruction import PSNR_CEILING

Frames = NDArray[np.uint8]
"""RGB, [N, H, W, 3]."""

LEVELS = 8  # of each colour in a histogram
CELL = 8  # px, of the picture that is painted in mean colours


def psnr(made: Frames, truth: Frames) -> float:
    """Of a clip as a whole, in dB, at most PSNR_CEILING."""
    error = float(np.mean((made.astype(np.float64) - truth) ** 2))
    return min(PSNR_CEILING, 10 * math.log10(255**2 / error)) if error else PSNR_CEILING


def mean_colours(frames: Frames) -> Frames:
    """Each block of CELL x CELL px painted in its mean colour: what any tokenizer should surpass.

    The last blocks are as large as what is left of the picture.
    """
    blocks: NDArray[np.floating] = frames.astype(np.float64)
    for axis in 1, 2:
        starts = np.arange(0, frames.shape[axis], CELL)
        sizes = np.diff(starts, append=frames.shape[axis])
        shape = [1, 1, 1, 1]
        shape[axis] = len(sizes)
        blocks = (np.add.reduceat(blocks, starts, axis) / sizes.reshape(shape)).repeat(sizes, axis)
    painted: Frames = blocks.round().astype(np.uint8)
    return painted


def histogram(frames: Frames) -> NDArray[np.float64]:
    """Shares of the colours of a clip, each primary in LEVELS levels, [LEVELS ** 3]."""
    levels = (frames.astype(np.int64) * LEVELS // 256) @ np.array([LEVELS**2, LEVELS, 1])
    shares: NDArray[np.float64] = np.bincount(levels.ravel(), minlength=LEVELS**3) / levels.size
    return shares


class ColourJudge:
    """Says which caption a clip looks like: that of the true clip whose colours are most like its own.

    Args:
        clips: true ones, at least one, of one size and length as all that are judged.
        captions: of each.
    """

    def __init__(self, clips: Sequence[Frames], captions: Sequence[str]) -> None:
        self._known = np.stack([histogram(clip) for clip in clips])
        self._captions = list(captions)

    def caption(self, clip: Frames) -> str:
        return self._captions[int(np.abs(self._known - histogram(clip)).sum(1).argmin())]
