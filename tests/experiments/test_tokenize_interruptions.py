"""`lumos tokenize`, killed and stopped: the finished folder is the same to the byte.

pytest -m slow -s tests/experiments/test_tokenize_interruptions.py
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.tokenizing.state import JOURNAL_FILE, STATE_FILE
from experiments.cli import main
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig

KILLS = 10
SEED = 0
N_VIDEOS, N_IMAGES = 40, 20


def write_media(folder: Path) -> None:
    """Videos, images, and two files that are neither."""
    folder.mkdir()
    for number in range(N_VIDEOS + N_IMAGES):
        pixels = torch.randint(256, (12, 64, 64, 3), generator=generator(0, "media", number), dtype=torch.uint8).numpy()
        path = folder / f"{number:03d}"
        path.with_suffix(".txt").write_text(f"noise {number}")
        if number % 3 == 0 and number < 3 * N_IMAGES:
            Image.fromarray(pixels[0]).save(path.with_suffix(".png"))
            continue
        with av.open(path.with_suffix(".mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=12)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for picture in pixels:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            container.mux(stream.encode())
    (folder / "050.mp4").write_bytes((folder / "050.mp4").read_bytes()[:2000])
    (folder / "007.txt").unlink()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments but for --out."""
    folder = tmp_path_factory.mktemp("prepared")
    write_media(folder / "media")
    torch.manual_seed(0)
    FsqTokenizer(TokenizerConfig(width=16, patch_width=8)).save(folder / "tiny.safetensors")
    options = ["--size", "64x64", "--frames", "9", "--workers", "2", "--samples-per-shard", "8"]
    return ["tokenize", str(folder / "media"), "--tokenizer", str(folder / "tiny.safetensors"), *options]


@pytest.fixture(scope="module")
def expected(prepared: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main([*prepared, "--out", str(out)]) == 0
    whole = content(out)
    assert sum(name.endswith(".tar") for name in whole) == 8 and whole["quarantine.jsonl"].count(b"\n") == 2
    return whole


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def start(prepared: list[str], out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.cli", *prepared, "--out", str(out)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(out: Path, lines: int, process: subprocess.Popen[str]) -> bool:
    """Until the journal has so many lines; False if the command has ended before."""
    journal = out / JOURNAL_FILE
    while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1]
            return False
        time.sleep(0.001)
    return True


def running(group: int) -> list[str]:
    """The processes of a group, but those that are dead and only wait to be noticed."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if words[0] != "Z" and int(words[2]) == group:
            found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found


def wait_for_end(group: int) -> None:
    deadline = time.monotonic() + 20
    while running(group):
        assert time.monotonic() < deadline, running(group)
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_moments(prepared: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    draw = random.Random(SEED)
    total = N_VIDEOS + N_IMAGES
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        if number % 2:  # while the shards are assembled
            lines, delay = total, draw.random() * 0.15
        else:
            lines, delay = draw.randrange(1, total), draw.random() * 0.02
        for _ in range(2):  # the second kill meets what the first one left
            process = start(prepared, out)
            if not wait_for(out, lines, process):
                break
            time.sleep(delay)
            if number % 4 < 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # the workers must end by themselves
            process.communicate()
            wait_for_end(process.pid)
        left = sorted(content(out))
        assert main([*prepared, "--out", str(out)]) == 0
        print(
            f"killed at {lines} of {total} + {delay:.3f} s, {len(left)} files left; equal: {content(out) == expected}"
        )
        assert content(out) == expected


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("to_all", "early"), [(False, False), (True, False), (True, True)])
def test_stopped_by_a_signal(
    number: signal.Signals, to_all: bool, early: bool, prepared: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(prepared, tmp_path / "out")
    if early:  # while the workers are being started
        while not (tmp_path / "out" / STATE_FILE).exists():
            time.sleep(0.001)
        time.sleep(0.3)
    else:
        assert wait_for(tmp_path / "out", 5, process)
        assert len(running(process.pid)) > 4  # the command, two workers, two that decode
    if to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 128 + number, errors
    assert errors.startswith("lumos: stopped, ") and errors.count("\n") == 1, errors
    wait_for_end(process.pid)
    assert main([*prepared, "--out", str(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == expected
