"""Clips that are drawn as a training asks for them."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules import drawn_clips
from data_modules.pixel_data import PixelDataConfig, PixelDataModule
from tests.data_modules.fake_trainer import fake_trainer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips that say what was asked for."""

    def draw(seed: int, number: int, *, frames: int, size: tuple[int, int], split: str) -> Tensor:
        clip = torch.full((frames, *size, 3), number % 256, dtype=torch.uint8)
        clip[..., 1], clip[..., 2] = seed, split == "val"
        return clip

    monkeypatch.setattr(drawn_clips, "draw_clip", draw)


def data(*, step: int = 0, rank: int = 0, ranks: int = 1, seed: int = 1, **changes: Any) -> PixelDataModule:
    drawn = "moving_pictures"
    settings = {"root": drawn, "val_root": drawn, "size": "16x8", "frames": 5, "batch_size": 3, "num_workers": 0}
    module = PixelDataModule(PixelDataConfig(**settings | changes), (4, 8, 8), seed=seed)
    module.setup("fit")
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks)
    return module


def numbers(module: PixelDataModule, n: int = 3) -> list[list[int]]:
    batches = islice(iter(module.train_dataloader()), n)
    return [batch.frames[:, 0, 0, 0, 0].tolist() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stream_goes_on_from_the_step_whoever_draws(workers: int) -> None:
    assert numbers(data(num_workers=workers)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    later = numbers(data(step=1, num_workers=workers))  # of two micro-batches
    assert later == [[6, 7, 8], [9, 10, 11], [12, 13, 14]]
    assert numbers(data(rank=1, ranks=2, num_workers=workers), 2) == [[3, 4, 5], [9, 10, 11]]


def test_validation_is_the_same_for_every_seed_and_apart() -> None:
    loader = data(seed=7, val_batches=2).val_dataloader()
    batches = list(loader)  # type: ignore[arg-type]
    assert [batch.frames[:, 0, 0, 0].tolist() for batch in batches] == [
        [[0, 0, 1], [1, 0, 1], [2, 0, 1]],
        [[3, 0, 1], [4, 0, 1], [5, 0, 1]],
    ]
    (first,) = islice(iter(data(seed=7).train_dataloader()), 1)
    assert first.frames.shape == (3, 5, 8, 16, 3) and first.frames[0, 0, 0, 0].tolist() == [0, 7, 0]


def test_another_seed_is_another_training() -> None:
    assert data(seed=1).identity() == data(seed=1).identity() != data(seed=2).identity()
