"""Which clips of a file are asked for, and what a clip is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_modules.media.size_buckets import Size
from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import at_least, check_ranges, optional

START = at_least(0, "seconds, 0 or more")

Hdr = Literal["map", "refuse"]
"""What becomes of videos of high dynamic range: see `colour`."""


@dataclass(frozen=True, kw_only=True)
class ClipRequest:
    """Which frames to read, and at which size.

    Args:
        sizes: the picture fills the one nearest to its aspect.
        fps: frames per second to resample to.
        max_frames: what comes after them is left out.
        start: where the clip begins, in seconds from the first frame; None: the middle window of
            max_frames / fps seconds.
        min_frames: a video that gives fewer is refused; an image is always one frame.
        hdr: `map` brings videos of high dynamic range to a screen's, `refuse` refuses them.
    """

    sizes: tuple[Size, ...]
    fps: int
    max_frames: int
    start: float | None = None
    min_frames: int = 1
    hdr: Hdr = "map"

    def __post_init__(self) -> None:
        check_ranges("", self, fps=at_least(1), max_frames=at_least(1), min_frames=at_least(1), start=optional(START))
        at_least(1).check("sizes", min((min(size) for size in self.sizes), default=0))
        if self.min_frames > self.max_frames:
            expected = f"at most max_frames = {self.max_frames}"
            raise ConfigError("min_frames too large", where="min_frames", got=self.min_frames, expected=expected)

    @property
    def length(self) -> Fraction:
        """Of a whole clip, in seconds."""
        return Fraction(self.max_frames, self.fps)


@dataclass(frozen=True, kw_only=True)
class Several:
    """Which clips of one video, in one pass; `ClipRequest.start` is then not looked at.

    Args:
        starts: one clip at each of these seconds, which rise; clips may overlap. Nothing else counts then.
        per_video: so many, spread evenly: number i lies in the middle of the i-th part of the video; None: one after
            another from the first frame to the last. All of them are whole, but a video that is no longer than one
            gives what it has.
        scenes: no clip crosses a cut, see `scenes`; each scene's clips begin with it.
        done: so many of the first are not wanted any more.
        facts: each clip comes with what its file says of itself.
    """

    starts: tuple[float, ...] = ()
    per_video: int | None = 1
    scenes: bool = False
    done: int = 0
    facts: bool = False

    def __post_init__(self) -> None:
        check_ranges("", self, per_video=optional(at_least(1)), done=at_least(0))
        if list(self.starts) != sorted(self.starts) or any(start < 0 for start in self.starts):
            raise ConfigError("no rising starts", where="starts", got=self.starts)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a file: px as they are stored, seconds of an image 0, frames per second 0 where it does not say."""

    width: int
    height: int
    seconds: float
    rate: float


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedClip:
    """RGB frames [N, H, W, 3] at `fps`, from `start` seconds after the file's first frame; an image is one at 1 fps."""

    frames: NDArray[np.uint8]
    fps: int
    is_image: bool
    start: float = 0.0
    facts: Facts | None = None
