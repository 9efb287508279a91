"""The made-up world with all its words."""

from __future__ import annotations

from lumos_pl.shape_world.scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, WorldConfig

RICH = WorldConfig(
    colors=list(COLORS),
    shapes=list(SHAPES),
    motions=list(MOTIONS),
    sizes=["small", "big"],
    speeds=["slowly", "fast"],
    backgrounds=list(BACKGROUNDS),
    pairs=0.6,
)
