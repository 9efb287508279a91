"""Rows of a list that a user wrote, a spreadsheet or a program: CSV, TSV, JSON, JSONL or Parquet.

Lists may have tens of millions of rows: all but JSON are read as a stream, a few lines at a time.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import first_repeated, parse_json, parse_object
from lumos_pl.machinery.regular_file import open_regular, size_of

MOST_LIST_BYTES = 16 << 30  # a hundred million captions
_PART_BYTES = 4 << 20  # of a file that is read at once, and which no line of a list fills

TABLES = (".csv", ".tsv")  # whose values are all texts
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"sep=([,;\t|])")
_TEXT_OR_NAN = re.compile(r'"(?:[^"\\]|\\.)*"|\bNaN\b')
_ROWS_AT_ONCE = 4096

UTF_8 = "utf-8-sig"  # with or without a byte order mark
_SAVE = "save it as UTF-8"
_OTHERS = [
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"PK\3\4", "a zip archive, as a spreadsheet's own format is", "unpack it, or save the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet of an old format", "save the table as CSV"),
    (b"PAR1", "Parquet", "name it .parquet"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it first"),
]

CheckNames = Callable[[Iterable[str]], None]
Row = tuple[int, dict[str, object]]


def read_rows(source: Path, check_names: CheckNames, *, at_most: int = MOST_LIST_BYTES) -> Iterator[Row]:
    """The rows of a list: the line where each starts (of Parquet the row, of JSON the item), its values by name.

    A .csv or .tsv has a header, whose most frequent mark of `,` `;` tab and `|` separates the columns, as spreadsheets
    of all countries write them. A .jsonl has an object a line, a .json a list of them, which is read whole.

    Args:
        check_names: raises DataError unless a row's names are as they should be.
        at_most: bytes of the list.
    Raises:
        DataError: the first line that cannot be read.
    """
    suffix = source.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(source, check_names)
    encoding = encoding_of(source)
    if suffix == ".json":
        return _json_rows(read_text(source, at_most=at_most, encoding=encoding), check_names)
    is_table = suffix in TABLES
    lines = _lines(source, at_most=at_most, newline="" if is_table else "\n", encoding=encoding)
    return _csv_rows(lines, check_names) if is_table else _jsonl_rows(lines, check_names)


def encoding_of(source: Path) -> str:
    """UTF-8, or UTF-16 where a mark says so, as of a spreadsheet's "Unicode text"; raises for what is no text."""
    with open_regular(source, at_most=None) as stream:
        begins = stream.read(4)
    for mark, kind, fix in _OTHERS:
        if begins.startswith(mark):
            raise DataError("not a text", got=kind, expected="a list as its name says", fix=fix)
    return "utf-16" if begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else UTF_8


def _lines(source: Path, *, at_most: int, newline: str, encoding: str) -> Iterator[str]:
    """The lines of a text with their ends.

    Args:
        newline: see `io.TextIOWrapper`; empty: a line ends as any system ends it.
    """
    with open_regular(source, at_most=at_most) as stream:
        text = io.TextIOWrapper(stream, encoding=encoding, newline=newline)
        number = 0
        try:
            while line := text.readline(_PART_BYTES):
                number += 1
                if "\0" in line:  # the holes of a sparse file too, whatever size that claims
                    raise DataError("not a text", where=f"line {number}", got="NUL", expected="text without NUL")
                if len(line) == _PART_BYTES and not line.endswith("\n"):
                    expected = f"at most {_PART_BYTES} bytes"
                    raise DataError("line too long", where=f"line {number}", expected=expected)
                yield line
        except UnicodeError as error:
            if encoding != UTF_8:
                raise DataError("not UTF-16", where=f"line {number + 1}", fix=_SAVE) from error
            raise _not_utf8(source) from None


def _not_utf8(source: Path) -> DataError:
    """What is said of a text that is none; nothing of it is quoted: the file may be somebody else's."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = offset = 0
    with open_regular(source, at_most=None) as stream:
        while True:
            part, begun = stream.read(_PART_BYTES), len(decoder.getstate()[0])
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                place = error.start - begun
                line, got = lines + part.count(b"\n", 0, max(0, place)) + 1, f"a wrong byte at offset {offset + place}"
                return DataError("not UTF-8", where=f"line {line}", got=got, fix=_SAVE)
            if not part:
                return DataError("not UTF-8", got="other bytes than a moment ago")
            lines, offset = lines + part.count(b"\n"), offset + len(part)


def _csv_rows(lines: Iterator[str], check_names: CheckNames) -> Iterator[Row]:
    """The line where each row starts, and its values by column; rows without a value, as of spreadsheets, are none."""
    said: re.Match[str] | None = None
    first: list[str] = []  # up to the header, which tells what separates
    for line in lines:
        first.append(line)
        if found := _SEPARATOR.fullmatch(line.strip()):  # as some spreadsheets write it and ask for it
            first[-1], said = "\n", found
        elif line.strip():
            break
    csv.field_size_limit(_PART_BYTES)  # by default 128 KiB, which a column beside the captions may have
    names = re.sub(r'"[^"]*"', "", first[-1]) if first else ""
    separator = said[1] if said else max(_SEPARATORS, key=names.count)  # of equals the first
    spaced = f"{separator} " in names  # then a quoted value may stand behind a blank
    reader = csv.reader(chain(first, lines), strict=True, delimiter=separator, skipinitialspace=spaced)
    header: list[str] | None = None
    while True:
        line_number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            fix = 'a quoted value ends with its quote; a quote inside it is written twice: ""'
            raise DataError("not CSV", where=f"line {line_number}", got=error, fix=fix) from error
        if row is None:
            return
        if header is None and row:
            header = [name.strip() for name in row]
            with located(where=f"line {line_number}"):
                check_names(header)
                _check_once(header)
        elif header is not None and any(map(str.strip, row)):
            if len(row) != len(header):
                raise DataError(
                    "wrong number of values",
                    where=f"line {line_number}",
                    got=len(row),
                    expected=len(header),
                    fix='put values that hold a separator in "quotes"',
                )
            yield line_number, dict(zip(header, row, strict=True))


def _check_once(header: Iterable[str]) -> None:
    if repeated := first_repeated(filter(None, header)):  # columns without a name are none
        raise DataError("column named twice", got=repeated)


def _json_rows(text: str, check_names: CheckNames) -> Iterator[Row]:
    for number, row in enumerate(parse_json(_without_nan(text).encode(), list[dict[str, object]]), start=1):
        with located(where=f"item {number}"):
            check_names(row)
        yield number, row


def _without_nan(text: str) -> str:
    """JSON without NaN, which stands for a missing value where Python or pandas wrote it."""
    if "NaN" not in text:
        return text
    return _TEXT_OR_NAN.sub(lambda found: "null" if found[0] == "NaN" else found[0], text)


def _parquet_rows(source: Path, check_names: CheckNames) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, Table
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        fix = "pip install 'lumos_pl[parquet]', or write it as CSV"
        raise DataError("Parquet needs a library", got=str(error), fix=fix) from None
    with open_regular(source, at_most=None) as stream:
        try:
            file = ParquetFile(stream)
            check_names(file.schema_arrow.names)
            _check_once(file.schema_arrow.names)
            number = 0
            schema = _in_microseconds(file.schema_arrow)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in _plain(Table.from_batches([batch]), schema, number):
                    number += 1
                    yield number, row
        except ArrowException as error:
            raise DataError("not Parquet", got=" ".join(str(error).split())[:200]) from error


def _in_microseconds(schema: Any) -> Any:
    """An Arrow schema without timestamps of nanoseconds, which Python's are not as fine as."""
    from pyarrow import timestamp
    from pyarrow.types import is_timestamp

    for place, field in enumerate(schema):
        if is_timestamp(field.type) and field.type.unit == "ns":
            schema = schema.set(place, field.with_type(timestamp("us", field.type.tz)))
    return schema


def _plain(rows: Any, schema: Any, number: int) -> list[dict[str, object]]:
    """Rows of an Arrow table as Python has them; `number` of them came before."""
    try:
        values: list[dict[str, object]] = rows.cast(schema, safe=False).to_pylist()
    except Exception as error:  # of a time zone that is not known here, a year behind 9999
        got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError("a value that Python cannot hold", where=f"behind row {number}", got=got) from error
    return values


def _jsonl_rows(lines: Iterator[str], check_names: CheckNames) -> Iterator[Row]:
    checked: tuple[str, ...] | None = None  # the names of the row before, which most rows share
    for number, content in enumerate(lines, start=1):
        if not content.strip():
            continue
        try:
            row = parse_object(_without_nan(content).encode())
            if (names := tuple(row)) != checked:
                check_names(row)
                checked = names
        except DataError as error:
            with located(where=f"line {number}"):
                raise error
        yield number, row


def read_text(file: Path, *, at_most: int = MOST_LIST_BYTES, encoding: str = UTF_8) -> str:
    """The text of a file, by default in UTF-8, with or without a byte order mark, and without NUL.

    No content is quoted where it is no text: the file may be somebody else's.
    """
    data = bytearray()
    with open_regular(file, at_most=at_most) as stream:
        left = size_of(stream)
        while part := stream.read(min(left, _PART_BYTES)):
            if encoding == UTF_8 and b"\0" in part:  # the holes of a sparse file too, whatever size that claims
                line = data.count(b"\n") + part.count(b"\n", 0, part.index(0)) + 1
                raise DataError("not a text", where=f"line {line}", got="NUL", expected="text without NUL")
            if len(part) == _PART_BYTES and b"\n" not in part:
                line = data.count(b"\n") + 1
                raise DataError("line too long", where=f"line {line}", expected=f"at most {_PART_BYTES} bytes")
            data += part
            left -= len(part)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = "not UTF-8" if encoding == UTF_8 else "not UTF-16"
        raise DataError(what, where=f"line {line}", got=f"a wrong byte at offset {error.start}", fix=_SAVE) from error
    if "\0" in text:
        raise DataError("not a text", got="NUL", expected="text without NUL")
    return text
