"""Rows of a list that a user wrote, a spreadsheet or a program: CSV, TSV, JSON, JSONL or Parquet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import open_regular, size_of

MOST_LIST_BYTES = 16 << 30  # a hundred million captions
_PART_BYTES = 4 << 20  # of a list that is read at once, and which no line fills

_SEPARATORS = (",", ";", "\t", "|")
_ROWS_AT_ONCE = 4096

CheckNames = Callable[[Iterable[str]], None]


def read_rows(
    source: Path, check_names: CheckNames, *, at_most: int = MOST_LIST_BYTES
) -> Iterator[tuple[int, dict[str, object]]]:
    """The rows of a list: the line where each starts (of Parquet the row, of JSON the item), its values by name.

    A .csv or .tsv has a header, whose most frequent mark of `,` `;` tab and `|` separates the columns, as spreadsheets
    of all countries write them. A .jsonl has an object a line, a .json a list of them. A .parquet is read a piece at a
    time.

    Args:
        check_names: raises DataError unless a row's names are as they should be.
        at_most: bytes of the list.
    Raises:
        DataError: the first line that cannot be read.
    """
    if source.suffix == ".parquet":
        return _parquet_rows(source, check_names)
    read = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows}.get(source.suffix, _jsonl_rows)
    return read(read_text(source, at_most=at_most), check_names)


def _csv_rows(text: str, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    """The line where each row starts, and its values by column; empty lines are passed over."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
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
                        "wrong number of values",
                        got=len(row),
                        expected=len(header),
                        fix='put values that hold a separator in "quotes"',
                    )
                yield line, dict(zip(header, row, strict=True))


def _separator(text: str) -> str:
    header = re.sub(r'"[^"]*"', "", text.lstrip().partition("\n")[0])
    return max(_SEPARATORS, key=header.count)  # of equals the first


def _json_rows(text: str, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    for number, row in enumerate(parse_json(text.encode(), list[dict[str, object]]), start=1):
        with located(where=f"item {number}"):
            check_names(row)
        yield number, row


def _parquet_rows(source: Path, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        fix = "pip install 'lumos_pl[parquet]', or write it as CSV"
        raise DataError("Parquet needs a library", got=str(error), fix=fix) from None
    with open_regular(source, at_most=None) as stream:
        try:
            file = ParquetFile(stream)
            check_names(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except ArrowException as error:
            raise DataError("not Parquet", got=" ".join(str(error).split())[:200]) from error


def _jsonl_rows(text: str, check_names: CheckNames) -> Iterator[tuple[int, dict[str, object]]]:
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            with located(where=f"line {line}"):
                row = parse_json(content.encode(), dict[str, object])
                check_names(row)
                yield line, row


def read_text(file: Path, *, at_most: int = MOST_LIST_BYTES) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, and without NUL.

    No content is quoted where it is no text: the file may be somebody else's.
    """
    data = bytearray()
    with open_regular(file, at_most=at_most) as stream:
        left = size_of(stream)
        while part := stream.read(min(left, _PART_BYTES)):
            if b"\0" in part:  # the holes of a sparse file too, whatever size that claims
                line = data.count(b"\n") + part.count(b"\n", 0, part.index(0)) + 1
                raise DataError("not a text", where=f"line {line}", got="NUL", expected="text without NUL")
            if len(part) == _PART_BYTES and b"\n" not in part:
                line = data.count(b"\n") + 1
                raise DataError("line too long", where=f"line {line}", expected=f"at most {_PART_BYTES} bytes")
            data += part
            left -= len(part)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError("not UTF-8", where=f"line {line}", got=f"a wrong byte at offset {error.start}") from error
