"""How much of clips comes back."""

from __future__ import annotations

import torch
from torch import Tensor

from lumos_pl.tokenizers.reconstruction import PSNR_CEILING, mean_motion_kept, mean_psnr, motion_kept
from lumos_pl.weighted_mean import WeightedMean


def still() -> Tensor:
    return torch.full((5, 16, 16, 3), 7, dtype=torch.uint8)


def moving(brightness: int = 200, thickness: int = 1) -> Tensor:
    """A line that falls."""
    frames = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    for place, frame in enumerate(frames):
        frame[place : place + thickness] = brightness
    return frames


def test_motion_is_kept_where_it_is() -> None:
    made = torch.stack([moving(), moving(100), moving().flip(1), still(), moving()])
    true = torch.stack([moving(), moving(), moving(), moving(), still()])
    kept = motion_kept(made, true)
    assert torch.allclose(kept[:4], torch.tensor([1, 0.5, 0, 0])) and kept[4].isnan()


def test_clips_count_alike_and_still_ones_not_at_all() -> None:
    """However much moves in them, and whatever batches they meet in."""
    true = torch.stack([moving(20), moving(200, thickness=4), still(), still()])
    made = torch.stack([moving(10), true[1], still(), still()])
    for sizes in ([4], [1, 1, 2], [1, 3]):
        mean = WeightedMean()
        for batch in zip(made.split(sizes), true.split(sizes), strict=True):
            mean.update(*mean_motion_kept(*batch))
        assert torch.isclose(mean.compute(), torch.tensor(0.75))
    mean.reset()
    mean.update(*mean_motion_kept(made[2:], true[2:]))
    assert mean.compute().isnan()


def test_a_clip_that_comes_back_exactly_does_not_hide_the_others() -> None:
    true = torch.stack([moving(), still(), moving()])
    made = torch.stack([moving(), still() + 51, moving()])
    mean = WeightedMean()
    for batch in zip(made.split([1, 2]), true.split([1, 2]), strict=True):
        mean.update(*mean_psnr(*batch))
    assert torch.isclose(mean.compute(), torch.tensor((2 * PSNR_CEILING + 13.979) / 3))
