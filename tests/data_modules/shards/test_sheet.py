"""What a person sees of a shard folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_modules.shards import sheet as module
from data_modules.shards.manifest import Manifest
from data_modules.shards.release_tokens import COSMOS_TOKENIZER
from data_modules.shards.sample import ShardSample
from data_modules.shards.sheet import Words, describe_shards, paint_rows, save_sheet, shard_sheet, sheet_tokenizer
from data_modules.shards.writer import ShardWriter
from lumos_pl.checkpoints.named import EMBEDDED
from lumos_pl.errors import ConfigError, DataError
from tests.data_modules.shards.shard_files import write
from tests.data_modules.tokenizing.media_fakes import MeanTokenizer, OtherTokenizer
from tests.refusals import refused

GREY = 77


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """One clip of 6 frames that the tokenizer decodes to a grey that no false colour has."""
    tokenizer = MeanTokenizer()
    with ShardWriter(
        tmp_path / "v1.0",
        tokenizer=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        strides=tokenizer.strides,
    ) as writer:
        codes = np.full((3, 8, 8), GREY, np.uint16)
        numbers = {"frames": 6, "fps": 6, "duration": 1, "width": 64, "height": 64}
        writer.add(ShardSample(key="grey", codes=codes, text="a grey $square$", source="grey.mp4", **numbers))
    return tmp_path / "v1.0"


def greys(picture: Path) -> int:
    """Pixels of exactly that grey: the words are darker or lighter but for a few at their edges."""
    with Image.open(picture) as image:
        return int((np.asarray(image.convert("RGB")) == GREY).all(-1).sum())


def test_numbers_and_one_row_a_sample(tmp_path: Path) -> None:
    write(tmp_path / "shards")
    assert describe_shards(tmp_path / "shards")["shapes"] == {"3x4x8": 3, "1x8x4": 2}
    heights = []
    for samples in 1, 2, 3:
        out = tmp_path / "new" / f"sheet_{samples}.png"
        with Image.open(shard_sheet(tmp_path / "shards", out=out, samples=samples)) as picture:
            heights.append(picture.height)
    assert heights[2] - heights[1] == pytest.approx(heights[1] - heights[0], abs=1) and heights[1] > heights[0]


def test_letters_that_the_font_lacks_are_told_in_one_line(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    words = Words(key="a.mp4", caption="日本語 हिन्दी", details="")
    figure = paint_rows(("昨日", ""), [words], [{"first frame": np.zeros((8, 8, 3), np.uint8)}])
    save_sheet(figure, out=tmp_path / "a.png")
    assert len(recwarn) == 1


def test_the_tokenizer_shows_the_pictures(grey: Path, tmp_path: Path) -> None:
    decoded = greys(shard_sheet(grey, out=tmp_path / "a.png", tokenizer=MeanTokenizer()))
    coloured = greys(shard_sheet(grey, out=tmp_path / "b.png"))
    assert decoded > 50_000 > 1_000 > coloured


def test_only_frames_of_the_clip_are_shown(grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 9 decoded frames the last 3 only fill the group; titles name the ones that are drawn."""
    titles: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda axis, title, **_: titles.append(title))
    shard_sheet(grey, out=tmp_path / "a.png", tokenizer=MeanTokenizer())
    assert titles == ["frame 0", "frame 2", "frame 5"]
    shard_sheet(grey, out=tmp_path / "b.png")
    assert titles[3:] == ["latent frame 0", "latent frame 1", "latent frame 2"]


def test_which_tokenizer_decodes(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {EMBEDDED: OtherTokenizer(), "mean.safetensors": MeanTokenizer()}
    monkeypatch.setattr(module, "load_visual_tokenizer", lambda source: known[source])
    assert sheet_tokenizer(grey, "mean.safetensors") is known["mean.safetensors"]
    assert sheet_tokenizer(grey) is None
    with refused(ConfigError, file=grey, got="other", expected="mean"):
        sheet_tokenizer(grey, EMBEDDED)
    known[EMBEDDED] = MeanTokenizer()
    assert sheet_tokenizer(grey) is known[EMBEDDED]


def test_codes_of_the_release_are_decoded_by_any_cosmos(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in training: imported shards name the kind of tokenizer, a folder of its files has a digest too."""
    replace(Manifest.read(grey), tokenizer=COSMOS_TOKENIZER).save(grey)
    cosmos, other = MeanTokenizer(), MeanTokenizer()
    cosmos.fingerprint, other.fingerprint = f"{COSMOS_TOKENIZER}-0123456789ab", "cosmos-dv8x16x16-0123456789ab"
    known = {"cosmos": cosmos, "other": other}
    monkeypatch.setattr(module, "load_visual_tokenizer", lambda source: known[source])
    assert sheet_tokenizer(grey, "cosmos") is cosmos
    with refused(ConfigError, file="v1.0", where="--tokenizer other"):
        sheet_tokenizer(grey, "other")


def test_a_picture_that_cannot_be_written_is_one_line(grey: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError):
        shard_sheet(grey, out=tmp_path / "file" / "sheet.png")
    with refused(ConfigError, file=tmp_path, where="--out"):
        shard_sheet(grey, out=tmp_path)
    with refused(ConfigError, where="samples"):
        shard_sheet(grey, out=tmp_path / "a.png", samples=0)


@pytest.mark.seconds
def test_a_file_of_the_users_is_not_replaced(grey: Path, tmp_path: Path) -> None:
    """The file that is asked for is refused; beside the folder the next free name is taken, once for one picture."""
    out = tmp_path / "v1.0.png"
    out.write_text("mine")
    with refused(ConfigError, file=out, where="--out"):
        shard_sheet(grey, out=out)
    written = shard_sheet(grey, out=out, named=False)
    assert written.name == "v1.0-2.png"
    assert shard_sheet(grey, out=out, named=False) == written
    assert shard_sheet(grey, out=out, named=False, tokenizer=MeanTokenizer()).name == "v1.0-3.png"
    assert out.read_text() == "mine"
