"""Where one scene ends and another begins, told from the pictures of a clip's rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, auto

import numpy as np
from numpy.typing import NDArray


class Place(Enum):
    """Of a picture: the first of a scene, of the same as the one before, or of none."""

    FIRST = auto()
    SAME = auto()
    OUTSIDE = auto()


def places_in_scenes(pictures: Iterable[NDArray[np.uint8]], fps: int) -> Iterator[tuple[NDArray[np.uint8], Place]]:
    """Each picture with its place, some pictures later."""
    before: NDArray[np.float32] | None = None
    for picture in pictures:
        small = picture[::8, ::8].astype(np.float32)
        cut = before is None or before.shape != small.shape or np.abs(small - before).mean() > 30
        yield picture, Place.FIRST if cut else Place.SAME
        before = small
