"""A tokenizer that has learned nothing yet is a transform coder."""

from __future__ import annotations

import pytest
import torch

from lumos_pl.seeding import generator
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig
from lumos_pl.tokenizers.transform_start import start_as_transform


def started(**settings: object) -> FsqTokenizer:
    tokenizer = FsqTokenizer(TokenizerConfig(**settings))  # type: ignore[arg-type]
    start_as_transform(tokenizer, generator(0, "start"))
    return tokenizer


@pytest.mark.parametrize(("strides", "patch_width"), [([2, 4, 4], 12), ([1, 8, 8], 16), ([4, 2, 4], 6)])
def test_the_cells_channels_are_as_good_as_cosines(strides: list[int], patch_width: int) -> None:
    """In and out again, without codes: what is slow comes back whole, and the more channels the more."""
    t, h, w = strides
    tokenizer = started(levels=[8, 8, 8], strides=strides, width=3 * t * h * w, patch_width=patch_width, patch_blocks=1)
    y, x = torch.arange(2 * h) / (2 * h), torch.arange(2 * w) / (2 * w)
    slow = (torch.sin(3 * y)[:, None] + x * 0.5).expand(1, 3, 1 + t, -1, -1) * 0.5
    with torch.no_grad():
        cells = tokenizer.cell_in(_cells(tokenizer, slow))
        back = tokenizer.cell_out(cells)
        error = (_pictures(tokenizer, back) - slow).abs().max()
    assert error < 0.02 if patch_width < 3 * h * w // 4 else error < 1e-4


def _cells(tokenizer: FsqTokenizer, pictures: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    hook = tokenizer.cell_in.register_forward_hook(lambda _, given, __: caught.append(given[0]))
    tokenizer.to_levels(pictures)
    hook.remove()
    return caught[0]


def _pictures(tokenizer: FsqTokenizer, cells: torch.Tensor) -> torch.Tensor:
    hook = tokenizer.cell_out.register_forward_hook(lambda *_: cells)
    made = tokenizer.from_digits(torch.zeros(1, cells.shape[2], *cells.shape[3:], len(tokenizer.config.levels)))
    hook.remove()
    return made


def test_a_plain_picture_comes_back_through_the_codes() -> None:
    tokenizer = started(levels=[8, 8, 8, 5, 5, 5], width=64, patch_width=48, patch_blocks=0)
    frames = torch.full((1, 5, 16, 16, 3), 60, dtype=torch.uint8)
    frames[..., 0] = 140
    error = (tokenizer.decode(tokenizer.encode(frames)).float() - frames).abs().mean()
    assert error < 40


def test_half_of_the_codes_channels_take_all_their_levels_on_noise() -> None:
    tokenizer = started(levels=[8, 8, 8], width=64)
    pictures = torch.nn.functional.interpolate(
        torch.randn(64, 3, 5, 4, 4, generator=generator(0, "noise")), size=(5, 32, 32), mode="trilinear"
    )
    digits = tokenizer.to_digits(pictures.clamp(-1, 1))
    assert [len(channel.unique()) for channel in digits.flatten(0, -2).unbind(-1)] == [8, 8, 8]
