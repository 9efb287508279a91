"""What a tokenizer's reconstructions are trained for: the terms of its loss; a weight of 0 skips a term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.settings.ranges import at_least, check_ranges

SCALES = 3  # of the multi-scale terms: the picture, halved, and halved again
OF_LEVELS = ("spread_weight", "margin_weight")  # terms about rounding, which only the kind `fsq` does
LOG_FLOOR = 1e-3  # added to the mean squared error in [-1, 1]; 36 dB: no incentive beyond


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """What reconstructions are trained for, in units of [-1, 1].

    Args:
        mse_weight: weight of the mean squared error.
        l1_weight: weight of the mean absolute error.
        log_weight: weight of the logarithm of each clip's mean squared error, as in PSNR: clips of little contrast
            count as much as those of high contrast.
        scales_weight: weight of the mean absolute error of the picture halved once, twice, and so on.
        edges_weight: weight of the mean absolute error of differences between neighbouring pixels, at these scales.
        moving_weight: weight of the squared error where the picture changes, each pixel weighted by its share of its
            clip's whole change, so that small moving things are not lost.
        spread_weight: weight of how unevenly a batch uses each channel's levels, 0 to 1.
        margin_weight: weight of the squared distance to the middle of a level, before rounding. Without it, channels
            of plain areas settle between two levels, and the noise of video coding flips their codes: entropy that
            a language model then has to pay for.
    """

    mse_weight: float = 1.0
    l1_weight: float = 0.1
    log_weight: float = 0.0
    scales_weight: float = 0.0
    edges_weight: float = 0.0
    moving_weight: float = 0.0
    spread_weight: float = 0.0
    margin_weight: float = 0.1

    def __post_init__(self) -> None:
        check_ranges("loss", self, **{item.name: at_least(0) for item in fields(self)})


def picture_loss(config: ReconstructionConfig, reconstruction: Tensor, pictures: Tensor) -> Tensor:
    """The weighted sum of the pixel terms; reconstruction and pictures [B, 3, N, H, W] in [-1, 1]."""
    error = reconstruction.float() - pictures
    terms: list[tuple[float, Callable[[], Tensor]]] = [
        (config.mse_weight, lambda: error.square().mean()),
        (config.l1_weight, lambda: error.abs().mean()),
        (config.log_weight, lambda: (error.square().flatten(1).mean(1) + LOG_FLOOR).log().mean()),
        (config.scales_weight, lambda: _mean([scaled.abs().mean() for scaled in halves(error)[1:]])),
        (config.edges_weight, lambda: _mean([edges(scaled) for scaled in halves(error)])),
        (config.moving_weight, lambda: moving_error(error, pictures)),
    ]
    return _sum([weight * term() for weight, term in terms if weight], like=error)


def level_loss(config: ReconstructionConfig, bounded: Tensor, off_level: Tensor, levels: Tensor) -> Tensor:
    """The weighted sum of the level terms.

    Args:
        bounded, off_level: levels before rounding, and their distances to whole ones, both [B, T, h, w, n].
        levels: number of levels of each channel, [n].
    """
    terms: list[tuple[float, Callable[[], Tensor]]] = [
        (config.margin_weight, lambda: off_level.square().mean()),
        (config.spread_weight, lambda: unevenness(bounded, levels)),
    ]
    return _sum([weight * term() for weight, term in terms if weight], like=off_level)


def halves(error: Tensor) -> list[Tensor]:
    """Frames [B, 3, N, H, W] at `SCALES` scales, each averaging 2 x 2 of the one before, as [B * N, 3, h, w]."""
    scaled = [error.transpose(1, 2).flatten(0, 1)]
    while len(scaled) < SCALES and min(scaled[-1].shape[-2:]) > 1:
        scaled.append(F.avg_pool2d(scaled[-1], 2))
    return scaled


def edges(error: Tensor) -> Tensor:
    """Mean absolute difference of vertical and horizontal neighbours; [..., H, W] to a scalar."""
    return (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2


def moving_error(error: Tensor, pictures: Tensor) -> Tensor:
    """Mean over clips of the squared error, each pixel weighted by its share of the clip's change over time."""
    if pictures.shape[2] < 2:
        return error.new_zeros(())
    change = pictures.diff(dim=2).abs().mean(1, keepdim=True)
    share = change / change.mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-3)
    return (share * error[:, :, 1:].square()).mean()


def unevenness(bounded: Tensor, levels: Tensor) -> Tensor:
    """1 minus the normalized entropy of each channel's levels over a batch, averaged over channels.

    Each value counts for both levels around it, by its distance to them, so that there is a gradient.
    """
    lacking = []
    for values, n in zip(bounded.float().flatten(0, -2).unbind(-1), levels.long().tolist(), strict=True):
        near = (1 - (values[:, None].clamp(0, n - 1) - torch.arange(n, device=values.device)).abs()).clamp(min=0)
        entropy = torch.special.entr(near.mean(0)).sum()
        lacking.append(1 - entropy / torch.log(torch.tensor(float(n))))
    return _mean(lacking)


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean() if terms else torch.zeros(())


def _sum(terms: list[Tensor], *, like: Tensor) -> Tensor:
    return torch.stack(terms).sum() if terms else like.new_zeros(())
