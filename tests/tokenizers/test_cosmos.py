from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import lumos1_layout
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.cosmos import CosmosTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer
from tests.refusals import refused
from tests.tokenizers.cosmos_stand_in import StandInDecoder, StandInEncoder, write_stand_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("cosmos"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CosmosTokenizer:
    return CosmosTokenizer.load(folder)


def clip(frames: int, height: int = 16, width: int = 24, batch: int = 2) -> Tensor:
    """Every cell of every group of four frames, and the first frame, of one colour; uint8 [B, N, H, W, 3]."""
    shape = (batch, 1 + -(-(frames - 1) // 4), height // 8, width // 8, 3)
    colors = torch.randint(0, 256, shape, generator=generator(0, "clip"), dtype=torch.uint8)
    pictures = colors.repeat_interleave(4, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return pictures[:, 3 : 3 + frames]


@pytest.mark.parametrize("frames", [1, 2, 5, 17, 24, 25, 84])
def test_shapes_and_colors(tokenizer: CosmosTokenizer, frames: int) -> None:
    pictures = clip(frames)
    codes = tokenizer.encode(pictures)
    latent_frames = lumos1_layout().latent_frames(frames)
    assert codes.shape == (2, latent_frames, 2, 3) and codes.dtype == torch.int64

    decoded = tokenizer.decode(codes)
    assert decoded.shape == (2, 1 + 4 * (latent_frames - 1), 16, 24, 3) and decoded.dtype == torch.uint8
    assert (decoded[:, :frames].int() - pictures.int()).abs().max() <= 4  # a step of the quantizer is 6.4
    assert torch.equal(decoded[:, frames:], decoded[:, frames - 1 : frames].expand_as(decoded[:, frames:]))


def test_the_protocol(tokenizer: CosmosTokenizer) -> None:
    visual: VisualTokenizer = tokenizer
    layout = lumos1_layout()
    assert (visual.codebook_size, visual.strides) == (layout.codebook_size, layout.strides)


@pytest.mark.parametrize("window", [9, 13, 25])
@pytest.mark.parametrize("frames", [9, 10, 25, 26, 33, 84])
def test_windows_agree_with_one_call(folder: Path, tmp_path: Path, window: int, frames: int) -> None:
    """Also when each code depends on the one before it and each picture on the code before its own."""
    recurrent = write_stand_in(tmp_path, LookBackEncoder(), LookBackDecoder())
    pictures = torch.randint(0, 256, (1, frames, 8, 16, 3), generator=generator(1, "noise"), dtype=torch.uint8)
    for source in folder, recurrent:
        cut, whole = CosmosTokenizer.load(source, window=window), CosmosTokenizer.load(source, window=85)
        codes = whole.encode(pictures)
        assert torch.equal(cut.encode(pictures), codes)
        assert torch.equal(cut.decode(codes), whole.decode(codes))


def test_a_call_sees_at_most_a_window(folder: Path, tmp_path: Path) -> None:
    write_stand_in(tmp_path, ShortEncoder(13), ShortDecoder(4))
    pictures = clip(84)
    codes = CosmosTokenizer.load(tmp_path, window=13).encode(pictures)
    assert codes.shape[1] == 22
    assert CosmosTokenizer.load(tmp_path, window=13).decode(codes).shape[1] == 85
    with pytest.raises(torch.jit.Error, match="longer than"):
        CosmosTokenizer.load(tmp_path, window=17).encode(pictures)


@pytest.mark.parametrize("window", [1, 5, 24, 26])
def test_wrong_windows(folder: Path, window: int) -> None:
    with refused(ConfigError, where="window", got=window):
        CosmosTokenizer.load(folder, window=window)


def test_a_missing_file_says_where_it_is_published(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    (tmp_path / "decoder.jit").unlink()
    with refused(ConfigError, file="decoder.jit") as caught:
        CosmosTokenizer.load(tmp_path)
    assert "https://huggingface.co/nvidia/" in str(caught.value.fix)


@pytest.mark.parametrize("content", ["nothing", "pointer", "half", "weights"])
def test_a_damaged_file_is_named_in_one_line(tmp_path: Path, content: str) -> None:
    encoder = write_stand_in(tmp_path) / "encoder.jit"
    if content == "weights":
        torch.save({"weight": torch.zeros(3)}, encoder)
    else:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 86600000\n"
        half = encoder.read_bytes()[:2000]
        encoder.write_bytes({"nothing": b"", "pointer": pointer, "half": half}[content])
    with refused(CheckpointError, file="encoder.jit"):
        CosmosTokenizer.load(tmp_path)


def test_no_gpu(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with refused(ConfigError, where="device"):
        CosmosTokenizer.load(folder, device="cuda")


def test_the_fingerprint_is_of_both_files_and_the_window(tmp_path: Path) -> None:
    write_stand_in(tmp_path)
    first = CosmosTokenizer.load(tmp_path).fingerprint
    assert first.startswith("cosmos-dv4x8x8-") and len(first) == len("cosmos-dv4x8x8-") + 12
    assert CosmosTokenizer.load(tmp_path).fingerprint == first
    seen = {first, CosmosTokenizer.load(tmp_path, window=9).fingerprint}
    for name in "encoder.jit", "decoder.jit":
        with (tmp_path / name).open("ab") as file:
            file.write(b"\0")  # after the end of the archive, where nothing is read
        seen.add(CosmosTokenizer.load(tmp_path).fingerprint)
    assert len(seen) == 4


# -- foreign programs --------------------------------------------------------------------------


class LookBackEncoder(StandInEncoder):
    """Adds half of the colours one latent frame back, where there are any in this call."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = pictures[:, :, :1].repeat(1, 1, 3, 1, 1)
        back = torch.cat([pictures[:, :, :1], first, pictures], dim=2)[:, :, : pictures.shape[2]]
        return self.code(pictures / 2 + back / 2)


class LookBackDecoder(StandInDecoder):
    def forward(self, codes: Tensor) -> Tensor:
        back = torch.cat([codes[:, :1], codes], dim=1)[:, : codes.shape[1]]
        return (self.pictures(codes) + self.pictures(back)) / 2


class ShortEncoder(StandInEncoder):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if pictures.shape[2] > self.limit:
            raise ValueError("longer than the limit")
        return self.code(pictures)


class ShortDecoder(StandInDecoder):
    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, codes: Tensor) -> Tensor:
        if codes.shape[1] > self.limit:
            raise ValueError("longer than the limit")
        return self.pictures(codes)


class ShiftedEncoder(StandInEncoder):
    """Codes of a larger codebook."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, channels, loss = self.code(pictures)
        return codes + 64_000, channels, loss


class ContinuousEncoder(StandInEncoder):
    """Cosmos CV4x8x8 returns channels instead of codes."""

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.code(pictures)[1], torch.zeros(1)


class LongDecoder(StandInDecoder):
    def forward(self, codes: Tensor) -> Tensor:
        return torch.cat([self.pictures(codes)[:, :, :1].repeat(1, 1, 3, 1, 1), self.pictures(codes)], dim=2)


class EndlessDecoder(StandInDecoder):
    def forward(self, codes: Tensor) -> Tensor:
        return self.pictures(codes) / 0


class FailingDecoder(StandInDecoder):
    def forward(self, codes: Tensor) -> Tensor:
        if codes.shape[0] > 0:
            raise ValueError("first\nlast line")
        return codes


class Bfloat16Decoder(StandInDecoder):
    """A cast to bf16 is part of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3, 3, 1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(3).view(3, 3, 1, 1, 1))
            self.mix.bias.zero_()  # type: ignore[union-attr]

    def forward(self, codes: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.pictures(codes).to(torch.bfloat16))
        return mixed


@pytest.mark.parametrize(
    ("encoder", "decoder", "fields"),
    [
        (
            StandInEncoder(cell=16),
            None,
            {"file": "encoder.jit", "where": "shape of the codes", "got": "[1, 3, 4, 4]", "expected": "[1, 3, 8, 8]"},
        ),
        (ShiftedEncoder(), None, {"file": "encoder.jit", "where": "range of the codes", "expected": "0 to 63999"}),
        (
            ContinuousEncoder(),
            None,
            {"file": "encoder.jit", "where": "type of the codes", "got": "torch.float32", "expected": "torch.int32"},
        ),
        (None, LongDecoder(), {"file": "decoder.jit", "where": "shape of the pictures", "got": "[1, 3, 12, 64, 64]"}),
        (None, EndlessDecoder(), {"file": "decoder.jit", "where": "pictures", "got": "NaN or infinity"}),
        (None, FailingDecoder(), {"where": "last line"}),
    ],
)
def test_foreign_programs_are_refused(
    tmp_path: Path, encoder: nn.Module | None, decoder: nn.Module | None, fields: dict[str, str]
) -> None:
    write_stand_in(tmp_path, encoder, decoder)
    with refused(CheckpointError, **fields):
        CosmosTokenizer.load(tmp_path)


def test_a_program_fixed_to_bf16_runs_on_a_cpu(tmp_path: Path, tokenizer: CosmosTokenizer) -> None:
    fixed = CosmosTokenizer.load(write_stand_in(tmp_path, decoder=Bfloat16Decoder()))
    codes = tokenizer.encode(clip(9))
    assert (fixed.decode(codes).int() - tokenizer.decode(codes).int()).abs().max() <= 1
