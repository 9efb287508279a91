"""Which content tokens are hidden from the model: mask-ratio schedules and mask kinds.

A token mask is [T, P], True = hidden, with P = H * (W + 1) content positions per latent frame. For a clip
of three latent frames with P = 6 and ratio 1/2 (`#` = hidden):

    tube          random        diffusion_forcing   tube_decay
    # . # . . #   # # . . # .   # . . . . .         # . # . . #
    # . # . . #   . . # . # #   # # . # # #         # . # . # #
    # . # . . #   . # . # . .   . # . # . #         # # # # # #

Only the tube keeps the later frames from copying their hidden tokens from the earlier ones, which
is what balances the loss over frames (AR-DF, arXiv:2507.08801).

    context_tube, the tube beginning at the second frame

    # . . . . .
    # . # . . #
    # . # . . #

    moving_tube, where the codes (H = 1) move to the right; the last position, a NEWLINE, stays

    # . # . . #
    . # . # . #
    . . # . # #
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Generator, Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import between, check_ranges

Schedule = Callable[[float], float]
"""Share of tokens hidden at progress u, falling from 1 at u = 0 to 0 at u = 1."""


def sigmoid_schedule(u: float) -> float:
    """A logistic curve over [-3, 3], stretched to reach 1 and 0."""

    def logistic(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    return (logistic(3) - logistic(6 * u - 3)) / (logistic(3) - logistic(-3))


SCHEDULES: dict[str, Schedule] = {
    "cosine": lambda u: math.cos(math.pi / 2 * u),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u * u,
    "sigmoid": sigmoid_schedule,
    "arccos": lambda u: math.acos(u) * 2 / math.pi,
}


def schedule_ratio(schedule: str, u: float) -> float:
    """Share of tokens hidden at progress `u` by a schedule of `SCHEDULES`.

    In training u is uniform; at inference it is the share of refinement steps done.

    Raises:
        ConfigError: a custom schedule returned something else than a share.
    """
    ratio = SCHEDULES[schedule](u)
    if not (isinstance(ratio, int | float) and 0 <= ratio <= 1):
        raise ConfigError("a schedule must give a share", where=f"{schedule}({u})", got=ratio, expected="0 to 1")
    return ratio


def draw_ratio(schedule: str, min_ratio: float, *, generator: Generator) -> float:
    """Draw a mask ratio for training: max(min_ratio, schedule(u)), u ~ U(0, 1)."""
    u = torch.rand((), generator=generator).item()
    return max(min_ratio, schedule_ratio(schedule, u))


def _hide(ratio: float, n_positions: int, *, generator: Generator) -> Tensor:
    """Choose max(1, round(ratio * n)) of n positions at random: True = hidden, [n]."""
    order = torch.randperm(n_positions, generator=generator)
    return order.argsort() < _count(ratio, n_positions)


def _count(ratio: float, n_positions: int) -> int:
    return max(1, round(ratio * n_positions))


def tube_mask(ratio: float, latent_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """Temporal tube masking, as in AR-DF: a tube mask hides the same positions in every latent frame.

    Args:
        ratio: share of positions to hide, in (0, 1].
    Returns:
        token_mask, True = hidden, [latent_frames, n_positions]; each frame hides
        max(1, round(ratio * n_positions)).
    """
    return _hide(ratio, n_positions, generator=generator).repeat(latent_frames, 1)


def random_mask(ratio: float, latent_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """Hide positions independently over the whole clip; token_mask, [latent_frames, n_positions]."""
    return _hide(ratio, latent_frames * n_positions, generator=generator).view(latent_frames, n_positions)


def diffusion_forcing_mask(ratios: list[float], n_positions: int, *, generator: Generator) -> Tensor:
    """Hide each frame by a ratio and a pattern of its own; token_mask, [len(ratios), n_positions]."""
    return torch.stack([_hide(ratio, n_positions, generator=generator) for ratio in ratios])


def tube_decay_mask(ratio: float, latent_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """Hide more and more in one order: the ratio rises linearly from `ratio` in the first frame to 1 in the last.

    Returns:
        token_mask, [latent_frames, n_positions]; each frame hides all that the frame before it hides, and more.
    """
    rank = torch.randperm(n_positions, generator=generator).argsort()
    ratios = torch.linspace(ratio, 1, latent_frames).tolist()
    return torch.stack([rank < _count(r, n_positions) for r in ratios])


def context_tube_mask(ratio: float, latent_frames: int, n_positions: int, *, generator: Generator) -> Tensor:
    """A tube from some frame on; before it independent holes, like the partial context that sampling shows.

    The tube begins at a frame drawn uniformly. Each frame before it hides the same share of its positions, drawn
    uniformly for the clip, in a pattern of its own. So every frame is trained behind every partial context.

    Args:
        ratio: of the tube, in (0, 1].
    Returns:
        token_mask, [latent_frames, n_positions].
    """
    begin = int(torch.randint(latent_frames, (), generator=generator))
    share = torch.rand((), generator=generator).item()
    before = [_hide(share, n_positions, generator=generator) for _ in range(begin)]
    return torch.stack([*before, *tube_mask(ratio, latent_frames - begin, n_positions, generator=generator)])


MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # (rows, columns) per latent frame: right, left, down, up


def motion_of(codes: Tensor) -> tuple[int, int]:
    """How many rows and columns a clip moves from one latent frame to the next: one of `MOVES`, or (0, 0).

    The best move explains the most changed codes as copies of the code beside them, and must explain more than half.
    The first frame does not count: it is a single picture, whose codes differ from those that follow.

    Args:
        codes: [T, H, W].
    """
    before, after = codes[1:-1], codes[2:]
    changed = before != after
    came = [int(((before.roll(move, (1, 2)) == after) & changed).sum()) for move in MOVES]
    most = max(came, default=0)
    return MOVES[came.index(most)] if 2 * most > int(changed.sum()) else (0, 0)


def moving_tube_mask(ratio: float, codes: Tensor, *, generator: Generator) -> Tensor:
    """A tube that moves with the picture, wrapping around so that every frame hides the same number of positions.

    NEWLINEs move up and down only.

    Args:
        codes: of the latent frames to mask, [T, H, W].
    Returns:
        token_mask, [T, H * (W + 1)].
    """
    latent_frames, rows, cols = codes.shape
    pattern = _hide(ratio, rows * (cols + 1), generator=generator).view(rows, cols + 1)
    down, right = motion_of(codes)
    moved = [
        torch.cat(
            [pattern[:, :cols].roll((frame * down, frame * right), (0, 1)), pattern[:, cols:].roll(frame * down, 0)], 1
        )
        for frame in range(latent_frames)
    ]
    return torch.stack(moved).flatten(1)


class MaskKind(Protocol):
    """One way to hide tokens."""

    def __call__(
        self, ratio: Callable[[], float], latent_frames: int, n_positions: int, /, *, generator: Generator
    ) -> Tensor:
        """The token_mask of one clip, True = hidden, bool [latent_frames, n_positions].

        Args:
            ratio: draws a share of positions to hide, in (0, 1]; call it once, or once per frame.
            n_positions: of a frame, H * (W + 1), row by row.
            generator: the only source of randomness.
        """
        ...


def _of_one_ratio(mask: Callable[..., Tensor]) -> MaskKind:
    def kind(ratio: Callable[[], float], latent_frames: int, n_positions: int, /, *, generator: Generator) -> Tensor:
        return mask(ratio(), latent_frames, n_positions, generator=generator)

    return kind


def _of_a_ratio_each(
    ratio: Callable[[], float], latent_frames: int, n_positions: int, /, *, generator: Generator
) -> Tensor:
    return diffusion_forcing_mask([ratio() for _ in range(latent_frames)], n_positions, generator=generator)


class OfCodes:
    """A kind that looks at the codes before it hides them; without codes it is the plain tube.

    Args:
        mask: called with a ratio and a clip's codes, [T, H, W].
    """

    def __init__(self, mask: Callable[..., Tensor]) -> None:
        self._mask = mask

    def __call__(
        self,
        ratio: Callable[[], float],
        latent_frames: int,
        n_positions: int,
        /,
        *,
        generator: Generator,
        codes: Tensor | None = None,
    ) -> Tensor:
        if codes is None:
            return tube_mask(ratio(), latent_frames, n_positions, generator=generator)
        return self._mask(ratio(), codes, generator=generator)


MASK_KINDS: dict[str, MaskKind] = {
    "tube": _of_one_ratio(tube_mask),
    "random": _of_one_ratio(random_mask),
    "diffusion_forcing": _of_a_ratio_each,
    "tube_decay": _of_one_ratio(tube_decay_mask),
    "context_tube": _of_one_ratio(context_tube_mask),
    "moving_tube": OfCodes(moving_tube_mask),
}


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How training hides tokens.

    Args:
        kind: `tube` (AR-DF), or a baseline: `random`, `diffusion_forcing`, `tube_decay`; or `context_tube`, a tube
            behind partial contexts like those of sampling; or `moving_tube`, which follows what moves; see
            `MASK_KINDS`.
        schedule: how the ratio follows from a uniform draw, see `SCHEDULES`.
        min_ratio: the smallest ratio drawn.
        other: another kind, used for a share of the samples; null: none.
        other_share: that share at the first and at the last step of the training, linear in between.
        self_forcing: share of the batches in which some visible codes are the model's own: it draws codes at the hidden
            places in a pass without gradient, then other places are hidden and trained as usual.
    """

    kind: str = kind_field("tube", MASK_KINDS)
    schedule: str = kind_field("cosine", SCHEDULES)
    min_ratio: float = 0.7
    other: str | None = None
    other_share: list[float] = field(default_factory=lambda: [0.5, 0.5])
    self_forcing: float = 0.0

    def __post_init__(self) -> None:
        check_kind(self.kind, MASK_KINDS, "mask.kind")
        check_kind(self.schedule, SCHEDULES, "mask.schedule")
        if self.other is not None:
            check_kind(self.other, MASK_KINDS, "mask.other")
        share = between(0, 1)
        check_ranges("mask", self, min_ratio=share, self_forcing=share)
        if len(self.other_share) != 2:
            raise ConfigError("must be two numbers", where="mask.other_share", got=self.other_share)
        for place, end in enumerate(self.other_share):
            share.check(f"mask.other_share[{place}]", end)

    def idle(self) -> dict[str, str]:
        """See settings/idle.py."""
        return {"other_share": "other"} if self.other is None else {}

    def drawn_kind(self, progress: float, *, generator: Generator) -> str:
        """Draw the kind of one sample's mask; if there is no other kind, nothing is drawn."""
        if self.other is None:
            return self.kind
        first, last = self.other_share
        is_other = torch.rand((), generator=generator).item() < first + (last - first) * progress
        return self.other if is_other else self.kind


def draw_mask(
    config: MaskConfig,
    latent_frames: int,
    n_positions: int,
    *,
    generator: Generator,
    progress: float = 0.0,
    codes: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Draw the token_mask of one sample, [latent_frames, n_positions], with every draw from `generator`.

    Args:
        progress: of the training, 0 to 1.
        codes: returns the codes to mask, [latent_frames, H, W], for kinds that look at them.
    Raises:
        ConfigError: a custom kind returned something that is not a token_mask, or hides nothing.
    """
    ratio = partial(draw_ratio, config.schedule, config.min_ratio, generator=generator)
    kind = config.drawn_kind(progress, generator=generator)
    hide = MASK_KINDS[kind]
    if isinstance(hide, OfCodes) and codes is not None:
        hide = partial(hide, codes=codes())
    mask = hide(ratio, latent_frames, n_positions, generator=generator)
    expected = f"a token_mask, bool [{latent_frames}, {n_positions}] on the CPU, that hides something"
    if not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == (latent_frames, n_positions)):
        got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise ConfigError("no token_mask", where=f"mask.kind {kind}", got=got, expected=expected)
    if not mask.any():
        raise ConfigError("no token is hidden", where=f"mask.kind {kind}", expected=expected)
    return mask
