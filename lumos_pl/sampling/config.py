"""How frames are drawn: refinement, guidance, and what of a finished frame the next ones see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lumos_pl.errors import ConfigError
from lumos_pl.kinds import check_kind, kind_field
from lumos_pl.masking import SCHEDULES

GivenFrames = Literal["visible", "partial"]
ConfidenceAnneal = Literal["per_frame", "release"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Defaults are the release's for T2V and I2V (T2I: guidance 16); arXiv:2507.08801.

    Args:
        steps: refinement steps of a frame.
        guidance: scale g of classifier-free guidance, u + g * (c - u); at 1 the branch without text is skipped.
        partial_context: share of a finished frame's content that later frames see as MASK (rho); at least
            one position, as in training.
        schedule: how the share of hidden codes falls over the steps, see `SCHEDULES`.
        temperature: of the drawn codes.
        top_k: draw among the k likeliest codes only.
        top_p: draw among the likeliest codes only, as few as have this probability together.
        confidence_temperature: Gumbel noise on the confidence that decides which codes stay.
        confidence_anneal: `per_frame`: the noise falls linearly to 0 over the steps of every frame.
            `release`: it falls as the running product of those factors, and is never reset, so that
            every frame after the first has none.
        given_frames: `visible`: given frames enter the context whole, as in training with given frames and
            as in the release. `partial`: like generated ones, which is all that a model trained without
            given frames has seen.
        greedy: the likeliest code everywhere, and no noise on the confidence.
    """

    steps: int = 50
    guidance: float = 15.0
    partial_context: float = 0.7
    schedule: str = kind_field("cosine", SCHEDULES)
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    confidence_temperature: float = 1.0
    confidence_anneal: ConfidenceAnneal = "per_frame"
    given_frames: GivenFrames = "visible"
    greedy: bool = False

    def __post_init__(self) -> None:
        check_kind(self.schedule, SCHEDULES, "sampling.schedule")
        checks = [
            ("steps", self.steps, self.steps >= 1, "1 or more"),
            ("guidance", self.guidance, 0 <= self.guidance < math.inf, "0 or more"),
            ("partial_context", self.partial_context, 0 <= self.partial_context <= 1, "0 to 1"),
            ("temperature", self.temperature, 0 < self.temperature < math.inf, "above 0 (or set greedy)"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1"),
            (
                "confidence_temperature",
                self.confidence_temperature,
                0 <= self.confidence_temperature < math.inf,
                "0 or more",
            ),
        ]
        for name, value, good, expected in checks:
            if not good:
                raise ConfigError("out of range", where=f"sampling.{name}", got=value, expected=expected)


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """Size of a clip.

    Args:
        width, height: pixels.
        frames: RGB frames; 1 is an image.
        fps: frames per second; of an image always 1.
    """

    width: int = 448
    height: int = 256
    frames: int = 24
    fps: int = 12

    def __post_init__(self) -> None:
        for name in "width", "height", "frames", "fps":
            if getattr(self, name) < 1:
                raise ConfigError("out of range", where=f"clip.{name}", got=getattr(self, name), expected="1 or more")
        if self.frames == 1:
            object.__setattr__(self, "fps", 1)

    @property
    def duration(self) -> int:
        """Whole seconds, at least one."""
        return max(1, round(self.frames / self.fps))
