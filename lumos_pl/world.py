"""What captions can be asked of and clips judged by, without a learned part: made up, or somebody's game or simulator.

world: {kind: shapes}                         what the project draws itself, see lumos_pl/shape_world
world: {kind: examples.games.world.Games}     one of your own: what builds a `World` from the section's settings
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lumos_pl.shape_world.scene import WorldConfig

Split = Literal["train", "val", "heldout"]
Frames = NDArray[np.uint8]  # [N, H, W, 3]


class Captioned(Protocol):
    """What a clip shows."""

    @property
    def caption(self) -> str: ...


class World(Protocol):
    """
    Args:
        old: the same without what is new to a model that is trained further; None where nothing is.
        described: what its clips are known by: others are not taken for them.
        pix_fmt: how they are stored, see `encode_mp4`.
    """

    @property
    def old(self) -> World | None: ...

    @property
    def described(self) -> Mapping[str, Any]: ...

    @property
    def pix_fmt(self) -> str: ...

    def scene(self, split: Split, number: int, *, seed: int) -> Captioned:
        """A pure function of its arguments; what `heldout` is made of occurs in no other split."""
        ...

    def film(self, scene: Any) -> Frames:
        """The true clip of one of its scenes, of the size, length and rate that its settings name."""
        ...

    def judge(self, scene: Any, frames: Frames) -> dict[str, bool]:
        """Which attributes that the caption names a clip has right, and `joint`: all of them."""
        ...


def _shapes(config: WorldConfig) -> World:
    from lumos_pl.shape_world.world import ShapeWorld  # which stands on the settings, and these on the words below

    return ShapeWorld(config)


WORLDS: dict[str, Callable[[WorldConfig], World]] = {"shapes": _shapes}


def build_world(config: WorldConfig) -> World:
    return WORLDS[config.kind](config)
