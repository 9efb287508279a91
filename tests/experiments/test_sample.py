"""`lumos sample` from the command line, with a tiny decoder of random weights."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.cli import main
from experiments.sample.folder import SampleFolder
from lumos_pl import LumosPipeline
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.machinery.own_files import RECORD, partial_of
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.experiments.conftest import Sample, codes, record
from tests.refusals import told
from tests.shape_world.media import decode
from tests.tiny_checkpoint import write_checkpoint

PROMPTS = ["--prompt", "a red circle", "--prompt", "a green square"]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file but the sheet, with its time."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock" and file.name != RECORD]
    return {
        file.relative_to(folder).as_posix(): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in files
        if file.name != "sheet.png"
    }


def without_times(files: dict[str, tuple[bytes, int]]) -> dict[str, bytes]:
    return {name: content for name, (content, _) in files.items()}


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


# -- modes ---------------------------------------------------------------------------------------


def test_text_to_video(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample(*PROMPTS, "--samples-per-prompt", 2, "--gif")
    names = [f"{i:05d}-{k}-{name}" for i, name in enumerate(["a-red-circle", "a-green-square"]) for k in range(2)]
    assert {file.name for file in out.iterdir()} == {
        *(f"{name}{suffix}" for name in names for suffix in (".mp4", ".gif")),
        "records",
        "sheet.png",
        RECORD,
    }
    for name in names:
        assert decode((out / f"{name}.mp4").read_bytes()).shape == (9, 32, 32, 3)
        with Image.open(out / f"{name}.gif") as animation:
            assert animation.n_frames == 9
    made = codes(out)
    assert len(made) == 4
    assert all(array.shape == (3, 4, 4) and array.dtype == np.uint16 for array in made.values())
    assert len({array.tobytes() for array in made.values()}) == 4
    printed = capsys.readouterr().out
    assert "4 clips, 4 made now" in printed and "tokens/s" in printed and "sheet.png" in printed


def test_text_to_image(sample: Sample) -> None:
    out = sample("--prompt", "a red circle", "--frames", 1, "--size", "64x32", "--gif")
    with Image.open(out / "00000-0-a-red-circle.png") as picture:
        assert picture.size == (64, 32)
    assert codes(out)["00000-0"].shape == (1, 4, 8)
    assert record(out)["request"]["clip"] == {"width": 64, "height": 32, "frames": 1, "fps": 1}
    assert not list(out.glob("*.gif"))


def test_image_to_video_and_continuation(sample: Sample, tmp_path: Path) -> None:
    """The clip begins with what is given, cropped and resized to its size."""
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, 32:64] = (250, 20, 20)  # the middle third is wider than the crop's edge
    Image.fromarray(picture).save(tmp_path / "wide.png")
    frames = np.stack([np.full((32, 32, 3), 20 * n, np.uint8) for n in range(12)])
    (tmp_path / "clip.mp4").write_bytes(encode_mp4(frames, 8))
    encode = load_visual_tokenizer("embedded").encode

    out = sample(*PROMPTS, "--image", tmp_path / "wide.png", out="i2v")
    fitted = Image.fromarray(picture[:, 16:80]).resize((32, 32), Image.Resampling.LANCZOS)
    first = torch.from_numpy(np.array(fitted))
    for made in codes(out).values():
        assert made.shape == (3, 4, 4)
        assert np.array_equal(made[0], encode(first[None, None])[0, 0])
    assert record(out)["request"]["given"]["file"] == "wide.png"

    decoded = torch.from_numpy(decode((tmp_path / "clip.mp4").read_bytes()))
    for given, latent, more in (5, 2, ["--given-frames", 5]), (9, 3, []):
        out = sample(*PROMPTS, "--video", tmp_path / "clip.mp4", "--frames", 17, *more, out=f"from-{given}")
        for made in codes(out).values():
            assert made.shape == (5, 4, 4)
            assert np.array_equal(made[:latent], encode(decoded[None, :given])[0])


def test_the_settings_of_the_command_line_are_taken(sample: Sample) -> None:
    flags = {"steps": 3, "guidance": 1.0, "partial_context": 0.5, "temperature": 0.7, "top_k": 50, "top_p": 0.9}
    arguments = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    others = {"greedy": True, "schedule": "linear", "confidence_anneal": "release", "given_context": "visible"}
    arguments += [f"sampling.{name}={value}" for name, value in others.items()]
    out = sample("--prompt", "x", *arguments, "clip.frames=5", "--fps", 4, "--seed", 9, "--weights", "ema")
    request = record(out)["request"]
    assert {name: request["sampling"][name] for name in flags | others} == flags | others
    assert request["clip"] == {"width": 32, "height": 32, "frames": 5, "fps": 4}
    assert request["seed"] == clip_seed(9, 0, 0) and request["weights"] == "ema"


@pytest.mark.seconds
def test_a_record_makes_its_clip_again(sample: Sample) -> None:
    out = sample(*PROMPTS, "--samples-per-prompt", 2, "--seed", 5, "--temperature", 0.8, "--frames", 5)
    records = codes(out)
    assert len(records) > 1
    for name, made in records.items():
        request = record(out, name)["request"]
        lumos = LumosPipeline.load(record(out, name)["made_with"]["checkpoint_file"], precision=request["precision"])
        assert lumos.saved.digest == request["checkpoint"]
        (clip,) = lumos.generate(
            [request["prompt"]],
            seed=[request["seed"]],
            clip=ClipFormat(**request["clip"]),
            sampling=SamplingConfig(**request["sampling"]),
        )
        assert np.array_equal(clip.codes.numpy(), made)


# -- going on ------------------------------------------------------------------------------------


@pytest.mark.seconds
def test_every_prompt_has_a_folder_of_its_own(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for prompt in "A red circle", "a blue square", "\u3042":
        assert main(["sample", "--ckpt", str(checkpoint), "--prompt", prompt]) == 0
    assert {folder.name for folder in Path("samples").iterdir()} == {"a-red-circle", "a-blue-square", "clips"}


@pytest.mark.seconds
def test_what_is_done_is_not_made_again(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample(*PROMPTS, "--samples-per-prompt", 2)
    before = contents(out)
    sample(*PROMPTS, "--samples-per-prompt", 2)
    assert contents(out) == before and "0 made now" in capsys.readouterr().out
    for lost in "records/00000-1.json", "00001-0-a-green-square.mp4", "records/00001-1.npy":
        (out / lost).unlink()
        sample(*PROMPTS, "--samples-per-prompt", 2)
        assert without_times(contents(out)) == without_times(before)
        assert "1 made now" in capsys.readouterr().out
    sample(*PROMPTS, "--prompt", "one more", "--samples-per-prompt", 2)  # a list may grow
    assert "2 made now" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--prompt", "a red circle!"], 'prompt | got "a red circle!", expected "a red circle"'),
        (["--prompt", "a red circle", "--arrangement", "vbench"], 'file | got "videos/a red circle-0.mp4"'),
        (["--prompt", "a red circle", "--seed", "1"], "seed | got"),
        (["--prompt", "a red circle", "--steps", "3"], "sampling.steps | got 3, expected 2"),
        (["--prompt", "a red circle", "--fps", "4"], "clip.fps | got 4, expected 8"),
        (["--prompt", "a red circle", "--weights", "ema"], 'weights | got "ema", expected "model"'),
    ],
)
def test_clips_made_otherwise_are_kept(
    sample: Sample, capsys: pytest.CaptureFixture[str], arguments: list[str], difference: str
) -> None:
    before = contents(sample("--prompt", "a red circle"))
    out = sample(*arguments, status=2)
    _, file, *compared, _ = told(capsys.readouterr().err)
    assert file.endswith("/00000-0.json") and " | ".join(compared).startswith(difference)
    assert contents(out) == before


@pytest.mark.seconds
def test_a_record_in_earlier_keys_stands_for_its_clip(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample("--prompt", "x")
    made = record(out)
    settings = made["request"]["sampling"]
    settings["given_frames"] = settings.pop("given_context")
    (out / "records" / "00000-0.json").write_text(json.dumps(made))
    before = contents(out)
    sample("--prompt", "x")
    assert contents(out) == before and "0 made now" in capsys.readouterr().out
    sample("--prompt", "x", "sampling.given_context=partial", status=2)
    assert told(capsys.readouterr().err)[2] == "sampling.given_context"


@pytest.mark.seconds
def test_another_checkpoint_or_image_is_noticed(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "a.png")
    out = sample("--prompt", "x", "--image", tmp_path / "a.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "a.png")
    sample("--prompt", "x", "--image", tmp_path / "a.png", status=2)
    assert told(capsys.readouterr().err)[2] == "given.sha256"
    other = write_checkpoint(tmp_path / "other.ckpt", seed=7)
    assert main(["sample", "--ckpt", str(other), "--out", str(out), "--prompt", "x"]) == 2
    assert told(capsys.readouterr().err)[2] == "given"
    sample("--prompt", "x", out="plain")
    assert main(["sample", "--ckpt", str(other), "--out", str(tmp_path / "plain"), "--prompt", "x"]) == 2
    assert told(capsys.readouterr().err)[2] == "checkpoint"


def test_a_damaged_record_is_named(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    out = sample("--prompt", "x")
    for content in b"{", b"[]", b'{"file": 1}':
        (out / "records" / "00000-0.json").write_bytes(content)
        sample("--prompt", "x", status=3)
        assert str(out / "records" / "00000-0.json") in told(capsys.readouterr().err)


@pytest.mark.seconds
def test_shards_make_what_one_process_makes(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    many = [word for i in range(5) for word in ("--prompt", f"circle {i}")]
    whole = sample(*many, "--samples-per-prompt", 2, out="whole")
    for part in 2, 0, 1:
        out = sample(*many, "--samples-per-prompt", 2, "--shard", f"{part}/3", out="parts")
    assert same(codes(out), codes(whole)) and len(codes(whole)) == 10
    assert without_times(contents(out)) == without_times(contents(whole))
    assert (out / "sheet.png").read_bytes() == (whole / "sheet.png").read_bytes()
    assert "(part 1/3 of 10)" in capsys.readouterr().out
    sample("--prompt", "x", "--shard", "3/4", out="nothing to do")


@pytest.mark.seconds
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_whole_clips(
    sample: Sample, number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the second clip is being written: nothing of it is taken for done, and the command goes on."""
    whole = sample(*PROMPTS, out="whole")
    written: list[str] = []
    write = SampleFolder.write

    def write_and_stop(folder: SampleFolder, file: str, data: bytes) -> None:
        write(folder, file, data)
        written.append(file)
        if written[-1] == "records/00001-0.npy":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(SampleFolder, "write", write_and_stop)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    try:
        out = sample(*PROMPTS, status=128 + number)
    finally:
        for n, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(n, handler)
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "stopped" in error and "goes on from there" in error
    assert sorted(file.name for file in (out / "records").glob("*.json")) == ["00000-0.json"]
    assert not list(out.rglob("*.partial"))
    sample(*PROMPTS)
    assert same(codes(out), codes(whole)) and "1 made now" in capsys.readouterr().out


def test_a_file_where_a_folder_belongs(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "videos").touch()
    sample("--prompt", "x", "--arrangement", "vbench", status=3)
    assert str(tmp_path / "out" / "videos") in told(capsys.readouterr().err)
    sample("--prompt", "x", out="out/videos", status=2)
    assert "--out" in told(capsys.readouterr().err)


@pytest.mark.seconds
def test_what_is_torn_or_changed_is_made_again(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """A clip's record holds the digests of its files; what has their names and is another's is kept."""
    out = sample(*PROMPTS, "--gif")
    before = contents(out)
    for name in "records/00000-0.npy", "00001-0-a-green-square.mp4", "00000-0-a-red-circle.gif":
        torn = (out / name).read_bytes()[:-1]
        (out / name).write_bytes(torn)
        partial_of(out / name).write_bytes(b"half")  # of a kill
        capsys.readouterr()
        sample(*PROMPTS, "--gif")
        assert "1 made now" in capsys.readouterr().out
        kept = (out / name).with_stem((out / name).stem + ".kept-1")
        assert kept.read_bytes() == torn
        kept.unlink()
        assert without_times(contents(out)) == without_times(before)


@pytest.mark.seconds
def test_records_of_before_have_no_digests(sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """Their clips are taken if they are whole as far as can be told, and nothing is refused or lost."""
    out = sample(*PROMPTS, "--gif")
    (out / RECORD).unlink()
    for file in (out / "records").glob("*.json"):
        content = json.loads(file.read_text())
        del content["sha256"]
        file.write_text(json.dumps(content))
    capsys.readouterr()
    sample(*PROMPTS, "--gif")
    assert "0 made now" in capsys.readouterr().out
    for name in "records/00000-0.npy", "00001-0-a-green-square.mp4", "00000-0-a-red-circle.gif":
        (out / name).write_bytes((out / name).read_bytes()[:-1])
        sample(*PROMPTS, "--gif")
        assert "1 made now" in capsys.readouterr().out


def test_files_of_the_users_in_the_folder_are_kept(sample: Sample, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    theirs.write_text("theirs")
    (out / "records").mkdir(parents=True)
    (out / "sheet.png").write_text("mine")
    (out / RECORD).write_text("mine too")
    (out / "00000-0-a-red-circle.mp4").symlink_to(theirs)
    (out / "records" / "00001-0.npy").hardlink_to(theirs)
    sample(*PROMPTS)
    assert (out / "sheet.kept-1.png").read_text() == "mine"
    assert (out / f"{RECORD}.kept-1").read_text() == "mine too"
    assert (out / "00000-0-a-red-circle.kept-1.mp4").readlink() == theirs
    assert theirs.read_text() == (out / "records" / "00001-0.kept-1.npy").read_text() == "theirs"
    assert np.load(out / "records" / "00001-0.npy").shape == (3, 4, 4)


@pytest.mark.parametrize("name", ["records", "videos"])
def test_no_folder_of_links_is_written_into(
    sample: Sample, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "theirs")
    sample("--prompt", "x", "--arrangement", "vbench", status=2 if name == "records" else 3)
    assert str(tmp_path / "out" / name) in told(capsys.readouterr().err)
    assert not list((tmp_path / "theirs").iterdir())


def test_one_process_of_a_shard_at_a_time(sample: Sample, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with SampleFolder(tmp_path / "out", (0, 1)).lock():
        sample("--prompt", "x", status=75)
        assert told(capsys.readouterr().err)[1:3] == [f"{tmp_path}/out/records", f"got pid {os.getpid()}"]
        sample(*PROMPTS, "--shard", "1/2")
