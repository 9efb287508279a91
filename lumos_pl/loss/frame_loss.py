"""The loss of each latent frame, exact: from every token's own frame."""

from __future__ import annotations

import torch
from torch import Tensor


def frame_loss_sums(token_loss: Tensor, target_frames: Tensor, latent_frames: int) -> tuple[Tensor, Tensor]:
    """Sum and count of the token losses of each latent frame.

    Args:
        token_loss: [M].
        target_frames: latent frame of each token, [M], below `latent_frames`.
    Returns:
        sums and counts, each [latent_frames] in fp64, so that sums over an epoch stay exact.
    """
    sums = torch.zeros(latent_frames, dtype=torch.float64, device=token_loss.device)
    counts = torch.zeros_like(sums)
    sums.index_add_(0, target_frames, token_loss.double())
    counts.index_add_(0, target_frames, torch.ones_like(token_loss, dtype=torch.float64))
    return sums, counts
