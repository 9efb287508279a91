"""The world of shapes as the suite sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lumos_pl.shape_world.detector import judge
from lumos_pl.shape_world.render import render
from lumos_pl.shape_world.scene import Scene, WorldConfig, described, draw_scene
from lumos_pl.world import Frames, Split


@dataclass(frozen=True)
class ShapeWorld:
    config: WorldConfig
    pix_fmt = "yuv420p"

    @property
    def old(self) -> ShapeWorld | None:
        return ShapeWorld(self.config.old) if self.config.new else None

    @property
    def described(self) -> Mapping[str, Any]:
        return described(self.config)

    def scene(self, split: Split, number: int, *, seed: int) -> Scene:
        return draw_scene(self.config, seed=seed, split=split, number=number)

    def film(self, scene: Scene) -> Frames:
        return render(scene, self.config)

    def judge(self, scene: Scene, frames: Frames) -> dict[str, bool]:
        return judge(scene, frames, self.config.new)
