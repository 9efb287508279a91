"""How well a visual tokenizer's pictures come back, and how much of its codebook it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lumos_pl.machinery.reusable_metric import ReusableMetric
from lumos_pl.tokenizers.visual import VisualTokenizer

# Of pictures of 8 bits that differ by no more than rounding does, variance 1/12: no measured difference is smaller.
PSNR_CEILING = 58.9


class PixelBatch(NamedTuple):
    """Clips as pixels.

    Args:
        frames: RGB uint8, [B, N, H, W, 3].
        names: the file of each clip, for messages.
        left_out: a line for each file that turned out unusable while these were loaded.
    """

    frames: Tensor
    names: Sequence[str]
    left_out: Sequence[str] = ()


def reconstruct(tokenizer: VisualTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Through the codes and back: RGB uint8 [B, N, H, W, 3] to the same, and the codes [B, T, h, w]."""
    codes = tokenizer.encode(frames)
    return tokenizer.decode(codes)[:, : frames.shape[1]], codes


def mean_psnr(reconstruction: Tensor, frames: Tensor) -> tuple[Tensor, int]:
    """The mean of the clips' signal-to-noise ratios in dB, each at most PSNR_CEILING, and how many clips there are.

    Both are for `WeightedMean`. A dictionary gives clips that it holds back exactly, which without a ceiling were an
    infinite mean of all.

    Args:
        reconstruction, frames: RGB from 0 to 255, [B, N, H, W, 3].
    """
    error = (reconstruction.float() - frames.float()).square().flatten(1).mean(1)
    ratios = 10 * torch.log10(255**2 / error)  # torchmetrics' would have a GPU wait for the host
    return ratios.clamp(max=PSNR_CEILING).mean(), len(frames)


def motion_kept(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Share of each clip's change from frame to frame that comes back at its place, of clips [B, N, H, W, 3]; [B].

    The change's energy is what it is a share of: 1 is all of it, 0 none. NaN: nothing changes in the clip. A mean of
    several clips (`mean_motion_kept`) leaves these out and counts the others alike, however much moves in them, as that
    of PSNR does: weighed by energy, one clip of a panning camera would hide that small things were lost in all others.
    """
    true, made = frames.float().diff(dim=1), reconstruction.float().diff(dim=1)
    return (true * made).sum((1, 2, 3, 4)) / true.square().sum((1, 2, 3, 4))


def mean_motion_kept(reconstruction: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of `motion_kept` over the clips in which something changes, and how many: for `WeightedMean`."""
    share = motion_kept(reconstruction, frames)
    moving = share.isfinite().sum()
    return share.nan_to_num().sum() / moving.clamp(min=1), moving


class CodebookUse(ReusableMetric):
    """How the codes that occur are spread over the codebook."""

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`used`: share of the codes that occurred; `perplexity`: as many equally likely codes are as uncertain."""
        share = self.counts / self.counts.sum()
        return {"used": (self.counts > 0).float().mean(), "perplexity": torch.special.entr(share).sum().exp()}
