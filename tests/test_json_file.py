"""JSON files that nobody vouches for: one line with the file, whatever they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lumos_pl.errors import CheckpointError, DataError
from lumos_pl.machinery.json_file import as_json, parse_json, read_bytes, read_json, read_object

DAMAGED = {
    "empty": b"",
    "cut short": b'{"a": [1, 2',
    "two values": b"1 2",
    "no UTF-8": b'"\xff"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "not a number": b"[NaN]",
    "infinity": b"[-Infinity]",
    "too large a number": b"[1e999]",
    "too many digits": b"9" * 5000,
    "a name twice": b'{"a": 1, "b": {"c": 1, "c": 1}}',
    "too deep": b"[" * 100_000,
    "too deep objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(file)
    assert caught.value.file == file and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for file in tmp_path / "fifo", tmp_path / "folder", Path("/dev/zero"), tmp_path / "absent", Path("a\0b"):
        with pytest.raises(DataError):
            read_bytes(file)
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", at_most=5) == b"12345"
    with pytest.raises(DataError):
        read_bytes(tmp_path / "x", at_most=4)


def test_whose_file_it_is_decides_what_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[1]")
    with pytest.raises(CheckpointError) as caught:
        read_object(file, error=CheckpointError, fix="make it anew")
    assert (caught.value.file, caught.value.fix) == (file, "make it anew")
    file.write_text("[1")
    with pytest.raises(CheckpointError):
        read_json(file, error=CheckpointError)


def test_sound_json_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(' {"a": [1, -2.5e3, true, null, "\u00fc\\ud83d\\ude00"], "": {}}\n', encoding="utf-8")
    assert read_object(file) == {"a": [1, -2500.0, True, None, "\u00fc\U0001f600"], "": {}}
    assert parse_json(b"12345678901234567890") == 12345678901234567890


def test_a_value_as_a_file_will_have_it() -> None:
    assert as_json({"a": (1, 2), "b": Path("c/d")}) == {"a": [1, 2], "b": "c/d"}
