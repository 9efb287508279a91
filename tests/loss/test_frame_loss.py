from __future__ import annotations

import torch

from lumos_pl.loss.frame_loss import frame_loss_sums


def test_every_token_counts_for_its_own_frame() -> None:
    sums, counts = frame_loss_sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [10, 0, 5, 0]
    assert counts.tolist() == [2, 0, 2, 0]
