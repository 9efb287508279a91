"""Drawn moving pictures: a function of their number, and like photographs in what matters to a tokenizer."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lumos_pl.moving_pictures.canvas import SIDE, draw_canvas
from lumos_pl.moving_pictures.clip import draw_clip

N = 6


@pytest.fixture(scope="module")
def clips() -> Tensor:
    return torch.stack([draw_clip(0, number, frames=5, size=(32, 48)) for number in range(N)])


def test_a_clip_is_a_function_of_seed_split_and_number(clips: Tensor) -> None:
    assert clips.shape == (N, 5, 32, 48, 3) and clips.dtype == torch.uint8
    assert torch.equal(draw_clip(0, 3, frames=5, size=(32, 48)), clips[3])
    others = [draw_clip(1, 3, frames=5, size=(32, 48)), draw_clip(0, 3, frames=5, size=(32, 48), split="val")]
    for other in others:
        assert not torch.equal(other, clips[3])
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips)


def test_brightness_falls_with_frequency_as_in_photographs() -> None:
    """Amplitude about as 1 / f; Field, 1987."""
    powers = []
    window = np.hanning(SIDE)[:, None] * np.hanning(SIDE)
    for seed in range(3):
        whole, *smaller = draw_canvas(np.random.default_rng(seed), sparse=False)
        assert whole.shape == (4, SIDE, SIDE) and [len(level[0]) for level in smaller] == [192, 96, 48]
        assert (whole[3] > 0.999).all() and whole.min() >= 0 and whole.max() <= 1.001
        grey = whole[:3].mean(0).numpy()
        powers.append(np.abs(np.fft.fft2((grey - grey.mean()) * window)))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE)[None])
    edges = np.geomspace(0.02, 0.4, 8)
    amplitude = [
        np.mean(powers, 0)[(frequency >= low) & (frequency < high)].mean() for low, high in itertools.pairwise(edges)
    ]
    slope = np.polyfit(np.log(edges[:-1]), np.log(amplitude), 1)[0]
    assert -1.7 < slope < -0.8


def test_most_clips_move_and_colours_differ_less_than_brightness(clips: Tensor) -> None:
    values = clips.float()
    moving = (values[:, 1:] - values[:, :-1]).abs().mean((1, 2, 3, 4)) > 0.5
    assert moving.float().mean() > 0.4
    brightness, hue = values.mean(-1), values[..., 0] - values[..., 2]
    assert brightness.flatten(1).std(1).mean() > hue.flatten(1).std(1).mean() / 2
