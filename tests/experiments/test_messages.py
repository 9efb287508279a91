"""What a user sees: for every expected failure its line, to the letter, and its exit status.

`messages.json` beside this file holds them. After a change that is meant to be, look at what
`python -m tests.experiments.test_messages` writes there.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.shards.manifest import MANIFEST_FILE
from data_modules.shards.writer import ShardWriter
from experiments.cli import main
from experiments.read_config import experiment_names
from lumos_pl.machinery.encoding import encode_mp4, encode_png
from lumos_pl.machinery.stop_request import StoppedBySignal
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.data_modules.shards.shard_files import (
    ARCHIVES,
    FIELDS,
    Member,
    make_sample,
    make_tar,
    open_writer,
    rename,
    seal,
    write,
)
from tests.experiments.circumstances import circumstances
from tests.experiments.conftest import SMALL, SMALL_TOKENIZER
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


def oversized() -> tarfile.TarInfo:
    """A member that says it has 4 GiB."""
    member = tarfile.TarInfo("clip-9.json")
    member.size = 1 << 32
    return member


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


def of_another_tokenizer(folder: Path) -> Arguments:
    with open_writer(folder / "s") as writer:
        writer.add(make_sample(0, text="a cat"))
    root = [f"data.root={folder / 's'}", "data.kind=video", "data.val_root=null"]
    return train(folder, *root, "layout.codebook_size=240", "visual_tokenizer=embedded")


# -- runs ----------------------------------------------------------------------------------------


def train(folder: Path, *settings: str) -> Arguments:
    place = [f"run.dir={folder / 'runs'}", "run.name=one", "trainer.max_steps=1"]
    unvalidated = ["trainer.val_every_n_steps=0", "data.val_root=null"]
    return ["train", "debug", *SMALL, *place, *unvalidated, *settings]


def asked(*settings: str) -> Row:
    return lambda folder: train(folder, *settings)


def mixed(sources: str) -> Row:
    return asked("data.root=null", "data.val_root=null", f"data.sources={sources}")


def run_of(folder: Path) -> Path:
    return folder / "runs" / "debug" / "one"


def trained(folder: Path) -> Path:
    with quiet() as (_, said):
        assert main(train(folder)) == 0, said.getvalue()
    return run_of(folder)


def resumed_with(*settings: str) -> Row:
    return lambda folder: ["resume", str(trained(folder)), "trainer.max_steps=2", *settings]


def mixed_and_resumed(folder: Path) -> Arguments:
    sources = "data.sources={a: {root: synthetic, kind: image}, b: {root: synthetic, kind: image}}"
    with quiet() as (_, said):
        assert main(train(folder, "data.root=null", "data.val_root=null", sources)) == 0, said.getvalue()
    return ["resume", str(run_of(folder)), "trainer.max_steps=2", "data.sources.b.weight=9"]


def tokenizer_training(folder: Path) -> Arguments:
    small = [*SMALL_TOKENIZER, "data.num_workers=1", "trainer.max_steps=9"]
    return ["train", "tokenizer_fsq", f"run.dir={folder / 'runs'}", f"world.folder={folder / 'clips'}", *small]


def damaged_file(folder: Path) -> Arguments:
    damaged_checkpoint(folder)
    file = run_of(folder) / "checkpoints" / "step-00000001.ckpt"
    return train(folder, f"init_from={file}", "run.name=two")


def damaged_copy(folder: Path) -> Arguments:
    """Without the digest, which stayed behind."""
    checkpoint = write_checkpoint(folder / "tiny.ckpt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    return sampled(checkpoint, "a cat")


def damaged_checkpoint(folder: Path) -> Arguments:
    file = trained(folder) / "checkpoints" / "step-00000001.ckpt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return ["resume", str(run_of(folder)), "trainer.max_steps=2"]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch executed",)


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


def cut_file(name: str, content: bytes) -> Row:
    def prepare(folder: Path) -> Arguments:
        (folder / name).write_bytes(content[: len(content) // 2])
        return listed(f"{name},a cat\n".encode())(folder)

    return prepare


def sampled(checkpoint: Path, prompt: str, *options: str) -> Arguments:
    out = str(checkpoint.with_name("out"))
    return ["sample", "--ckpt", str(checkpoint), "--prompt", prompt, "--out", out, *options]


def prompted(prompt: str, *options: str, **checkpoint: Any) -> Row:
    return lambda folder: sampled(write_checkpoint(folder / "tiny.ckpt", **checkpoint), prompt, *options)


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
    "shards of another visual tokenizer": of_another_tokenizer,
    "manifest: pipe": outside_names("pipe:touch x.tar"),
    "manifest: URL": outside_names("http://host/s.tar"),
    "member: link": sealed(ARCHIVES["symbolic link"][0]),
    "member: oversized": sealed(lambda m: make_tar(m[:3], oversized())),
    "caption: not UTF-8": listed(b"a.png,\xff\n"),
    "caption: empty": listed(b"a.png,\n"),
    "caption: NUL": listed(b"a.png,a\0b\n"),
    "prompt: empty": prompted(" "),
    "prompt: NUL": prompted("a\0cat"),
    "prompt: longer than the context": prompted("word " * 4000),
    "size beyond the context": prompted("a cat", "--size", "4096x4096"),
    "frames beyond the context": asked("data.video.frames=4001"),
    "batches beyond the memory": asked("data.video.batch_size=500"),
    "number: negative": asked("trainer.max_steps=-1"),
    "number: NaN": asked("data.caption_dropout=nan"),
    "number: infinite": asked("optimizer.lr=inf"),
    "number: a word": asked("optimizer.lr=fast"),
    "mixture: a weight of nothing": mixed("{a: {root: synthetic, kind: image, weight: 0}}"),
    "mixture: no source at a step": mixed("{a: {root: synthetic, kind: image, weight: [[0, 1], [9, 0]]}}"),
    "mixture: no such folder": mixed("{a: {root: absent, kind: image}}"),
    "mixture: two of one name": mixed("[{name: a, root: b}, {name: a, root: c}]"),
    "unknown key": asked("optimizer.lrr=1"),
    "unknown experiment": lambda folder: ["train", "debgu"],
    "no GPU": lambda folder: ["train", "t2v_1b"],
    "disk full": asked("checkpoint.every_n_steps=1"),
    "disk full: amid a checkpoint": asked("checkpoint.every_n_steps=1"),
    "disk full: config.yaml": asked("data.kind=image"),
    "disk full: result.json": asked("data.kind=image"),
    "two runs in one folder": asked(),
    "SIGTERM: training": asked("data.kind=image"),
    "SIGTERM: sampling": prompted("a cat"),
    "NaN": asked("data.kind=image"),
    "data worker killed": asked("data.num_workers=1", "data.kind=image", "trainer.max_steps=9"),
    "data worker killed: tokenizer training": tokenizer_training,
    "resume: other batches": resumed_with("trainer.accumulate=3"),
    "resume: other data": resumed_with("data.synthetic.n_samples=11"),
    "resume: another share of a mixture": mixed_and_resumed,
    "resume: other layout": resumed_with("layout.codebook_size=120"),
    "resume: other tokenizer": resumed_with("data.text_tokenizer=embedded"),
    "checkpoint: damaged": damaged_checkpoint,
    "checkpoint: damaged, by its name": damaged_file,
    "checkpoint: damaged, without a digest": damaged_copy,
    "checkpoint: of another visual tokenizer": prompted("a cat", codes_of="fsq-0123456789ab"),
    "checkpoint: hostile": hostile_checkpoint,
    "tokens: hostile": hostile_tokens,
    "video: a list of others": hostile_video,
    "video: cut": cut_file("a.mp4", encode_mp4(np.zeros((9, 32, 32, 3), np.uint8), 8)),
    "image: cut": cut_file("a.png", encode_png(Image.linear_gradient("L"))),
}


@contextmanager
def quiet() -> Iterator[tuple[StringIO, StringIO]]:
    """What is printed meanwhile, warnings and lines of logs too, which pytest would keep to itself."""
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err, warnings.catch_warnings():
        warnings.simplefilter("default")
        for unseen in DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning:
            warnings.simplefilter("ignore", unseen)  # as for a user: an earlier test's file may be collected meanwhile
        warnings.showwarning = lambda *said: print(warnings.formatwarning(*said[:4]), end="", file=err)
        logged = logging.StreamHandler(err)
        logged.setLevel(logging.WARNING)
        logging.getLogger().addHandler(logged)
        try:
            yield out, err
        finally:
            logging.getLogger().removeHandler(logged)


def exit_status(arguments: Arguments) -> int:
    """Also of a command that was told to stop, after which a process ignores signals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return main(arguments)
    except StoppedBySignal as stop:
        return int(str(stop.code))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def shown(name: str, folder: Path) -> dict[str, object]:
    """Exit status and line of a failure, with what differs from call to call left out."""
    arguments = ROWS[name](folder)
    with quiet() as (_, err), circumstances(name, run_of(folder)):
        status = exit_status(arguments)
    line = err.getvalue().replace(str(folder), "DIR")
    line = re.sub(r"pid [0-9]+", "pid PID", re.sub(r"\b[0-9a-f]{64}\b", "SHA256", line))
    line = line.replace(", ".join(experiment_names()), "EXPERIMENTS")
    line = line.replace(load_visual_tokenizer("embedded").fingerprint, "EMBEDDED")
    line = re.sub(r"(after sample \S+-)[0-9]+", r"\1NUMBER", line)  # how far a worker had come when it was killed
    return {"exit": status, "line": line.removesuffix("\n")}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="one row needs a machine without a GPU")
def test_the_line_a_user_sees(name: str, tmp_path: Path) -> None:
    found = shown(name, tmp_path)
    assert found == json.loads(GOLDEN.read_text())[name]
    assert "\n" not in str(found["line"]) and found["exit"] in (2, 3, 4, 5, 75, 143)


if __name__ == "__main__":
    messages = {}
    for row in ROWS:
        with tempfile.TemporaryDirectory() as scratch:
            messages[row] = shown(row, Path(scratch))
            print(row, file=sys.stderr)
    GOLDEN.write_text(json.dumps(messages, indent=1, ensure_ascii=False) + "\n")
