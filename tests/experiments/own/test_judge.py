"""Figures of clips that need no weights from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.own.judge import PSNR_CEILING, ColourJudge, Frames, histogram, mean_colours, psnr


def plain(*colour: int) -> Frames:
    return np.full((5, 16, 16, 3), colour, np.uint8)


def moving() -> Frames:
    frames = plain(0, 0, 0).copy()
    for place, frame in enumerate(frames):
        frame[place] = 200
    return frames


def test_psnr_is_of_the_clip() -> None:
    assert psnr(plain(10, 10, 10), plain(10, 10, 10)) == PSNR_CEILING
    assert psnr(plain(0, 0, 0), plain(255, 255, 255)) == pytest.approx(0)
    assert psnr(plain(100, 100, 100), plain(110, 110, 110)) == pytest.approx(28.13, abs=0.01)


def test_blocks_at_the_border_are_what_is_left() -> None:
    frames = np.zeros((2, 12, 20, 3), np.uint8)
    frames[:, 8:, 16:18] = 100
    frames[:, 8:, 18:] = 50
    painted = mean_colours(frames)
    assert (painted[:, 8:, 16:] == 75).all() and painted.sum() == 75 * 3 * 2 * 16


def test_blocks_are_painted_in_their_mean_colours() -> None:
    frames = plain(0, 0, 0).copy()
    frames[:, :4, :8] = 100
    painted = mean_colours(frames)
    assert (painted[:, :8, :8] == 50).all()
    assert not painted[:, 8:].any()


def test_colours_tell_whose_clip_it_is() -> None:
    assert histogram(moving()).sum() == pytest.approx(1)
    judge = ColourJudge([plain(200, 0, 0), plain(0, 200, 0)], ["red", "green"])
    half = plain(0, 210, 0).copy()
    half[:, :6] = (200, 0, 0)
    assert [judge.caption(clip) for clip in (plain(210, 10, 10), half)] == ["red", "green"]
