"""The mean loss of each latent frame over many batches and all ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lumos_pl.batch import MaskedBatch
from lumos_pl.errors import ConfigError
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.machinery.reusable_metric import ReusableMetric

MAX_FRAMES = 64  # released clips have at most 22 latent frames; a fixed size lets ranks add up their sums


class FrameLoss(ReusableMetric):
    """Mean loss of the hidden tokens of each latent frame; exact even if frames hide different numbers of tokens.

    Batches with images are ignored: an image has no balance to show, and as frame 0 it would pull that frame's loss
    towards the images'. So are batches that count on another rank.
    """

    full_state_update = False
    loss_sum: Tensor
    token_count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("loss_sum", torch.zeros(MAX_FRAMES, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("token_count", torch.zeros(MAX_FRAMES, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, token_loss: Tensor, target_frames: Tensor, batch: MaskedBatch) -> None:
        """Add a batch, without synchronizing with the device.

        Args:
            token_loss: [M] loss of each target.
            target_frames: [M] its latent frame.
        Raises:
            ConfigError: a clip with more than MAX_FRAMES latent frames.
        """
        latent_frames = [spans.latent_frames for spans in batch.spans]
        if max(latent_frames) > MAX_FRAMES:
            raise ConfigError(
                "more latent frames than the per-frame losses hold",
                where=f"sample {batch.appearances[latent_frames.index(max(latent_frames))]}",
                got=max(latent_frames),
                expected=f"at most {MAX_FRAMES}",
                fix="train on shorter clips, or raise MAX_FRAMES in callbacks/frame_loss_metric.py",
            )
        if min(latent_frames) > 1 and batch.counts:
            sums, counts = frame_loss_sums(token_loss, target_frames, MAX_FRAMES)
            self.loss_sum += sums
            self.token_count += counts

    def compute(self) -> dict[int, float]:
        """Loss by latent frame. Frames without a target are absent; after images only, all of them are."""
        pairs = zip(self.loss_sum.tolist(), self.token_count.tolist(), strict=True)
        return {frame: loss_sum / count for frame, (loss_sum, count) in enumerate(pairs) if count}
