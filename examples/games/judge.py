"""Tells from the pictures of a clip alone which game it is, and how a thing moves in it.

No learned part: colours are compared with the game's own. What it finds on true clips is checked against the memory
of the console before it judges generated ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from examples.games.catalogue import FIELD, Game, Thing
from examples.games.motion import Track

LEVELS = 4  # of each colour channel in a histogram
FLOOR = 0.15  # share of a pixel that a thing covers, below which it counts as none
DOUBT = 3.0  # how many times nearer, in squares, another colour has to be
LEAST_AREA = 0.08  # of a thing's size: tokenizers thin what is small
LEAST_ALONE = 0.4  # of its colour in the whole of where it can be
Frames = NDArray[np.uint8]
"""[N, side, side, 3]"""


def histogram(frames: Frames) -> NDArray[np.float64]:
    """Share of the pixels of each colour, [LEVELS ** 3]; a colour between two levels counts for both in part."""
    at = frames.reshape(-1, 3) / 255 * (LEVELS - 1)
    low = np.minimum(at.astype(int), LEVELS - 2)
    high_share = at - low
    counts = np.zeros(LEVELS**3)
    for corner in np.ndindex(2, 2, 2):
        place = ((low + corner) * LEVELS ** np.arange(3)).sum(1)
        share = np.where(np.array(corner, bool), high_share, 1 - high_share).prod(1)
        counts += np.bincount(place, share, LEVELS**3)
    return counts / len(at)


def nearest_game(frames: Frames, known: Mapping[str, NDArray[np.float64]]) -> str:
    """The game with the nearest histogram among those of true clips, [M, LEVELS ** 3] of each."""
    own = histogram(frames)
    return min(known, key=lambda name: float(np.abs(known[name] - own).sum(1).min()))


def track_of(game: Game, thing: Thing, frames: Frames) -> Track:
    """Where a thing is in each picture: the middle of its colour at the place of its size that has most of it.

    Where its colour is all over the picture, as in noise, it is not seen.
    """
    scale = frames.shape[1] / FIELD
    left, top, right, bottom = thing.within
    first_row, last_row = int(np.ceil((top - game.top) * scale)), int((bottom - game.top) * scale)
    first_column, last_column = int(np.ceil(left * scale)), int(right * scale)
    cover = _cover(game, thing, frames[:, first_row:last_row, first_column:last_column].astype(np.float64))
    rows, columns = (int(np.ceil(length * scale)) + 1 for length in (thing.size[1], thing.size[0]))
    least = LEAST_AREA * thing.size[0] * thing.size[1] * scale**2
    track = np.full((len(frames), 2), np.nan)
    for number, picture in enumerate(cover):
        padded = np.pad(picture, ((rows, rows), (columns, columns)))
        sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        inside = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
        row, column = np.unravel_index(inside.argmax(), inside.shape)
        if inside[row, column] < max(least, LEAST_ALONE * picture.sum()):
            continue
        part = padded[row : row + rows, column : column + columns]
        y = (part.sum(1) @ np.arange(rows)) / part.sum() + row - rows + first_row
        x = (part.sum(0) @ np.arange(columns)) / part.sum() + column - columns + first_column
        track[number] = (x + 0.5) / frames.shape[2], (y + 0.5) / frames.shape[1]
    return track


def _cover(game: Game, thing: Thing, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of each pixel that the thing covers, if no mixture of the ground with another colour is much more like it.

    Video and tokenizers keep less of colours than of light: in doubt it is the thing.
    """
    ground = np.array(game.ground, float)
    shares, errors = [], []
    for color in thing.color, *thing.others:
        way = np.array(color) - ground
        share = ((pixels - ground) @ way / (way @ way)).clip(0, 1)
        shares.append(share)
        errors.append(((pixels - ground - share[..., None] * way) ** 2).sum(-1))
    is_other = np.min(errors[1:], 0) * DOUBT < errors[0] if thing.others else False
    return np.where(is_other | (shares[0] < FLOOR), 0, shares[0])
