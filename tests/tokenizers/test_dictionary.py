"""A dictionary of patches: the nearest entry of each cell, and where its entries come from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from safetensors.torch import save
from torch import Tensor

from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.dictionary import DictionaryTokenizer
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.tokenizer_file import read_tokenizer
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import TokenizerConfig
from lumos_pl.tokenizers.visual import VisualTokenizer, to_rgb, to_unit
from tests.refusals import refused


def clip(frames: int, *, seed: int = 0, height: int = 16, width: int = 24, batch: int = 2) -> Tensor:
    """Every pixel of its own."""
    size = (batch, frames, height, width, 3)
    return torch.randint(0, 256, size, generator=generator(seed, "clip"), dtype=torch.uint8)


def filled(*clips: Tensor, entries: int = 64, strides: tuple[int, int, int] = (4, 8, 8)) -> DictionaryTokenizer:
    tokenizer = DictionaryTokenizer(TokenizerConfig(kind="dictionary", entries=entries, strides=list(strides)))
    tokenizer.fill(clips, generator(0, "dictionary"))
    return tokenizer


@pytest.mark.parametrize("strides", [(4, 8, 8), (2, 4, 8), (1, 2, 2)])
@pytest.mark.parametrize("frames", [1, 2, 5, 6, 17])
def test_shapes(frames: int, strides: tuple[int, int, int]) -> None:
    tokenizer: VisualTokenizer = filled(clip(9), entries=16, strides=strides)
    codes = tokenizer.encode(clip(frames))
    t, h, w = strides
    latent = 1 + -(-(frames - 1) // t)
    assert codes.shape == (2, latent, 16 // h, 24 // w) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < tokenizer.codebook_size == 16
    back = tokenizer.decode(codes)
    assert back.shape == (2, 1 + t * (latent - 1), 16, 24, 3) and back.dtype == torch.uint8


@pytest.mark.parametrize("entries", [2, 3, 7, 9])
def test_however_few_entries_are_asked_for_there_are_as_many(entries: int) -> None:
    assert len(filled(clip(9), entries=entries).still.unique(dim=0)) == entries


def test_filling_tells_how_far_it_is() -> None:
    tokenizer = DictionaryTokenizer(TokenizerConfig(kind="dictionary", entries=16))
    told: list[float] = []
    tokenizer.fill([clip(9), clip(9, seed=1)], generator(0, "dictionary"), on_progress=told.append)
    assert told == sorted(told) and 0 < told[0] < told[-1] == 1.0 and len(told) > 10


def test_each_cell_is_its_nearest_entry() -> None:
    tokenizer, frames = filled(clip(9, seed=1)), clip(9)
    with torch.no_grad():
        codes = tokenizer.encode(frames)
    still = tokenizer.still.detach().reshape(64, 3, 8, 8)
    moving = tokenizer.moving.detach().reshape(64, 3, 4, 8, 8)
    unit = frames.double() / 127.5 - 1
    for b, t, h, w in np.ndindex(2, 3, 2, 3):
        place = unit[b, :, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8].movedim(-1, 0)  # [3, N, 8, 8]
        cell, entries = (place[:, 0], still) if t == 0 else (place[:, 4 * t - 3 : 4 * t + 1], moving)
        distances = (entries.double() - cell).flatten(1).square().sum(1)
        assert codes[b, t, h, w] == distances.argmin()
        back = tokenizer.decode(codes)[b, :, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8].movedim(-1, 0)
        shown = ((entries[distances.argmin()] + 1) * 127.5).round()
        assert torch.equal((back[:, 0] if t == 0 else back[:, 4 * t - 3 : 4 * t + 1]).float(), shown)


def test_clips_whose_patches_are_all_in_it_come_back_as_they_are() -> None:
    frames = clip(9)  # 12 still patches, 24 moving ones
    tokenizer = filled(frames, entries=24)
    assert torch.equal(tokenizer.decode(tokenizer.encode(frames)), frames)
    assert torch.equal(tokenizer.encode(frames[:, :5]), tokenizer.encode(frames)[:, :2])
    assert torch.equal(tokenizer.encode(frames[:, :1]), tokenizer.encode(frames)[:, :1])


def test_entries_are_different_patches_the_same_for_a_seed() -> None:
    flat = torch.full((1, 5, 16, 24, 3), 7, dtype=torch.uint8)
    one, again = (filled(clip(9), flat, clip(9, seed=1), entries=20) for _ in range(2))
    assert torch.equal(one.moving, again.moving) and torch.equal(one.still, again.still)
    assert len(torch.unique(one.moving, dim=0)) == len(torch.unique(one.still, dim=0)) == 20
    nothing_else = filled(flat, entries=20)
    assert len(torch.unique(nothing_else.moving, dim=0)) == 1 and not nothing_else.encode(flat).any()
    assert torch.equal(nothing_else.decode(nothing_else.encode(flat)), flat)


def test_far_patches_are_drawn_first() -> None:
    """Of two thousand nearly equal patches and four others, the four are among ten entries."""
    crowd = 100 + clip(1, batch=1, height=256, width=512) % 4
    others = torch.tensor([0, 80, 160, 255], dtype=torch.uint8).repeat_interleave(8)
    strip = others[None, None, None, :, None].expand(1, 1, 8, 32, 3)
    back = filled(crowd, strip, entries=10)
    assert (back.decode(back.encode(strip)).int() - strip.int()).abs().max() <= 1


def test_a_file_keeps_it(tmp_path: Path) -> None:
    tokenizer, frames = filled(clip(9)), clip(9)
    path = tmp_path / "a.safetensors"
    tokenizer.save(path)
    loaded = load_visual_tokenizer(str(path))
    assert loaded.fingerprint.startswith("dictionary-") and loaded.fingerprint == read_tokenizer(path).fingerprint
    assert torch.equal(loaded.encode(frames), tokenizer.encode(frames))
    other = filled(clip(9, seed=1))
    other.save(tmp_path / "b.safetensors")
    assert load_visual_tokenizer(str(tmp_path / "b.safetensors")).fingerprint != loaded.fingerprint
    path.write_bytes(path.read_bytes().replace(b'"entries\\": 64', b'"entries\\": 65'))
    with refused(CheckpointError, file=path):
        read_tokenizer(path)


def test_a_file_of_numbers_that_are_none_is_refused(tmp_path: Path) -> None:
    tokenizer, path = filled(clip(9)), tmp_path / "a.safetensors"
    with torch.no_grad():
        tokenizer.moving[3, 5] = torch.nan
    tokenizer.save(path)
    with refused(CheckpointError, file=path):
        read_tokenizer(path)


def test_numbers_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {"kind": "dictionary", "entries": 2, "strides": [1, 2, 2]}
    weights = {"still": torch.full((2, 12), 1e300, dtype=torch.float64), "moving": torch.zeros(2, 12)}
    path.write_bytes(save(weights, {"format": "lumos-dictionary-1", "config": json.dumps(header)}))
    with refused(CheckpointError, file=path):
        read_tokenizer(path)


def test_training_in_bf16_takes_the_codes_of_full_precision() -> None:
    noise, brightness = clip(17).double(), torch.linspace(60, 190, 17)[None, :, None, None, None]
    frames = (brightness + noise / 50).to(torch.uint8)  # patches that are nearly equal
    tokenizer = filled(frames, entries=48)
    with torch.autocast("cpu", torch.bfloat16):
        back = tokenizer(to_unit(frames)).pictures
    assert torch.equal(to_rgb(back), tokenizer.decode(tokenizer.encode(frames)))


def test_nothing_to_begin_with_is_refused() -> None:
    with refused(ConfigError, where="fill", fix="give clips, [B, N, H, W, 3]"):
        filled()
    config = TokenizerConfig(kind="dictionary", entries=16)
    with refused(ConfigError, where="start", got="transform"):
        TokenizerModule(config, start="transform")
    module = TokenizerModule(config)
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with refused(ConfigError, where="fit"):
        trainer.fit(module, train_dataloaders=[clip(5)])
