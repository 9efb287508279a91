"""JSON files that nobody vouches for: one line with the file, whatever they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NotRequired

import pytest
from pydantic import Field, with_config
from typing_extensions import TypedDict

from lumos_pl.errors import CheckpointError, DataError
from lumos_pl.machinery.json_file import Number, as_json, parse_json, parse_object, read_json

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
    "half a character": b'{"a": "\\ud800"}',
    "NUL": b"\0",
    "too deep": b"[" * 100_000,
    "too deep objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_json(file, object)
    assert caught.value.file == file and len(str(caught.value)) < 500 and "\n" not in str(caught.value)


ROWS = [
    b'{"a": 1, "b": -2.5e3, "c": true, "d": null, "e": "\xc3\xbc\\ud83d\\ude00"}',
    b' {"a": [1, "x"], "b": {"c": [[]]}, "d": "10:30 [cut]"}\r\n',
    b"{}",
    b"[1]",
    b'{"a": 1, "a": 1}',
    b'{"a": {"b": 1, "b": 1}}',
    b'{"a": "b", "c": {"c": 1, "c": 1}, "d:": 1}',
    b'{"a": 1e999}',
    b'{"a": [-1e999]}',
    b'{"a": NaN}',
    b'{"a": 1} x',
    *DAMAGED.values(),
]


@pytest.mark.parametrize("content", ROWS, ids=lambda content: repr(content[:20]))
def test_an_object_is_read_quickly_as_any_document_is(content: bytes) -> None:
    def read(parse: Callable[[], object]) -> object:
        try:
            return parse()
        except DataError as error:
            return str(error)

    assert read(lambda: parse_object(content)) == read(lambda: parse_json(content, dict[str, object]))


def test_whose_file_it_is_decides_what_is_raised(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("[1]")
    with pytest.raises(CheckpointError) as caught:
        read_json(file, dict[str, Any], error=CheckpointError, fix="make it anew")
    assert (caught.value.file, caught.value.fix) == (file, "make it anew")
    file.write_text("[1")
    with pytest.raises(CheckpointError):
        read_json(file, object, error=CheckpointError)


def test_sound_json_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(' {"a": [1, -2.5e3, true, null, "\u00fc\\ud83d\\ude00"], "": {}}\n', encoding="utf-8")
    assert read_json(file, object) == {"a": [1, -2500.0, True, None, "\u00fc\U0001f600"], "": {}}
    assert parse_json(b"12345678901234567890", int) == 12345678901234567890


@with_config(extra="forbid")
class Shelf(TypedDict):
    name: str
    books: list[Annotated[int, Field(ge=1)]]
    height: NotRequired[Number | None]


SHELF = {"name": "a", "books": [1, 2], "height": 0.5}
OTHERS = {  # a change, and the place that it is at
    "another type": ({"name": 1}, "name"),
    "a text for a number": ({"height": "0.5"}, "height"),
    "true for a number": ({"books": [1, True]}, "books[1]"),
    "a fraction": ({"books": [1.5]}, "books[0]"),
    "out of range": ({"books": [3, 0]}, "books[1]"),
    "null": ({"books": None}, "books"),
    "unknown": ({"width": 1}, "width"),
    "too large a number": ({"height": 10**400}, "height"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_file_holds_is_of_the_type_that_is_asked_for(name: str, tmp_path: Path) -> None:
    change, where = OTHERS[name]
    file = tmp_path / "x.json"
    file.write_text(json.dumps(SHELF))
    assert read_json(file, Shelf) == SHELF
    file.write_text(json.dumps(SHELF | change))
    with pytest.raises(DataError) as caught:
        read_json(file, Shelf)
    assert (caught.value.file, caught.value.where) == (file, where) and len(str(caught.value)) < 300


def test_a_field_that_is_missing_is_named() -> None:
    with pytest.raises(DataError) as caught:
        parse_json(b'{"name": "a"}', Shelf)
    assert caught.value.where == "books"
    assert "height" not in parse_json(b'{"name": "a", "books": []}', Shelf)


def test_a_value_as_a_file_will_have_it() -> None:
    assert as_json({"a": (1, 2), "b": Path("c/d")}) == {"a": [1, 2], "b": "c/d"}
