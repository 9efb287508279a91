"""Which content tokens are hidden from the model: mask-ratio schedules and mask kinds.

A token_mask is [T, P], True = hidden, P = H * (W + 1) content positions of a frame. For a clip of
three frames with P = 6 and ratio 1/2 (`#` hidden):

    tube          random        diffusion_forcing   tube_decay
    # . # . . #   # # . . # .   # . . . . .         # . # . . #
    # . # . . #   . . # . # #   # # . # # #         # . # . # #
    # . # . . #   . # . # . .   . # . # . #         # # # # # #

Only the tube keeps the later frames from copying their hidden tokens from the earlier ones, which
is what balances the loss over frames (AR-DF, arXiv:2507.08801).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lumos_pl.ranges import between, check_ranges

MaskKind = Literal["tube", "random", "diffusion_forcing", "tube_decay"]
Schedule = Literal["cosine", "linear", "square", "sigmoid", "arccos"]


def schedule_ratio(schedule: Schedule, u: float) -> float:
    """Share of tokens hidden at progress `u`, falling from 1 at u = 0 to 0 at u = 1.

    In training u is uniform; at inference it is the share of refinement steps done.
    """
    match schedule:
        case "cosine":
            return math.cos(math.pi / 2 * u)
        case "linear":
            return 1 - u
        case "square":
            return 1 - u * u
        case "sigmoid":  # a logistic curve over [-3, 3], stretched to reach 1 and 0

            def logistic(x: float) -> float:
                return 1 / (1 + math.exp(-x))

            return (logistic(3) - logistic(6 * u - 3)) / (logistic(3) - logistic(-3))
        case "arccos":
            return math.acos(u) * 2 / math.pi
        case _:
            raise ValueError(f"schedule must be one of {Schedule}, got {schedule!r}")


def draw_ratio(schedule: Schedule, min_ratio: float, *, generator: Generator) -> float:
    """A mask ratio of training: max(min_ratio, schedule(u)), u ~ U(0, 1)."""
    u = torch.rand((), generator=generator).item()
    return max(min_ratio, schedule_ratio(schedule, u))


def _hide(ratio: float, n_positions: int, *, generator: Generator) -> Tensor:
    """max(1, round(ratio * n)) random positions, [n]."""
    order = torch.randperm(n_positions, generator=generator)
    return order.argsort() < _count(ratio, n_positions)


def _count(ratio: float, n_positions: int) -> int:
    return max(1, round(ratio * n_positions))


def tube_mask(ratio: float, n_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """Hide the same positions in every frame: the temporal tube of AR-DF.

    Args:
        ratio: share of positions to hide, in (0, 1].
    Returns:
        token_mask, True = hidden, [n_frames, n_positions]; each frame hides
        max(1, round(ratio * n_positions)).
    """
    return _hide(ratio, n_positions, generator=generator).repeat(n_frames, 1)


def random_mask(ratio: float, n_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """Hide positions independently over the whole clip; [n_frames, n_positions]."""
    return _hide(ratio, n_frames * n_positions, generator=generator).view(n_frames, n_positions)


def diffusion_forcing_mask(ratios: list[float], n_positions: int, *, generator: Generator) -> Tensor:
    """Hide positions by an independent ratio and pattern in every frame; [len(ratios), n_positions]."""
    return torch.stack([_hide(ratio, n_positions, generator=generator) for ratio in ratios])


def tube_decay_mask(ratio: float, n_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """One permutation for the clip; the ratio rises linearly from `ratio` to 1 in the last frame.

    Returns:
        token_mask, [n_frames, n_positions]; each frame hides what the frame before it hides, and more.
    """
    rank = torch.randperm(n_positions, generator=generator).argsort()
    ratios = torch.linspace(ratio, 1, n_frames).tolist()
    return torch.stack([rank < _count(r, n_positions) for r in ratios])


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How training hides tokens.

    Args:
        kind: `tube` (AR-DF), or a baseline: `random`, `diffusion_forcing`, `tube_decay`.
        schedule: how the ratio follows from a uniform draw.
        min_ratio: the smallest ratio drawn.
    """

    kind: MaskKind = "tube"
    schedule: Schedule = "cosine"
    min_ratio: float = 0.7

    def __post_init__(self) -> None:
        check_ranges("mask", self, min_ratio=between(0, 1))


def draw_mask(config: MaskConfig, n_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """The token_mask of one sample, [n_frames, n_positions], with every draw from `generator`."""

    def ratio() -> float:
        return draw_ratio(config.schedule, config.min_ratio, generator=generator)

    kinds: dict[str, Callable[..., Tensor]] = {"tube": tube_mask, "random": random_mask, "tube_decay": tube_decay_mask}
    if config.kind == "diffusion_forcing":
        ratios = [ratio() for _ in range(n_frames)]
        return diffusion_forcing_mask(ratios, n_positions, generator=generator)
    return kinds[config.kind](ratio(), n_frames, n_positions, generator=generator)
