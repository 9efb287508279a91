from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from callbacks import reconstruction_grid
from callbacks.reconstruction_grid import ReconstructionGrid, paint_pair_animation, paint_pair_stills
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.tokenizers.reconstruction import PixelBatch, reconstruct
from lumos_pl.tokenizers.reconstruction_loss import ReconstructionConfig
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.callbacks.clips_to_show import clips
from tests.callbacks.tiny_run import events, make_trainer

RED, BLUE = (255, 0, 0), (0, 0, 255)


def rows_of(picture: Image.Image, color: tuple[int, int, int]) -> tuple[float, int]:
    """Mean row of a colour's pixels, and how many there are."""
    where = (np.asarray(picture.convert("RGB")).astype(int) - color == 0).all(-1)
    return float(np.nonzero(where)[0].mean()), int(where.sum())


@pytest.mark.parametrize(("frames", "columns"), [(17, 3), (2, 2), (1, 1)])
def test_the_truth_stands_above_its_reconstruction(frames: int, columns: int) -> None:
    encoded = paint_pair_stills("title", ["one"], clips(1, frames, RED), clips(1, frames, BLUE))
    with Image.open(BytesIO(encoded)) as picture:
        (red_row, n_red), (blue_row, n_blue) = rows_of(picture, RED), rows_of(picture, BLUE)
    assert red_row < blue_row
    assert n_red == n_blue == columns * (5 * 16) * (5 * 24)


def test_the_first_middle_and_last_frame_are_shown() -> None:
    truth = clips(1, 17, RED).clone()
    colors = {0: (10, 0, 0), 8: (0, 10, 0), 16: (0, 0, 10)}
    for frame, color in colors.items():
        truth[:, frame] = torch.tensor(color, dtype=torch.uint8)
    with Image.open(BytesIO(paint_pair_stills("title", ["one"], truth, clips(1, 17, BLUE)))) as picture:
        for color in colors.values():
            assert rows_of(picture, color)[1] == 80 * 120


def test_the_animation_has_every_frame() -> None:
    grey = torch.arange(5, dtype=torch.uint8) * 40
    truth = grey[None, :, None, None, None].repeat(2, 1, 16, 24, 3)
    truth[:, 3] = torch.tensor(BLUE, dtype=torch.uint8)
    with Image.open(BytesIO(paint_pair_animation("title", truth, clips(2, 5, (0, 255, 0)), fps=8))) as picture:
        assert getattr(picture, "n_frames", 1) == 5 and picture.info["duration"] in (120, 125)  # a GIF counts in 10 ms
        picture.seek(3)
        blue_row, n_blue = rows_of(picture, BLUE)
        assert n_blue == 2 * 80 * 120 and blue_row < rows_of(picture, (0, 255, 0))[0]


def loader(batches: list[PixelBatch]) -> Any:
    return torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("frames", [1, 5])
def test_a_run_draws_training_and_validation(frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painted = []

    def spy(title: str, names: list[str], truth: Tensor, reconstruction: Tensor) -> bytes:
        painted.append((title, names, truth, reconstruction))
        return paint_pair_stills(title, names, truth, reconstruction)

    monkeypatch.setattr(reconstruction_grid, "paint_pair_stills", spy)
    config = TokenizerConfig(levels=[4, 4], width=8, patch_width=4, blocks=1)
    module = TokenizerModule(config, ReconstructionConfig(), OptimizerConfig())
    batches = [PixelBatch(clips(3, frames), [f"{i}/{k}" for k in range(3)]) for i in range(4)]
    grid = ReconstructionGrid(2, 2, fps=8)
    trainer = make_trainer(tmp_path, [grid], steps=4, val_check_interval=4, num_sanity_val_steps=0)
    trainer.fit(module, loader(batches), loader(batches[2:]))
    assert [(title, names) for title, names, *_ in painted] == [
        ("train, step 1", ["1/0", "1/1"]),
        ("train, step 3", ["3/0", "3/1"]),
        ("val, step 3", ["2/0", "2/1"]),
    ]
    truth, reconstruction = painted[-1][2:]
    assert torch.equal(truth, batches[2].frames[:2])
    assert torch.equal(reconstruction, reconstruct(module.net, truth)[0])
    log = events(tmp_path)
    assert [image.step for image in log.Images("reconstruction/train")] == [1, 3]
    assert [image.step for image in log.Images("reconstruction/val")] == [3]
    videos = {tag for tag in log.Tags()["images"] if tag.endswith("_video")}
    assert videos == ({"reconstruction/train_video", "reconstruction/val_video"} if frames > 1 else set())
