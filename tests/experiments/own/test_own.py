"""`lumos own`: what it refuses, and one way from a folder to the page."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_modules.tokenizing.media_list import read_media_list
from experiments import cli
from experiments.own import film, settings, steps, trainings
from experiments.own.choice import gain
from experiments.own.film import make_film
from experiments.own.footage import open_footage, split
from experiments.own.page import interval
from experiments.own.settings import OwnSettings
from experiments.own.steps import run_command
from experiments.read_config import load_experiment
from faults.media_kinds import PICTURE
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.machinery.stop_request import StoppedBySignal
from tests.refusals import refused, told

VIDEO = b"\0\0\0\x18ftypisom"


def test_nothing_is_written_among_the_videos(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    with refused(ConfigError, where="--out"):
        make_film(tmp_path, tmp_path / "own", OwnSettings())


def test_a_wrong_setting_is_said_before_any_work(tmp_path: Path) -> None:
    with refused(ConfigError, got="model.sise", fix="did you mean model.size?"):
        make_film(tmp_path, tmp_path / "own", OwnSettings(overrides=("model.sise=small",)))


@pytest.mark.parametrize(
    "word", ["run.name=mine", "data.root=mine", "clip.frames=9", "layout.strides=[4,4,4]", "trainer.max_steps=9"]
)
def test_what_the_steps_hand_on_is_no_setting_of_the_users(word: str) -> None:
    """With another run.name, the run that was to tell how long a step takes was not found, after the tokenizer's."""
    with refused(ConfigError, where=word.partition("=")[0]):
        OwnSettings(overrides=(word,))


@pytest.mark.parametrize("is_told", [False, True])
def test_a_stop_between_two_steps_says_what_goes_on(
    is_told: bool,
    tmp_path: Path,
    handlers: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And one amid a training, which says it itself, is not told twice."""

    def work(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except StoppedBySignal as stop:
            stop.is_told = is_told
            raise

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # where nothing notes it, it is not this process's end
    monkeypatch.setattr(film, "make_film", work)
    assert cli.main(["own", str(tmp_path), "--out", str(tmp_path / "out")]) == 143
    printed = capsys.readouterr().err
    assert not printed if is_told else told(printed)[1] == str(tmp_path / "out")


def test_videos_that_cannot_be_read_are_refused_in_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(VIDEO + b"no video at all")
    with refused(DataError, file=folder):
        make_film(folder, tmp_path / "out", OwnSettings())


def test_what_the_model_has_no_room_for_is_said_before_any_work(tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(VIDEO)
    for size in "60x64", "64x60":
        with refused(ConfigError, where="--size", got=size):
            make_film(folder, out, OwnSettings(size=size))
    with refused(ConfigError, got="5305 tokens", fix="a smaller --size, fewer --frames, or model.max_length=7168"):
        make_film(folder, out, OwnSettings(size="256x256"))
    (folder / "a.txt").write_text("word " * 400)
    with refused(DataError, file=folder, got="1999 tokens or more"):
        make_film(folder, out, OwnSettings())
    assert not out.exists()


def test_a_caption_that_is_too_long_costs_its_video_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one with an empty text; both are told."""
    (tmp_path / "videos").mkdir()
    for number, text in enumerate(["word " * 400, "", "short", "short"]):
        (tmp_path / f"videos/{number}.mp4").write_bytes(clip((90, 30, 30), number))
        (tmp_path / f"videos/{number}.txt").write_text(text)
    monkeypatch.setattr(steps, "run_command", lambda words: 1)
    said: list[str] = []
    with pytest.raises(SystemExit):
        make_film(tmp_path / "videos", tmp_path / "out", OwnSettings(), say=said.append)
    left = [line for line in said if "left aside" in line]
    assert len(left) == 2
    assert any("empty caption" in line and "1.mp4" in line for line in left)
    assert any("tokens" in line and "0.mp4" in line for line in left)
    videos = (tmp_path / "out/videos.jsonl").read_text()
    assert "2.mp4" in videos and "0.mp4" not in videos and "1.mp4" not in videos


@pytest.mark.seconds
def test_the_folder_to_write_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path stands in the commands of all steps, which are the same from another folder."""
    monkeypatch.chdir(tmp_path)
    name = "-x: #1 [ü]\n"
    ran: list[str] = []
    Path("videos").mkdir()
    for number in range(2):
        Path(f"videos/{number}.mp4").write_bytes(clip((90, 30, 30), number))

    def run(words: Sequence[str]) -> int:
        options = cli.parse(words)
        ran.append(words[0])
        if words[0] == "tokenize":
            status: int = options.command(options)
            return status
        config = load_experiment(options.experiment, options.overrides)
        assert Path(config.run.dir).resolve() == tmp_path / name / "runs"
        assert Path(str(config.data.root)).resolve().is_relative_to(tmp_path / name)
        return 75

    monkeypatch.setattr(steps, "run_command", run)
    for keep in True, False:  # the model's training, the tokenizer's
        with pytest.raises(SystemExit, match="75"):
            make_film(Path("videos"), Path(name), OwnSettings(size="32x32", train_tokenizer=not keep))
        with monkeypatch.context() as elsewhere, pytest.raises(SystemExit, match="75"):
            elsewhere.chdir("videos")
            ran.clear()
            make_film(tmp_path / "videos", Path("..", name), OwnSettings(size="32x32", train_tokenizer=not keep))
        assert ran == ["train"]
        shutil.rmtree(name)


@pytest.mark.parametrize("name", ["own/${x}", "~/own", "own/\udcff"])
def test_a_folder_that_no_run_can_lie_in_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(VIDEO)
    with refused(ConfigError, where="run.dir"):
        make_film(tmp_path, Path(name), OwnSettings())


def still_gif() -> bytes:
    """Only all of it tells that it does not move."""
    content = io.BytesIO()
    PICTURE.save(content, "GIF")
    return content.getvalue()


@pytest.mark.seconds
@pytest.mark.parametrize("content", [b"damaged", still_gif()], ids=["damaged", "a picture"])
def test_held_out_videos_that_turn_out_to_be_none_are_no_end(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where headers and first pictures are sound, so that the work alone finds it out."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.mp4").write_bytes(clip((90, 30, 30), number))
    _, (held,) = split(open_footage(folder).items)

    def run(words: Sequence[str]) -> int:
        held.path.write_bytes(content)
        return run_command(words) if words[0] == "tokenize" else 1

    monkeypatch.setattr(steps, "run_command", run)
    ran: list[str] = []
    with pytest.raises(SystemExit):
        make_film(folder, tmp_path / "out", OwnSettings(size="32x32"), say=ran.append)
    assert any("too little" in line and "held-out" in line for line in ran)
    assert "lumos train own " in ran[-1]  # the model's: no tokenizer is trained that nothing can judge


def test_a_picture_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is neither trained on nor held out; what was left is named."""
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(clip((90, 30, 30), 0))
    (folder / "b.gif").write_bytes(still_gif())
    (folder / "bad\udcff\n.mp4").write_bytes(clip((90, 30, 30), 0))
    monkeypatch.setattr(steps, "run_command", lambda words: 1)
    said: list[str] = []
    with pytest.raises(SystemExit):
        make_film(folder, tmp_path / "out", OwnSettings(), say=said.append)
    assert any("left out" in line and "b.gif" in line for line in said)
    assert all(line.isprintable() for line in said if "left aside" in line)
    assert [item.name for item in read_media_list(tmp_path / "out/train.jsonl")] == [str(folder / "a.mp4")]
    assert not (tmp_path / "out/val.jsonl").read_text()


def test_one_held_out_clip_has_no_interval() -> None:
    one = gain([20.0], [18.5])
    assert (one["n"], one["difference"], one["low"], one["high"], one["own_is_better"]) == (1, 1.5, None, None, True)
    assert "1.5" not in interval(one)
    several = gain([20.0, 20.0, 10.0], [18.0, 19.0, 12.0])
    assert several["low"] < 0 < several["high"] and not several["own_is_better"]
    assert f"{several['low']:+.1f}" in interval(several)


def test_what_has_changed_in_a_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.mp4").write_bytes(clip((90, 30, 30), number))
    monkeypatch.setattr(steps, "run_command", lambda words: 1)
    with pytest.raises(SystemExit):
        make_film(folder, out, OwnSettings())
    (folder / "1.mp4").rename(folder / "other.mp4")
    (folder / "new.mp4").write_bytes(clip((30, 30, 30), 3))
    with refused(ConfigError, file=folder, got="2 new, 1 gone"):
        make_film(folder, out, OwnSettings())


def clip(colour: tuple[int, int, int], seed: int) -> bytes:
    """A square that moves over a plain ground, 2.2 s."""
    frames = np.full((36, 64, 64, 3), colour, np.uint8)
    for place, frame in enumerate(frames):
        left = (place + 7 * seed) % 48
        frame[20:32, left : left + 12] = 255
    return encode_mp4(frames, 16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_a_folder_to_the_page_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "LEAST_STEPS", 4)
    monkeypatch.setattr(trainings, "TIMING_STEPS", 4)
    for name, colour in {"red": (200, 30, 30), "blue": (30, 30, 200)}.items():
        Path("videos", name).mkdir(parents=True)
        for seed in range(6):
            Path("videos", name, f"{seed}.mp4").write_bytes(clip(colour, seed))
    Path("videos/red/broken.mp4").write_bytes(clip((1, 2, 3), 0)[:900])
    words = ["own", "videos", "--minutes", "0.5", "model.size=debug", "data.video.batch_size=2"]
    assert cli.main(words) == 0
    page = Path("own/videos/page.html").read_text()
    assert "red" in page
    assert "image/webp" in page
    assert "://" not in page
    before = {file: file.stat().st_mtime_ns for file in Path("own").rglob("*.ckpt")}
    ran: list[list[str]] = []
    monkeypatch.setattr(steps, "run_command", lambda words: ran.append(words) or 0)
    assert cli.main(words) == 0
    assert ran == []
    assert {file: file.stat().st_mtime_ns for file in Path("own").rglob("*.ckpt")} == before
    assert cli.main([*words, "--fps", "4"]) == 2
    model = Path("own/videos/runs/own/model/config.yaml").read_text()
    assert "own_dictionary/clips" in model  # the same patches come back


@pytest.mark.slow
def test_footage_that_never_repeats_gets_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "LEAST_STEPS", 4)
    monkeypatch.setattr(trainings, "TIMING_STEPS", 4)
    (tmp_path / "videos").mkdir()
    draws = np.random.default_rng(0)
    for number in range(6):
        picture = draws.integers(0, 256, (8, 32), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        frames = np.stack([picture[:, 2 * place : 2 * place + 64] for place in range(36)])
        (tmp_path / f"videos/{number}.mp4").write_bytes(encode_mp4(frames[..., None].repeat(3, axis=-1), 16))
    monkeypatch.setattr(steps, "run_command", lambda words: run_command(words) if words[1] != "own" else 1)
    with pytest.raises(SystemExit):
        make_film(tmp_path / "videos", tmp_path / "out", OwnSettings(minutes=0.5))
    trained = {folder.name for folder in (tmp_path / "out/runs").iterdir() if (folder / "clips").exists()}
    assert trained == {"own_dictionary", "own_tokenizer"}
