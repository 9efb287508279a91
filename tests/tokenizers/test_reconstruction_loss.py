"""The terms of a tokenizer's loss against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from lumos_pl.seeding import generator
from lumos_pl.tokenizers.reconstruction_loss import (
    LOG_FLOOR,
    ReconstructionConfig,
    level_loss,
    picture_loss,
)

OFF = dict.fromkeys(
    ["mse_weight", "l1_weight", "log_weight", "scales_weight", "edges_weight", "moving_weight", "spread_weight"], 0.0
) | {"margin_weight": 0.0}
PICTURES = torch.rand(2, 3, 3, 8, 8, generator=generator(0, "pictures")) * 2 - 1
MADE = torch.rand(2, 3, 3, 8, 8, generator=generator(0, "made")) * 2 - 1


def term(name: str) -> float:
    return float(picture_loss(ReconstructionConfig(**OFF | {name: 2.0}), MADE, PICTURES)) / 2


def halved(picture: list[list[float]]) -> list[list[float]]:
    n = len(picture) // 2
    return [
        [sum(picture[2 * y + i][2 * x + j] for i in (0, 1) for j in (0, 1)) / 4 for x in range(n)] for y in range(n)
    ]


def scales_of_errors() -> list[list[list[list[float]]]]:
    """By scale: the error of each channel of each frame, as rows."""
    first = (MADE - PICTURES).flatten(0, 2).tolist()
    second = [halved(picture) for picture in first]
    return [first, second, [halved(picture) for picture in second]]


def test_log_is_each_clips_own() -> None:
    errors = [float((made - true).square().mean()) for made, true in zip(MADE, PICTURES, strict=True)]
    assert term("log_weight") == pytest.approx(sum(math.log(error + LOG_FLOOR) for error in errors) / 2)


def test_scales_are_errors_of_halved_pictures() -> None:
    means = []
    for pictures in scales_of_errors()[1:]:
        values = [abs(value) for picture in pictures for row in picture for value in row]
        means.append(sum(values) / len(values))
    assert term("scales_weight") == pytest.approx(sum(means) / 2)


def test_edges_are_differences_of_neighbours() -> None:
    means = []
    for pictures in scales_of_errors():
        n = len(pictures[0])
        beside = [abs(row[x + 1] - row[x]) for picture in pictures for row in picture for x in range(n - 1)]
        below = [abs(p[y + 1][x] - p[y][x]) for p in pictures for y in range(n - 1) for x in range(n)]
        means.append((sum(beside) / len(beside) + sum(below) / len(below)) / 2)
    assert term("edges_weight") == pytest.approx(sum(means) / 3)


def test_what_moves_counts_by_its_share_in_the_change() -> None:
    pictures = torch.zeros(1, 3, 3, 8, 8)
    pictures[:, :, 1:, 2, 3] = 1.0  # one pixel comes, in one of two steps
    config = ReconstructionConfig(**OFF | {"moving_weight": 1.0})
    made = pictures.clone()
    made[:, :, :, 5, 5] += 0.5  # wrong where nothing moves
    assert picture_loss(config, made, pictures).item() == 0
    made = pictures.clone()
    made[:, :, :, 2, 3] = 0.0  # the pixel is lost
    assert picture_loss(config, made, pictures).item() == pytest.approx(1.0)
    assert picture_loss(config, made[:, :, :1], pictures[:, :, :1]).item() == 0  # an image does not move


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 1.0, 2.0, 3.0], 0.0), ([2.0] * 4, 1.0), ([0.0, 1.0] * 2, 0.5), ([0.5] * 4, 0.5)]
)
def test_levels_that_are_not_taken_cost(values: list[float], expected: float) -> None:
    bounded = torch.tensor(values).reshape(1, 4, 1, 1, 1).requires_grad_()
    loss = level_loss(ReconstructionConfig(**OFF | {"spread_weight": 1.0}), bounded, bounded, torch.tensor([4]))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_without_weights_there_is_no_loss() -> None:
    config = ReconstructionConfig(**OFF)
    assert picture_loss(config, MADE, PICTURES).item() == 0
    assert level_loss(config, MADE, MADE, torch.tensor([4])).item() == 0
