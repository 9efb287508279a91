"""`lumos sample`: what others read of it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.cli import main
from experiments.sample.prompts import Prompt
from lumos_pl.checkpoints.complete import complete
from lumos_pl.machinery.encoding import encode_mp4
from lumos_pl.machinery.own_files import RECORD
from tests.experiments.conftest import Sample, codes, record
from tests.refusals import told
from tests.tiny_checkpoint import write_checkpoint

PROMPTS = ["--prompt", "a red circle", "--prompt", "a green square"]


# -- arrangements ----------------------------------------------------------------------------------


@pytest.mark.seconds
def test_geneval(sample: Sample, tmp_path: Path) -> None:
    lines = ['{"tag": "counting", "prompt": "two cats",  "include": []}', '{"tag": "colors", "prompt": "a dog"}']
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    for part in "1/2", "0/2":  # all images of a prompt are one process's, which makes its grid
        out = sample("--prompts", tmp_path / "list.jsonl", "--arrangement", "geneval", "--shard", part)
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "00000", "00001", "records", "sheet.png"]
    for index, line in enumerate(lines):
        folder = out / f"{index:05d}"
        assert {path.name for path in folder.iterdir()} == {"samples", "grid.png", "metadata.jsonl"}
        assert (folder / "metadata.jsonl").read_text() == line + "\n"
        assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"{k:05d}.png" for k in range(4)]
        with Image.open(folder / "grid.png") as grid, Image.open(folder / "samples" / "00003.png") as last:
            assert grid.size == (64, 64)
            assert grid.crop((32, 32, 64, 64)).tobytes() == last.tobytes()


@pytest.mark.seconds
def test_vbench(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["A cat, in the style of Ukiyo", "left/right", "A CAT, in the style of ukiyo"]
    (tmp_path / "list.txt").write_text("\n".join(prompts))
    out = sample("--prompts", tmp_path / "list.txt", "--arrangement", "vbench")
    expected = [prompts[0], "left_right", f"{prompts[2]}~00002"]
    files = {path.name for path in (out / "videos").iterdir()}
    assert files == {f"{name}-{k}.mp4" for name in expected for k in range(5)}
    assert {path.name for path in out.iterdir()} == {"videos", "records", "sheet.png", RECORD}
    renamed = record(out, "00001-3")
    assert (renamed["file"], renamed["wanted_name"]) == ("videos/left_right-3.mp4", "left/right-3.mp4")
    assert "'left/right-3.mp4' is videos/left_right-3.mp4" in capsys.readouterr().out
    assert record(out, "00000-0")["wanted_name"] is None


@pytest.mark.seconds
def test_vbench_i2v(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list names the image and with it the clip; its caption may be a longer one."""
    (tmp_path / "images").mkdir()
    for name, color in ("a bus.jpg", "red"), ("a car.png", "blue"):
        Image.new("RGB", (40, 40), color).save(tmp_path / "images" / name)
    (tmp_path / "list.json").write_text('{"a bus.jpg": "A red bus in the snow.", "a car.png": "A car."}')
    arguments = ["--prompts", tmp_path / "list.json", "--arrangement", "vbench-i2v", "--samples-per-prompt", 2]
    out = sample(*arguments, "--image", tmp_path / "images")
    names = {path.name for path in (out / "videos").iterdir()}
    assert names == {f"{name}-{k}.mp4" for name in ("a bus", "a car") for k in range(2)}
    assert record(out)["request"]["prompt"] == "A red bus in the snow."
    made = codes(out)
    assert np.array_equal(made["00000-0"][0], made["00000-1"][0])
    assert not np.array_equal(made["00000-0"][0], made["00001-0"][0])
    (tmp_path / "images" / "a car.png").unlink()
    sample(*arguments, "--image", tmp_path / "images", out="again", status=3)
    assert str(tmp_path / "images" / "a car.png") in told(capsys.readouterr().err)


# -- prompts -------------------------------------------------------------------------------------

HOSTILE = [
    "../../escaped",
    "$(touch pwned)",
    "`touch pwned`",
    "🦊 שלום",
    "-rf",
    "x" * 10_000,
    "\u202egpj",
    "a cat",
    "a cat",
]


@pytest.mark.seconds
@pytest.mark.parametrize("arrangement", ["plain", "vbench"])
def test_hostile_prompts_stay_inside_and_are_told(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arrangement: str
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = [*HOSTILE, "two\nlines"]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in listed))
    arguments = ["--prompts", tmp_path / "list.jsonl", "--arrangement", arrangement, "--samples-per-prompt", 1]
    out = sample(*arguments, "--steps", 1, "--frames", 5)
    assert {path.name for path in tmp_path.iterdir()} == {"list.jsonl", "out"}
    told = [record(out, f"{i:05d}-0") for i in range(len(listed))]
    assert [one["request"]["prompt"] for one in told] == listed
    clips = {path.relative_to(out).as_posix() for path in out.rglob("*.mp4")}
    assert clips == {one["file"] for one in told} and len(clips) == len(listed)


# -- one line each -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ([], 2, "lumos sample"),
        (["--prompt", ""], 2, "--prompt"),
        (["--prompts", "absent.txt"], 3, "absent.txt"),
        (["--prompt", "x", "--image", "absent.png"], 3, "absent.png"),
        (["--prompt", "x", "--video", "absent.mp4"], 3, "absent.mp4"),
        (["--prompt", "x", "--image", "a.png", "--video", "b.mp4"], 2, "lumos sample"),
        (["--prompt", "x", "--image", "a.png", "--frames", "1"], 2, "--frames"),
        (["--prompt", "x", "--given-frames", "5"], 2, "--given-frames"),
        (
            ["--prompt", "x", "--video", "a.mp4", "--given-frames", "4"],
            2,
            "--given-frames",
        ),
        (["--prompt", "x", "--video", "a.mp4", "--given-frames", "9"], 2, "--given-frames"),
        (["--prompt", "x", "--size", "big"], 2, "--size"),
        (["--prompt", "x", "--size", "33x32"], 2, "--size"),
        (["--prompt", "x", "--frames", "0"], 2, "--frames"),
        (["--prompt", "x", "--frames", "100000000"], 2, "--frames"),
        (["--prompt", "x", "--frames", "1000000"], 3, "prompt 0: request 0: 1 text ids, 250001 x 4 x 4 codes"),
        (["--prompt", "x" * 20_000], 3, "prompt 0: request 0: 20000 text ids, 3 x 4 x 4 codes"),
        (["--prompt", "x", "--fps", "1000"], 3, "prompt 0: fps"),
        (["--prompt", "x", "--steps", "0"], 2, "--steps"),
        (["--prompt", "x", "--guidance", "nan"], 2, "--guidance"),
        (["--prompt", "x", "--partial-context", "1.5"], 2, "--partial-context"),
        (["--prompt", "x", "--temperature", "-1"], 2, "--temperature"),
        (["--prompt", "x", "--top-k", "0"], 2, "--top-k"),
        (["--prompt", "x", "--top-p", "inf"], 2, "--top-p"),
        (["--prompt", "x", "sampling.schedul=linear"], 2, "got sampling.schedul"),
        (["--prompt", "x", "sampling.schedule=steep"], 2, "sampling.schedule"),
        (["--prompt", "x", "sampling.steps=0"], 2, "--steps"),
        (["--prompt", "a", "circle"], 2, "got 'circle', expected key=value"),
        (["--prompt", "x", "--samples-per-prompt", "0"], 2, "--samples-per-prompt"),
        (["--prompt", "x", "--shard", "2/2"], 2, "--shard"),
        (["--prompt", "x", "--shard", "1"], 2, "--shard"),
        (["--prompt", "x", "--device", "tpu"], 2, "--device"),
        (["--prompt", "x", "--tokenizer", "absent"], 2, "absent"),
        (["--prompt", "x", "--text-tokenizer", "absent.json"], 2, "--text-tokenizer"),
        (["--prompt", "x", "--prompt-field", "long"], 2, "--prompt-field"),
        (["--prompt", "x", "--arrangement", "geneval"], 2, "--prompts"),
        (["--prompt", "x", "--layout", "geneval"], 2, "--prompts"),  # the flag's earlier name
        (["--prompt", "x", "--arrangement", "vbench", "--frames", "1"], 2, "--frames"),
        (["--prompt", "x", "--arrangement", "vbench", "--gif"], 2, "--gif"),
        (["--prompt", "x", "--arrangement", "vbench-i2v"], 2, "--image"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_made(
    sample: Sample,
    arguments: list[str],
    status: int,
    part: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = sample(*arguments, status=status)
    assert part in told(capsys.readouterr().err)
    assert not [path for path in out.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_file_that_is_no_picture(sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_text("hello")
    sample("--prompt", "x", "--image", tmp_path / "a.png", status=3)
    assert str(tmp_path / "a.png") in told(capsys.readouterr().err)


@pytest.mark.seconds
def test_a_video_that_leaves_nothing_to_make(
    sample: Sample, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_mp4(np.zeros((12, 32, 32, 3), np.uint8), 8))
    sample("--prompt", "x", "--video", tmp_path / "a.mp4", status=2)
    assert "--frames" in told(capsys.readouterr().err)
    sample("--prompt", "x", "--video", tmp_path / "a.mp4", "--frames", 33, "--given-frames", 29, status=3)
    assert "got 12 frames at 8 fps, expected at least 29" in told(capsys.readouterr().err)


def test_a_run_by_its_name(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = tmp_path / "runs" / "tiny" / "a" / "checkpoints"
    command = ["sample", "--run", str(tmp_path / "runs/tiny/latest"), "--prompt", "x", "--out", str(tmp_path / "o")]
    assert main(command) == 2
    assert str(tmp_path / "runs" / "tiny") in told(capsys.readouterr().err)
    checkpoints.mkdir(parents=True)
    shutil.copy(checkpoint, checkpoints / "step-00000001.partial")
    complete(checkpoints / "step-00000001.partial", checkpoints / "step-00000001.ckpt")
    (checkpoints.parent / "config.yaml").touch()
    assert main(command) == 0


def test_titles_of_prompts_are_not_paths() -> None:
    assert Prompt(text="long", file="../../etc/a cat.mp4").title == "a cat"


def test_what_a_greedy_model_does_not_draw_by_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_checkpoint(tmp_path / "x.ckpt", sampling={"steps": 1, "greedy": True})
    asked = ["sample", "--ckpt", str(file), "--out", str(tmp_path / "out"), "--prompt", "a cat", "--temperature", "0.5"]
    assert main(asked) == 2
    assert told(capsys.readouterr().err)[1] == "--temperature"
    assert main([*asked, "sampling.greedy=false"]) == 0
