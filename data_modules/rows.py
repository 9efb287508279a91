"""Rows of a list that a user wrote, as CSV or JSONL."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import parse_json, read_bytes

MOST_LIST_BYTES = 16 << 30  # a hundred million captions

CheckNames = Callable[[Iterable[str]], None]


def read_rows(source: Path, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a .csv with a header, or of a .jsonl of objects: the line where each starts, its values by name.

    Args:
        check_names: raises DataError unless a row's names are as they should be.
    Raises:
        DataError: the first line that cannot be read.
    """
    read = _csv_rows if source.suffix == ".csv" else _jsonl_rows
    return read(read_text(source), check_names)


def _csv_rows(text: str, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    """The line where each row starts, and its values by column; empty lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        with located(where=f"line {line}"):
            try:
                row = next(reader, None)
            except csv.Error as error:
                raise DataError("not CSV", got=error) from error
            if row is None:
                return
            if header is None:
                header = row
                check_names(header)
                if len(set(header)) < len(header):
                    raise DataError("column named twice", got=",".join(header))
            elif row:
                if len(row) != len(header):
                    raise DataError(
                        "wrong number of values", got=len(row), expected=len(header), fix='put commas in "quotes"'
                    )
                yield line, dict(zip(header, row, strict=True))


def _jsonl_rows(text: str, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            with located(where=f"line {line}"):
                row = parse_json(content.encode(), dict[str, object])
                check_names(row)
                yield line, row


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark."""
    data = read_bytes(file, at_most=MOST_LIST_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8", where=f"line {line}", got=f"byte {data[error.start]:#04x}") from error
