"""How well a visual tokenizer reconstructs pictures, and how much of its codebook it uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lumos_pl.machinery.reusable_metric import ReusableMetric
from lumos_pl.tokenizers.visual import VisualTokenizer

# PSNR of 8-bit pictures that differ only by rounding, variance 1/12: no measured difference is smaller.
PSNR_CEILING = 58.9


class PixelBatch(NamedTuple):
    """Clips as pixels.

    Args:
        frames: RGB uint8, [B, N, H, W, 3].
        names: the file of each clip, for messages.
        left_out: a line for each file that turned out to be unusable while loading these.
    """

    frames: Tensor
    names: Sequence[str]
    left_out: Sequence[str] = ()


def reconstruct(tokenizer: VisualTokenizer, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Encode and decode: RGB uint8 [B, N, H, W, 3] to the same, and the codes, [B, T, h, w]."""
    codes = tokenizer.encode(frames)
    return tokenizer.decode(codes)[:, : frames.shape[1]], codes


def mean_psnr(reconstruction: Tensor, frames: Tensor) -> tuple[Tensor, int]:
    """The mean PSNR of the clips in dB, each at most PSNR_CEILING, and the number of clips.

    Both are for `WeightedMean`. A dictionary reconstructs clips that it holds exactly; without a ceiling these would
    make the mean infinite.

    Args:
        reconstruction, frames: RGB from 0 to 255, [B, N, H, W, 3].
    """
    error = (reconstruction.float() - frames.float()).square().flatten(1).mean(1)
    ratios = 10 * torch.log10(255**2 / error)  # torchmetrics' version would synchronize with the GPU
    return ratios.clamp(max=PSNR_CEILING).mean(), len(frames)


def motion_kept(reconstruction: Tensor, frames: Tensor) -> Tensor:
    """Share of each clip's change from frame to frame that is reconstructed in place; clips [B, N, H, W, 3], [B].

    It is the share of the change's energy: 1 is all of it, 0 none, NaN if nothing changes in the clip. The mean of
    several clips (`mean_motion_kept`) skips the latter and weights the others equally, however much moves in them, as
    with PSNR: weighted by energy, one panning clip would hide that small things were lost in all others.
    """
    true, made = frames.float().diff(dim=1), reconstruction.float().diff(dim=1)
    return (true * made).sum((1, 2, 3, 4)) / true.square().sum((1, 2, 3, 4))


def mean_motion_kept(reconstruction: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of `motion_kept` over clips in which something changes, and how many there are: for `WeightedMean`."""
    share = motion_kept(reconstruction, frames)
    moving = share.isfinite().sum()
    return share.nan_to_num().sum() / moving.clamp(min=1), moving


class CodebookUse(ReusableMetric):
    """How the codes that occur are distributed over the codebook."""

    full_state_update = False
    counts: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codebook_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, codes: Tensor) -> None:
        self.counts += torch.bincount(codes.flatten(), minlength=len(self.counts))

    def compute(self) -> dict[str, Tensor]:
        """`used`: share of the codes that occurred; `perplexity`: how many equally likely codes have this entropy."""
        share = self.counts / self.counts.sum()
        return {"used": (self.counts > 0).float().mean(), "perplexity": torch.special.entr(share).sum().exp()}
