"""Only regular files of bounded size are opened, by whatever name, and a copy is a copy."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.sample.prompts import read_prompts
from lumos_pl.errors import CheckpointError, DataError, LumosError
from lumos_pl.layout import compact_layout
from lumos_pl.machinery.regular_file import copy_regular, open_regular, read_regular
from lumos_pl.tokenizers.load import load_text_tokenizer, load_visual_tokenizer
from tests.refusals import refused

SPECIAL: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "link to a FIFO": lambda path: (os.mkfifo(path.with_suffix(".fifo")), path.symlink_to(path.with_suffix(".fifo"))),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "huge": lambda path: (path.touch(), os.truncate(path, 1 << 40)),
}
READERS: dict[str, Callable[[Path], object]] = {
    "bytes": read_regular,
    "x.txt": read_prompts,
    "x.json": read_prompts,
    "x.csv": read_prompts,
    "tokenizer.json": lambda path: load_text_tokenizer(str(path), compact_layout()),
    "x.safetensors": lambda path: load_visual_tokenizer(str(path)),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("special", SPECIAL)
def test_what_is_no_regular_file_of_bounded_size(
    special: str, reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    SPECIAL[special](Path(reader))
    with refused(LumosError):
        READERS[reader](Path(reader))


def test_a_name_that_changes_between_two_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"1")
    opened = os.open

    def swap(path: Path, flags: int) -> int:
        file.unlink()
        os.mkfifo(file)
        return opened(path, flags)

    monkeypatch.setattr(os, "open", swap)
    with refused(DataError, file=file):
        open_regular(file)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_regular(tmp_path / "x", at_most=5) == b"12345"
    with refused(DataError, file="x"):
        read_regular(tmp_path / "x", at_most=4)


def test_whose_file_it_is_decides_what_is_raised(tmp_path: Path) -> None:
    for file in tmp_path, tmp_path / "absent", Path("a\0b"):
        with refused(CheckpointError, file=file.name):
            open_regular(file, error=CheckpointError)


def test_links_are_followed_unless_they_must_not_be(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "link").symlink_to("x")
    assert read_regular(tmp_path / "link") == b"1"
    with refused(DataError, file="link"):
        read_regular(tmp_path / "link", follow=False)


@pytest.mark.parametrize("in_kernel", [True, False])
def test_a_copy_is_a_new_file_with_the_same_content(
    in_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_kernel:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    content = bytes(range(256)) * 100_000
    (tmp_path / "x").write_bytes(content)
    (tmp_path / "link").symlink_to("x")
    assert copy_regular(tmp_path / "link", tmp_path / "copy") == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "copy").read_bytes() == content and not (tmp_path / "copy").samefile(tmp_path / "x")
    with pytest.raises(FileExistsError):
        copy_regular(tmp_path / "x", tmp_path / "copy")
