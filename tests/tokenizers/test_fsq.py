from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lumos_pl.errors import CheckpointError, ConfigError, FileError
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.fsq import FsqTokenizer, Quantizer
from lumos_pl.tokenizers.tokenizer_file import read_tokenizer
from lumos_pl.tokenizers.trained import FORMATS, Padding, TokenizerConfig, fold, unfold
from lumos_pl.tokenizers.visual import VisualTokenizer, to_rgb, to_unit
from tests.refusals import refused

SMALL = TokenizerConfig(levels=[4, 3, 5], width=8, patch_width=4, blocks=1)


def random_tokenizer(config: TokenizerConfig = SMALL, seed: int = 0) -> FsqTokenizer:
    """Weights so large that every input shows in the codes; as made, the residual blocks do nothing."""
    tokenizer = FsqTokenizer(config)
    draws = generator(seed, "weights")
    with torch.no_grad():
        for parameter in tokenizer.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100  # biases are small
            parameter.copy_(torch.randn(parameter.shape, generator=draws) * 1.5 / fan_in**0.5)
    return tokenizer.eval()


def clip(frames: int, height: int = 16, width: int = 24, batch: int = 2) -> Tensor:
    """Every pixel of its own."""
    return torch.randint(0, 256, (batch, frames, height, width, 3), generator=generator(0, "clip"), dtype=torch.uint8)


def assert_same(a: Tensor, b: Tensor) -> None:
    """Equal codes or pixels, but for what another order of summing may round the other way."""
    assert a.shape == b.shape and (a != b).float().mean() < 0.01
    if a.dtype == torch.uint8:
        assert (a.int() - b.int()).abs().max() <= 1


@pytest.mark.parametrize("strides", [[4, 8, 8], [2, 4, 8], [1, 2, 2]])
@pytest.mark.parametrize("frames", [1, 2, 5, 6, 17])
def test_shapes(frames: int, strides: list[int]) -> None:
    tokenizer: VisualTokenizer = random_tokenizer(
        TokenizerConfig(levels=[4, 3], strides=strides, width=8, patch_width=4)
    )
    codes = tokenizer.encode(clip(frames))
    t, h, w = strides
    latent = 1 + -(-(frames - 1) // t)
    assert codes.shape == (2, latent, 16 // h, 24 // w) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < tokenizer.codebook_size == 12 and codes.unique().numel() > 3
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 1 + t * (latent - 1), 16, 24, 3) and decoded.dtype == torch.uint8


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_what_comes_later_changes_nothing_before(frames: int) -> None:
    tokenizer, whole = random_tokenizer(), clip(17)
    latent = 1 + (frames - 1) // 4
    codes = tokenizer.encode(whole)
    assert_same(tokenizer.encode(whole[:, :frames]), codes[:, :latent])
    assert_same(tokenizer.decode(codes[:, :latent]), tokenizer.decode(codes)[:, :frames])


def test_each_frame_changes_its_own_group_and_what_follows() -> None:
    tokenizer = random_tokenizer()
    before = clip(17)
    for frame in (0, 1, 4, 5, 16):
        after = before.clone()
        after[:, frame] = 255 - after[:, frame]
        differs = (tokenizer.encode(before) != tokenizer.encode(after)).flatten(2).any(2).any(0)
        group = -(-frame // 4)
        assert differs[group] and not differs[:group].any()


def test_each_code_changes_the_frames_of_its_own_group_and_what_follows() -> None:
    tokenizer = random_tokenizer()
    codes = tokenizer.encode(clip(17))
    for group in range(5):
        changed = codes.clone()
        changed[:, group] = (changed[:, group] + 17) % 60
        differs = (tokenizer.decode(codes) != tokenizer.decode(changed)).flatten(2).any(2).any(0)
        first = max(0, 4 * group - 3)
        assert differs[first : 4 * group + 1].all() and not differs[:first].any()


def test_a_last_group_that_is_not_full_is_filled_with_its_last_frame() -> None:
    tokenizer, frames = random_tokenizer(), clip(7)
    filled = torch.cat([frames, frames[:, -1:], frames[:, -1:]], dim=1)
    assert torch.equal(tokenizer.encode(frames), tokenizer.encode(filled))


@pytest.mark.parametrize(("padding", "alike"), [("zeros", False), ("replicate", True)])
def test_what_is_beyond_the_border(padding: Padding, alike: bool, tmp_path: Path) -> None:
    """Repeated, a plain picture is the same code everywhere, whatever its size; zeros show at the border."""
    tokenizer = random_tokenizer(replace(SMALL, padding=padding))
    codes = tokenizer.encode(torch.full((1, 9, 32, 48, 3), 90, dtype=torch.uint8))
    assert ((codes != codes[:, :, 2:3, 2:3]).float().mean() < 0.01) == alike
    tokenizer.save(tmp_path / "a.safetensors")
    assert read_tokenizer(tmp_path / "a.safetensors").config.padding == padding


def test_clips_of_a_batch_do_not_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, frames = random_tokenizer(), clip(5, batch=5)
    codes = tokenizer.encode(frames)
    monkeypatch.setattr("lumos_pl.tokenizers.trained.CHUNK", 2)
    assert_same(tokenizer.encode(frames), codes)
    assert_same(tokenizer.encode(frames[3:4]), codes[3:4])
    assert_same(tokenizer.decode(codes)[3:4], tokenizer.decode(codes[3:4]))


def test_codes_are_those_of_full_precision_under_autocast() -> None:
    tokenizer, frames = random_tokenizer(), clip(17)
    codes = tokenizer.encode(frames)
    decoded = tokenizer.decode(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(frames), codes)
        assert torch.equal(tokenizer.decode(codes), decoded)
        assert not torch.equal(tokenizer.quantizer.to_codes(tokenizer.to_digits(to_unit(frames))), codes)


def test_folding_moves_every_pixel_into_its_own_block() -> None:
    x = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    folded = fold(x, (2, 3))
    assert folded.shape == (2, 18, 2, 2)
    assert folded[1, :, 1, 0].tolist() == x[1, :, 2:4, 0:3].flatten().tolist()
    assert torch.equal(unfold(folded, (2, 3)), x)


def test_pictures_and_their_range() -> None:
    frames = clip(3)
    assert torch.equal(to_rgb(to_unit(frames)), frames)
    assert to_unit(torch.tensor([0, 255]).view(1, 1, 1, 1, 2)).flatten().tolist() == [-1, 1]
    assert to_rgb(torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1, 1)).flatten().tolist() == [0, 255]


# -- the quantizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[2], [8, 6, 5], [3, 5, 7], [8, 5, 5, 5]])
def test_codes_and_digits_are_inverse(levels: list[int]) -> None:
    quantizer = Quantizer(levels)
    codes = torch.arange(int(torch.tensor(levels).prod()))
    digits = quantizer.to_digits(codes)
    assert torch.equal(quantizer.to_codes(digits), codes)
    assert digits.amin(0).tolist() == [0] * len(levels) and digits.amax(0).tolist() == [n - 1 for n in levels]
    centered = quantizer.center(digits)
    assert centered.amin() == -1 and centered.amax() == 1


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_levels_are_equally_wide(n: int) -> None:
    """Of what a sigmoid spreads evenly, each level gets its share."""
    z = torch.logit((torch.arange(1000 * n) + 0.5) / (1000 * n))[:, None]
    quantizer = Quantizer([n])
    counts = quantizer(quantizer.bound(z)).round().long().flatten().bincount(minlength=n)
    assert (counts - 1000).abs().max() <= 2


def test_extreme_channels_stay_within_the_levels() -> None:
    quantizer = Quantizer([4, 3])
    digits = quantizer(quantizer.bound(torch.tensor([[-1e9, 1e9], [1e9, -1e9]])))
    assert digits.tolist() == [[0, 2], [3, 0]]


def test_the_gradient_passes_as_if_nothing_were_rounded() -> None:
    z = torch.linspace(-2, 2, 9, requires_grad=True)
    quantizer = Quantizer([5])
    quantizer(quantizer.bound(z[:, None])).sum().backward()
    s = torch.sigmoid(z.detach())
    torch.testing.assert_close(z.grad, 5 * s * (1 - s))


def test_the_loss_reaches_every_weight() -> None:
    tokenizer = random_tokenizer()
    pictures = to_unit(clip(9))
    reconstruction, (bounded, off_level, of_channel) = tokenizer(pictures)
    assert reconstruction.shape == pictures.shape and off_level.shape == (2, 3, 2, 3, 3)
    levels = tokenizer.to_levels(pictures)
    torch.testing.assert_close(bounded, levels)
    assert of_channel.tolist() == [4, 3, 5]
    torch.testing.assert_close(off_level, levels - tokenizer.to_digits(pictures))
    assert 0 < off_level.abs().max() <= 0.5
    (reconstruction - pictures).square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# -- files ---------------------------------------------------------------------------------------


def test_a_file_gives_the_same_tokenizer_every_time(tmp_path: Path) -> None:
    """The weights are rounded once, when they are saved; from then on nothing changes any more."""
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    random_tokenizer().save(path)
    loaded = read_tokenizer(path)
    loaded.save(again)
    reloaded = read_tokenizer(again)
    assert reloaded.fingerprint == loaded.fingerprint
    frames = clip(17)
    codes = loaded.encode(frames)
    assert torch.equal(reloaded.encode(frames), codes)
    assert torch.equal(reloaded.decode(codes), loaded.decode(codes))
    assert (loaded.codebook_size, loaded.strides) == (60, (4, 8, 8))
    assert not any(parameter.requires_grad for parameter in loaded.parameters()) and not loaded.training
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert sorted(file.name for file in tmp_path.iterdir()) == [RECORD, "a.safetensors", "b.safetensors"]


def test_the_fingerprint_is_of_shape_and_weights(tmp_path: Path) -> None:
    tokenizer = random_tokenizer()
    changed = random_tokenizer()
    with torch.no_grad():
        next(changed.parameters()).mul_(1.1)
    other_levels = random_tokenizer(TokenizerConfig(levels=[3, 4, 5], width=8, patch_width=4, blocks=1))
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.parameters(), other_levels.parameters(), strict=True))
    prints = {made.fingerprint for made in (tokenizer, changed, other_levels, random_tokenizer())}
    assert len(prints) == 3 and all(name.startswith("fsq-") for name in prints)


def test_a_full_disk_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    random_tokenizer().save(path)
    before, there = path.read_bytes(), set(tmp_path.iterdir())

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with refused(FileError, file="a.safetensors", got="No space left on device"):
        random_tokenizer(seed=1).save(path)
    assert path.read_bytes() == before and set(tmp_path.iterdir()) == there


def config_of(path: Path) -> str:
    with safe_open(path, "pt") as file:
        return str(file.metadata()["config"])


Damage = Callable[[dict[str, Tensor], dict[str, Any]], None]


@pytest.mark.parametrize(
    "damage",
    [
        lambda weights, config: weights.pop("code_in.weight"),
        lambda weights, config: weights.update(more=torch.zeros(1)),
        lambda weights, config: config.update(levels=[4, 3]),
        lambda weights, config: config.update(levels=[0]),
        lambda weights, config: config.update(levels="4"),
        lambda weights, config: config.update(width=4096, patch_width=4096, blocks=64),
        lambda weights, config: config.update(blocks=10**9),
        lambda weights, config: config.update(unknown=1),
    ],
)
def test_contents_that_do_not_fit_are_refused(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    random_tokenizer().save(path)
    weights, config = load_file(path), json.loads(config_of(path))
    damage(weights, config)
    save_file(weights, path, {"format": FORMATS["fsq"], "config": json.dumps(config)})
    with refused(CheckpointError, file=path):
        read_tokenizer(path)


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        (None, {}),
        (b"", {}),
        (b"\x80\x04not a tensor file", {}),
        ("half", {}),
        ("foreign", {"got": "another", "expected": "lumos-fsq-1 or lumos-dictionary-1"}),
        ("no header", {"expected": "lumos-fsq-1 or lumos-dictionary-1"}),
        ("no config", {}),
        ("config of another kind", {}),
        ("dictionary's format", {}),
    ],
)
def test_files_that_are_none_are_refused(content: bytes | str | None, fields: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    weights = {"weight": torch.zeros(2)}
    match content:
        case bytes():
            path.write_bytes(content)
        case "half":
            random_tokenizer().save(path)
            path.write_bytes(path.read_bytes()[:-100])
        case "foreign":
            save_file(weights, path, {"format": "another"})
        case "no header":
            save_file(weights, path)
        case "no config":
            save_file(weights, path, {"format": FORMATS["fsq"]})
        case "dictionary's format":
            config = json.dumps({"levels": [4, 3, 5], "width": 8, "patch_width": 4, "blocks": 1})
            save_file(weights, path, {"format": FORMATS["dictionary"], "config": config})
        case "config of another kind":
            save_file(weights, path, {"format": FORMATS["fsq"], "config": "[1]"})
    with refused(CheckpointError, file=path, **fields):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"levels": []},
        {"levels": [1, 8]},
        {"levels": [256, 257]},
        {"strides": [4, 8]},
        {"strides": [0, 8, 8]},
        {"strides": [4, 7, 8]},
        {"strides": [4, 8, 9]},
        {"width": 0},
        {"patch_width": 10**9},
        {"blocks": -1},
        {"patch_blocks": -1},
        {"decoder_blocks": 0},
    ],
)
def test_shapes_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with refused(ConfigError, where=f"tokenizer.{name}"):
        TokenizerConfig(**wrong)
