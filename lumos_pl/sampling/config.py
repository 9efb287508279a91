"""How frames are drawn: refinement, guidance, and what later frames see of a finished one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lumos_pl.layout import whole_seconds
from lumos_pl.masking import SCHEDULES
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import above, at_least, between, check_ranges, optional

GivenContext = Literal["visible", "partial"]
ConfidenceAnneal = Literal["per_frame", "release"]

FPS = between(1, 1000)
DIVIDES = 1e-37  # a GPU divides by multiplying with 1/x, which overflows fp32 for smaller x


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How codes are drawn. Defaults are the release's for T2V and I2V (T2I: guidance 16); arXiv:2507.08801.

    Args:
        steps: refinement steps of a frame.
        guidance: scale g of classifier-free guidance (CFG), u + g * (c - u); at 1 the branch without text is skipped.
        partial_context: rho, the share of a finished frame's content that later frames see as MASK, which leaves
            them a partial context; at least one position, as in training.
        schedule: how the share of hidden codes falls over the steps, see `SCHEDULES`.
        temperature: divides the logits that codes are drawn from.
        top_k: draw among the k likeliest codes only.
        top_p: draw among the likeliest codes only, the fewest whose probabilities add up to this.
        confidence_temperature: scale of the Gumbel noise on the confidence that decides which codes stay.
        confidence_anneal: `per_frame`: the noise falls linearly to 0 over the steps of every frame.
            `release`: it falls as the running product of those factors, and is never reset, so that
            every frame after the first has none.
        given_context: `visible`: later frames see given frames whole, as in training with given frames and
            as in the release. `partial`: they see them like generated ones, which is all that a model trained
            without given frames knows.
        greedy: take the likeliest code everywhere, without noise on the confidence.
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
    given_context: GivenContext = "visible"
    greedy: bool = False

    def __post_init__(self) -> None:
        check_kind(self.schedule, SCHEDULES, "sampling.schedule")
        check_ranges(
            "sampling",
            self,
            steps=between(1, 10**6),
            guidance=at_least(0),
            partial_context=between(0, 1),
            temperature=above(DIVIDES, words=f"above {DIVIDES} (or set greedy)"),
            top_k=optional(at_least(1)),
            top_p=optional(above(DIVIDES, up_to=1)),
            confidence_temperature=at_least(0),
        )

    def idle(self) -> dict[str, str]:
        """See settings/idle.py."""
        if self.greedy:
            of_chance = ("temperature", "top_k", "top_p", "confidence_temperature", "confidence_anneal")
            return dict.fromkeys(of_chance, "greedy")
        return {} if self.confidence_temperature else {"confidence_anneal": "confidence_temperature"}


@dataclass(frozen=True, kw_only=True)
class ClipFormat:
    """The size of a clip.

    Args:
        width, height: in pixels.
        frames: number of RGB frames; 1 is an image.
        fps: frames per second; always 1 for an image.
    """

    width: int = 448
    height: int = 256
    frames: int = 24
    fps: int = 12

    def __post_init__(self) -> None:
        side = between(1, 1 << 16)
        check_ranges("clip", self, width=side, height=side, frames=between(1, 10**6), fps=FPS)
        if self.frames == 1:
            object.__setattr__(self, "fps", 1)

    @property
    def duration(self) -> int:
        """In whole seconds, at least one."""
        return whole_seconds(self.frames, self.fps)
