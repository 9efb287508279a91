from __future__ import annotations

import argparse
import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from PIL import Image
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from experiments import console
from experiments.cli import main
from experiments.config import plain
from experiments.failures import report_failures
from experiments.keys import keys_of
from experiments.read_config import load_experiment, read_config
from experiments.study.config import load_study
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig
from tests.data_modules.shards.shard_files import all_samples
from tests.refusals import told


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    commands = "train resume sample play eval study plan experiments import-tokens tokenize shards verify-golden"
    for command in commands.split():
        assert command in printed


def test_what_a_command_sets_in_the_environment_is_not_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(options: argparse.Namespace) -> int:
        os.environ.update(LOCAL_RANK="0", HOME="/nowhere")
        return 0

    before = dict(os.environ)
    monkeypatch.setattr("experiments.cli.parse", lambda words: argparse.Namespace(command=command, called="train"))
    assert main(["train"]) == 0
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["train"],
        ["train", "debug", "--fast"],
        ["shards", "burn", "x"],
        ["train", "nothing"],
        ["resume"],
        ["tokenize", "x"],
        ["tokenize", "x", "--out", "y", "--fps", "many"],
        ["tokenize", "x", "--out", "y", "--fps", "0"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and told(captured.err)


def test_debug_shows_the_traceback() -> None:
    from lumos_pl.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["train", "nothing", "--debug"])


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (OSError(errno.EROFS, "Read-only file system", "runs/x.json"), ["runs/x.json", "got Read-only file system"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["got No space left on device"]),
        (OSError("a library's words"), ["got a library's words"]),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: OSError, parts: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("data_modules.shards.check.verify_shards", refuse)
    assert main(["shards", "verify", "s"]) == 3
    assert told(capsys.readouterr().err)[1 : 1 + len(parts)] == parts
    with pytest.raises(OSError):
        main(["shards", "verify", "s", "--debug"])


def test_a_full_disk_is_told_once_where_tensorboard_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread raises too, and threads print their tracebacks."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> int:
        writer = SummaryWriter(str(tmp_path))
        monkeypatch.setattr(RecordWriter, "write", refuse)
        writer.add_scalar("loss", 1.0)
        writer.flush()
        return 0

    printed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", printed.append)
    assert report_failures(work, debug=False) == 3
    assert capsys.readouterr().err.count("\n") == 1 and not printed
    threading.excepthook(threading.ExceptHookArgs([KeyError, KeyError(), None, None]))
    assert len(printed) == 1  # it was put back


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_experiment_without_a_gpu_says_what_runs_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "t2v_1b", "trainer.max_steps=10"]) == 2
    _, where, fix = told(capsys.readouterr().err)
    assert where == "trainer.accelerator" and "make train EXP=debug" in fix and "lumos plan t2v_1b" in fix


def test_ctrl_c_while_the_command_is_imported_leaves_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: Any) -> None:
            if name == "experiments.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "experiments.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    assert console.main() == 130
    assert capsys.readouterr() == ("", "")


def test_experiments_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiments"]) == 0
    printed = capsys.readouterr().out
    assert "t2v_3b_384p" in printed and "seconds on a CPU" in printed
    abouts = [load_experiment("demo_full_singles").about, load_study("rho").about]
    assert len({line.index(about) for about in abouts for line in printed.splitlines() if about in line}) == 1


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_shards_that_are_not_there(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["shards", "verify", str(tmp_path / folder)]) == 3
    assert main(["train", "real_tokens", f"data.root={tmp_path / folder}", f"run.dir={tmp_path}"]) == 3
    assert capsys.readouterr().err.count("\n") == 2


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Arguments that tokenize two images and a file that is none, with a tokenizer that knows nothing."""
    (tmp_path / "media").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 32), "teal").save(tmp_path / "media" / f"{name}.png")
    (tmp_path / "media" / "c.png").write_text("nonsense")
    rows = "".join(f"{name}.png,caption {name}\n" for name in "abc")
    (tmp_path / "media" / "list.csv").write_text("path,caption\n" + rows)
    FsqTokenizer(TokenizerConfig(width=16, patch_width=8)).save(tmp_path / "tiny.safetensors")
    source, tokenizer = tmp_path / "media" / "list.csv", tmp_path / "tiny.safetensors"
    return ["tokenize", str(source), "--tokenizer", str(tokenizer), "--workers", "0", "--size", "32x32"]


def test_from_images_to_shards_to_a_picture(
    images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "v1.0"
    assert main([*images, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{out}/images: 2 samples in 1 shard" in printed and "2 frames in " in printed
    assert "1 quarantined (" in printed and f"{out}/quarantine.jsonl" in printed
    assert main([*images, "--out", str(out)]) == 0
    assert "complete already" in capsys.readouterr().out
    assert main([*images, "--out", str(out), "--fps", "8"]) == 2
    assert told(capsys.readouterr().err)[2:4] == ["fps", "got 8, expected 12 as before"]
    (tmp_path / "other").mkdir()
    assert main([*images, "--out", str(tmp_path / "other"), "--device", "tpu"]) == 2

    shards = (out / "images").rename(tmp_path / "images.v1")
    assert main(["shards", "show", str(shards), "--tokenizer", images[3]]) == 0
    monkeypatch.chdir(shards)
    assert main(["shards", "show", ".", "--tokenizer", images[3]]) == 0
    assert (tmp_path / "images.v1.png").is_file() and not (tmp_path / "images.png").exists()
    assert main(["shards", "show", ".", "--out", "manifest.json/x.png", "--tokenizer", images[3]]) == 3
    assert capsys.readouterr().err.count("\n") == 2


def test_what_lies_in_a_store_is_seen_before_the_work(
    images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a local folder: the same command goes on, from any machine; a list may grow; all else is refused."""
    url, source = f"memory://{tmp_path.name}/films", tmp_path / "media" / "list.csv"

    def exit_status(machine: str, *more: str, to: str = url) -> int:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        return main([*images, "--out", to, *more])

    def shards(machine: str) -> list[Path]:
        return list((tmp_path / machine).rglob("*.tar"))

    assert exit_status("first") == 0 and shards("first")
    assert exit_status("another") == exit_status("first") == 0
    capsys.readouterr()
    assert exit_status("third", "--fps", "8") == 3 and not shards("third")
    assert told(capsys.readouterr().err)[1] == url
    source.write_text(source.read_text() + "b.png,another caption\n")
    assert exit_status("third") == 3 and not shards("third")
    assert exit_status("first") == 0 == exit_status("first")
    assert exit_status("third", "--part", "0/2") == 3 and not shards("third")

    # As what was put before there were such notes lies there:
    fsspec.filesystem("memory").rm_file(f"/{tmp_path.name}/films/.lumos-begun.json")
    assert exit_status("third") == 3 and not shards("third")
    assert exit_status("first", "--retry-quarantined") == 0


def test_parts_of_any_machine_come_into_one_place_of_a_store(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}/films"
    for part in "0/2", "1/2":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / part[0]))
        assert main([*images, "--out", url, "--part", part]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "2"))
    for wrong in (["--part", "1/3"], []):
        assert main([*images, "--out", url, *wrong]) == 3


def test_rows_that_a_condition_leaves_out_are_counted(
    images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for out in ["out"], ["look", "--dry-run"]:
        assert main([*images, "--where", "path != 'c.png'", "--out", str(tmp_path / out[0]), *out[1:]]) == 0
        assert "1 of 3 rows left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["end", "End (s)", "scene_end", "stop_time", "ends"])
def test_a_column_that_seems_to_say_where_clips_end_is_told_of(
    name: str, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*images, "--dry-run", "--out", str(tmp_path / "out")]
    (tmp_path / "media" / "list.csv").write_text(f"path,caption,start,{name}\na.png,x,0,1.5\n")
    assert main(words) == 0
    assert told(capsys.readouterr().err)[1:3] == [name, "each has up to 2 s from its start"]
    for columns in f"begun,{name}", "start,endless":  # without starts, and of no time
        (tmp_path / "media" / "list.csv").write_text(f"path,caption,{columns}\na.png,x,0,1.5\n")
        assert main(words) == 0
        assert not capsys.readouterr().err


def test_a_folder_of_before_knows_files_by_their_spelling(images: list[str], tmp_path: Path) -> None:
    """A list once had a sample for each spelling of a path; where that was begun it goes on."""
    source, now, before = tmp_path / "media" / "list.csv", tmp_path / "now", tmp_path / "before"
    source.write_text("path,caption\n./a.png,x\nb.png,x\n")
    assert main([*images, "--out", str(now)]) == 0
    state = json.loads((now / "tokenize.json").read_text())
    del state["settings"]["names"]
    before.mkdir()
    (before / "tokenize.json").write_text(json.dumps(state | {"complete": None}))
    assert main([*images, "--out", str(before)]) == 0
    source.write_text(source.read_text() + "a.png,x\n")
    assert (main([*images, "--out", str(now)]), main([*images, "--out", str(before)])) == (3, 0)
    keys = [{sample.key for sample in all_samples(folder / "images")} for folder in (now, before)]
    assert (len(keys[0]), len(keys[1]), keys[0] < keys[1]) == (2, 3, True)


@pytest.mark.parametrize(
    ("content", "where"),
    [("path,caption\na.png,\n", "line 2: caption"), ("path\na.png\n", "line 1: caption"), ("", None)],
)
def test_a_list_that_is_wrong_is_one_line(
    content: str, where: str | None, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "media" / "list.csv").write_text(content)
    assert main([*images, "--out", str(tmp_path / "out")]) == 3
    parts = told(capsys.readouterr().err)
    assert parts[1] == str(tmp_path / "media" / "list.csv") and where in (None, parts[2])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["--help", "experiments"])
def test_what_only_lists_does_not_wait_for_heavy_imports(word: str) -> None:
    code = f"""
import sys
from contextlib import suppress
from experiments.cli import main
with suppress(SystemExit):
    main(["{word}"])
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0 and done.stdout


# -- settings ------------------------------------------------------------------------------------


def test_config_prints_what_the_run_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["trainer.max_steps=7", "trainer.profiler=simple"]
    assert main(["config", "demo", *words]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert read_config(tmp_path / "config.yaml") == load_experiment("demo", words)
    assert main(["config", "nonesuch"]) == 2


@pytest.mark.parametrize("name", ["debug", "tokenizer_fsq"])
def test_every_key_is_listed_with_its_type_value_and_meaning(name: str) -> None:
    config = load_experiment(name, ["trainer.detect_anomaly=true"])
    listed = {key.name: key for key in keys_of(config)}
    written = set(flat(plain(config))) - {"trainer.lightning.detect_anomaly"}
    assert written <= set(listed) and listed["trainer.detect_anomaly"].value == "true"
    assert not [key.name for key in listed.values() if not key.type or not key.about]
    assert "trainer.max_epochs" not in listed and listed["trainer.max_steps"].type == "int"
    numbers = {"int", "float", "int or null", "float or null"}
    own = [key for key in listed.values() if "Lightning's" not in key.about and ".NAME." not in key.name]
    assert not [key.name for key in own if key.type in numbers and not key.range]
    assert listed["data.num_workers"].range == "0 to 1024" and listed["optimizer.lr"].range == "above 0"


def flat(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        elif value != {}:
            yield prefix + key


def test_a_section_is_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "debug", "--keys", "sampling"]) == 0
    shown = capsys.readouterr().out
    assert "sampling.guidance" in shown and "mask.kind" not in shown
    assert main(["config", "debug", "--keys", "samplings"]) == 2
    assert "did you mean sampling?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "debug", "seed=7", "--help"])
    shown = capsys.readouterr().out
    assert "usage: lumos train" in shown and "world.side" in shown and " = 7\n" in shown
