"""What a user sees: for every expected failure its line, to the letter, and its exit status.

`messages.json` beside this file holds them. After a change that is meant to be, look at what
`python -m tests.experiments.test_messages` writes there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys
import tempfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from data_modules.manifest import MANIFEST_FILE
from data_modules.shards import ShardWriter
from experiments.cli import main
from experiments.config import experiment_names
from experiments.run_folder import NAME_VARIABLE, RunFolder
from lumos_pl.batch import MaskedBatch
from lumos_pl.checkpoints.complete import PARTIAL
from lumos_pl.module import LumosModule
from tests.data_modules.test_shards import (
    ARCHIVES,
    FIELDS,
    Member,
    make_sample,
    rename,
    seal,
    write,
)
from tests.experiments.conftest import SMALL
from tests.tiny_checkpoint import write_checkpoint

GOLDEN = Path(__file__).with_name("messages.json")
Arguments = list[str]
Row = Callable[[Path], Arguments]


# -- shards --------------------------------------------------------------------------------------


def verify(folder: Path) -> Arguments:
    return ["shards", "verify", str(folder / "s")]


def changed(change: Callable[[Path], None]) -> Row:
    """Three shards of two, two and one samples, of which the second is changed."""

    def prepare(folder: Path) -> Arguments:
        write(folder / "s")
        change(folder / "s" / "shard-000001.tar")
        return verify(folder)

    return prepare


def sealed(change: Callable[[list[Member]], list[Member] | bytes]) -> Row:
    """The first shard made anew, so that its digest is right."""

    def prepare(folder: Path) -> Arguments:
        write(folder / "s")
        seal(folder / "s", 0, change)
        return verify(folder)

    return prepare


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"clip-3.json") + 600] ^= 1
    file.write_bytes(content)


def without_fps(members: list[Member]) -> list[Member]:
    content = json.loads(members[1][1])
    del content["fps"]
    return [members[0], (members[1][0], json.dumps(content).encode()), *members[2:]]


def repeated_key(folder: Path) -> Arguments:
    write(folder / "s")
    seal(folder / "s", 1, lambda m: [rename(m[0], "clip-1.codes.npy"), rename(m[1], "clip-1.json"), *m[2:]])
    return verify(folder)


def outside_names(name: str) -> Row:
    def prepare(folder: Path) -> Arguments:
        write(folder / "s")
        manifest = folder / "s" / MANIFEST_FILE
        content = json.loads(manifest.read_text())
        content["shards"][0]["file"] = name
        manifest.write_text(json.dumps(content))
        return verify(folder)

    return prepare


def too_many_bad(folder: Path) -> Arguments:
    changed(flip)(folder)
    return [*verify(folder), "--skip-bad", "--out", str(folder / "out")]


def two_tokenizers(folder: Path) -> Arguments:
    for kind, tokenizer, index in ("images", "toy", 1), ("videos", "other", 0):
        with ShardWriter(folder / kind, tokenizer=tokenizer, codebook_size=240, strides=(4, 8, 8)) as writer:
            writer.add(replace(make_sample(index), text="a cat"))
    return train(folder, f"data.root={folder}")


# -- runs ----------------------------------------------------------------------------------------


def train(folder: Path, *settings: str) -> Arguments:
    place = [f"run.dir={folder / 'runs'}", "run.name=one", "trainer.max_steps=1"]
    return ["train", "debug", *SMALL, *place, "trainer.val_every_n_steps=0", *settings]


def asked(*settings: str) -> Row:
    return lambda folder: train(folder, *settings)


def run_of(folder: Path) -> Path:
    return folder / "runs" / "debug" / "one"


def trained(folder: Path) -> Path:
    with quiet() as (_, said):
        assert main(train(folder)) == 0, said.getvalue()
    return run_of(folder)


def resumed_with(*settings: str) -> Row:
    return lambda folder: ["resume", str(trained(folder)), "trainer.max_steps=2", *settings]


def damaged_checkpoint(folder: Path) -> Arguments:
    file = trained(folder) / "checkpoints" / "step-00000001.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return ["resume", str(run_of(folder)), "trainer.max_steps=2"]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


def full_disk(name: str) -> Row:
    """A run that finds no space for one of its files."""

    def prepare(folder: Path) -> Arguments:
        run_of(folder).mkdir(parents=True)
        (run_of(folder) / f"{name}{PARTIAL}").symlink_to("/dev/full")
        return train(folder, "data.kind=image")

    return prepare


def hostile_checkpoint(folder: Path) -> Arguments:
    torch.save({"state_dict": Evil()}, folder / "evil.ckpt")
    return train(folder, f"init_from={folder / 'evil.ckpt'}")


def hostile_tokens(folder: Path) -> Arguments:
    (folder / "a.pkl").write_bytes(pickle.dumps(Evil()))
    return ["import-tokens", str(folder / "a.pkl"), "--out", str(folder / "out")]


# -- captions, prompts, media --------------------------------------------------------------------


def listed(rows: bytes) -> Row:
    def prepare(folder: Path) -> Arguments:
        (folder / "list.csv").write_bytes(b"path,caption\n" + rows)
        return ["tokenize", str(folder / "list.csv"), "--out", str(folder / "out"), "--workers", "0"]

    return prepare


def hostile_video(folder: Path) -> Arguments:
    (folder / "a.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    return listed(b"a.mp4,a cat\n")(folder)


def prompted(prompt: str, *options: str) -> Row:
    def prepare(folder: Path) -> Arguments:
        checkpoint = write_checkpoint(folder / "tiny.ckpt")
        return ["sample", "--ckpt", str(checkpoint), "--prompt", prompt, "--out", str(folder / "out"), *options]

    return prepare


ROWS: dict[str, Row] = {
    "shard: payload flipped": changed(flip),
    "shard: cut": changed(lambda file: file.write_bytes(file.read_bytes()[:3000]) and None),
    "shard: empty": changed(lambda file: file.write_bytes(b"") and None),
    "shard: missing": changed(Path.unlink),
    "shard: extra": changed(lambda file: shutil.copy(file, file.with_name("more.tar")) and None),
    "shard: another's content": changed(lambda file: shutil.copy(file.with_name("shard-000000.tar"), file) and None),
    "shard: too many bad": too_many_bad,
    "sample: one key twice": repeated_key,
    "sample: missing field": sealed(without_fps),
    "sample: id outside the codebook": sealed(lambda m: [(m[0][0], FIELDS["outside"][0]), *m[1:]]),
    "sample: wrong dtype": sealed(lambda m: [(m[0][0], FIELDS["signed"][0]), *m[1:]]),
    "sample: wrong grid": sealed(lambda m: [(m[0][0], FIELDS["grid"][0]), *m[1:]]),
    "shards of two tokenizers": two_tokenizers,
    "manifest: pipe": outside_names("pipe:touch x.tar"),
    "manifest: URL": outside_names("http://host/s.tar"),
    "member: link": sealed(ARCHIVES["symbolic link"][0]),
    "caption: not UTF-8": listed(b"a.png,\xff\n"),
    "caption: empty": listed(b"a.png,\n"),
    "caption: NUL": listed(b"a.png,a\0b\n"),
    "prompt: empty": prompted(" "),
    "prompt: longer than the context": prompted("word " * 4000),
    "size beyond the context": prompted("a cat", "--size", "4096x4096"),
    "frames beyond the context": asked("data.video.frames=4001"),
    "number: negative": asked("trainer.max_steps=-1"),
    "number: NaN": asked("data.caption_dropout=nan"),
    "number: infinite": asked("optimizer.lr=inf"),
    "number: a word": asked("optimizer.lr=fast"),
    "unknown key": asked("optimizer.lrr=1"),
    "unknown experiment": lambda folder: ["train", "debgu"],
    "no GPU": lambda folder: ["train", "t2v_1b"],
    "disk full": asked("checkpoint.every_n_steps=1"),
    "disk full: config.yaml": full_disk("config.yaml"),
    "disk full: result.json": full_disk("result.json"),
    "two runs in one folder": asked(),
    "NaN": asked("data.kind=image"),
    "data worker killed": asked("data.num_workers=1", "data.kind=image", "trainer.max_steps=9"),
    "resume: other batches": resumed_with("trainer.accumulate=3"),
    "resume: other data": resumed_with("data.synthetic.n_samples=11"),
    "resume: other layout": resumed_with("layout.codebook_size=120"),
    "checkpoint: damaged": damaged_checkpoint,
    "checkpoint: hostile": hostile_checkpoint,
    "tokens: hostile": hostile_tokens,
    "video: a list of others": hostile_video,
}


@contextmanager
def quiet() -> Iterator[tuple[StringIO, StringIO]]:
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        yield out, err


Space = namedtuple("Space", "total used free")


@contextmanager
def circumstances(name: str, folder: Path) -> Iterator[None]:
    """What no argument can bring about."""
    with patch.dict(os.environ):
        os.environ.pop(NAME_VARIABLE, None)
        match name:
            case "disk full":
                with patch.object(shutil, "disk_usage", lambda path: Space(1 << 30, 1 << 30, 0)):
                    yield
            case "two runs in one folder":
                with RunFolder(run_of(folder)).lock(rank=0):
                    yield
            case "NaN":
                step = LumosModule._step

                def broken(self: LumosModule, batch: MaskedBatch) -> dict[str, torch.Tensor]:
                    outputs = step(self, batch)
                    return {**outputs, "loss": outputs["loss"] * float("nan")}

                with patch.object(LumosModule, "_step", broken):
                    yield
            case "data worker killed":
                train_step = LumosModule.training_step

                def deadly(self: LumosModule, batch: MaskedBatch, batch_idx: int) -> dict[str, torch.Tensor]:
                    for worker in multiprocessing.active_children():
                        os.kill(worker.pid or 0, signal.SIGKILL)
                    return train_step(self, batch, batch_idx)

                with patch.object(LumosModule, "training_step", deadly):
                    yield
            case _:
                yield


def shown(name: str, folder: Path) -> dict[str, object]:
    """Exit status and line of a failure, with what differs from call to call left out."""
    arguments = ROWS[name](folder)
    with quiet() as (_, err), circumstances(name, folder):
        status = main(arguments)
    line = err.getvalue().replace(str(folder), "DIR")
    line = re.sub(r"pid [0-9]+", "pid PID", re.sub(r"\b[0-9a-f]{64}\b", "SHA256", line))
    line = line.replace(", ".join(experiment_names()), "EXPERIMENTS")
    line = re.sub(r"(after sample \S+-)[0-9]+", r"\1NUMBER", line)  # how far a worker had come when it was killed
    return {"exit": status, "line": line.removesuffix("\n")}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one row needs a machine without a GPU")
def test_the_line_a_user_sees(name: str, tmp_path: Path) -> None:
    found = shown(name, tmp_path)
    assert found == json.loads(GOLDEN.read_text())[name]
    assert "\n" not in str(found["line"]) and found["exit"] in (2, 3, 4, 5)


if __name__ == "__main__":
    messages = {}
    for row in ROWS:
        with tempfile.TemporaryDirectory() as scratch:
            messages[row] = shown(row, Path(scratch))
            print(row, file=sys.stderr)
    GOLDEN.write_text(json.dumps(messages, indent=1, ensure_ascii=False) + "\n")
