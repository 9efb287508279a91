"""Which media files to tokenize, with which captions: from a folder, a CSV or a JSONL file.

A wrong row of a list stops everything before work starts; in a folder, a file without a good caption
is kept as an item with a `problem`, to be reported like a file that cannot be decoded.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.metadata import kept_value
from data_modules.shards.reading import reason
from data_modules.shards.sample import Scalar, check_characters, key_number, sample_key
from data_modules.shards.where import Where
from data_modules.tokenizing.rows import TABLES, Row, read_rows, read_text
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.json_file import wrong
from lumos_pl.machinery.retrying import passes

MAX_CAPTION_BYTES = 1 << 16

NO_CAPTION, EMPTY_CAPTION, NO_FILE = "no caption", "empty caption", "no such file"
_CAPTION_SUFFIX = ".txt"
_LISTS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_START = "start"
BLOCK = 1024  # rows that are looked at together
_FOREIGN_PATH = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, kw_only=True)
class MediaItem:
    """A clip to make.

    Args:
        path: the file to read.
        name: its path as the list has it, or as it is inside the folder.
        caption: what it shows; empty where there is a problem.
        line: of the list; None for a folder.
        start: where in a video the clip starts, in seconds; None: not said.
        captions: where there may be several, each by its name; `caption` is the first of them.
        metadata: what else the list says of it, by column.
        problem: why it cannot be used; None: nothing known yet.
    """

    path: Path
    name: str
    caption: str = ""
    line: int | None = None
    start: float | None = None
    captions: Mapping[str, str] = field(default_factory=dict, hash=False)
    metadata: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    problem: str | None = None

    @cached_property
    def key(self) -> str:
        """The sample's key: the same for the same name, start and caption, wherever it is listed."""
        return sample_key(self.name, *self._more)

    @cached_property
    def number(self) -> int:
        """What the key ends with: 64 bits that stand for it."""
        return key_number(self.name, *self._more)

    @property
    def _more(self) -> tuple[str, ...]:
        return str(self.start), self.caption


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The columns of a list that say where a file is, and what it shows. Capitals and blanks around do not count.

    Args:
        path: of the files.
        caption: of the captions; of several columns each that a row has a text in is kept, by the column's name.
    """

    path: str = "path"
    caption: str | tuple[str, ...] = "caption"

    @property
    def captions(self) -> tuple[str, ...]:
        return (self.caption,) if isinstance(self.caption, str) else self.caption

    def check(self, names: Iterable[str]) -> None:
        """Raise DataError unless a list has them; others it may have as it likes, but for what seems misspelt."""
        self.found(tuple(names))

    @lru_cache(maxsize=64)  # noqa: B019 (of a few plain values)
    def found(self, names: tuple[str, ...]) -> Roles:
        """What the columns of these names are; raises DataError as `check`."""
        like = {name.strip().casefold(): name for name in reversed(names)} | {name: name for name in names}

        def called(wanted: str) -> str | None:
            return like.get(wanted) or like.get(wanted.casefold())

        path, start = called(self.path), called(_START)
        captions = {name: column for name in self.captions if (column := called(name)) is not None}
        for flag, wanted, is_there in (
            ("--path-field", self.path, path),
            ("--caption-field", self.captions[0], captions),
        ):
            if not is_there:
                raise DataError("missing column", where=wanted, fix=f"`{flag} NAME` says which one it is")
        assert path is not None
        others = tuple(n for n in names if n.strip() and n not in (path, start, *captions.values()))
        if start is None and (near := difflib.get_close_matches(_START, others, n=1, cutoff=0.75)):
            raise DataError("unknown column", where=near[0], expected=f"{_START}, or a name less like it")
        return Roles(path=path, captions=captions, start=start, others=others)


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What each column of a list, or of a row, is there for.

    Args:
        captions: its column, for each name of a caption.
        others: what is kept as metadata.
    """

    path: str
    captions: dict[str, str]
    start: str | None
    others: tuple[str, ...]


FIELDS = Fields()


class MediaList:
    """Items in an order, of which as little as can be is kept: a list is read anew for each look at them.

    Args:
        numbers: of each item, in order, see `MediaItem.number`.
        rows: what an item is made of, in order.
        make: the item of such a row.

    Attributes:
        n_left_out: rows that a condition left out.
    """

    def __init__(
        self,
        numbers: NDArray[np.uint64],
        rows: Callable[[], Iterable[Any]],
        make: Callable[[Any], MediaItem],
        *,
        n_left_out: int = 0,
    ) -> None:
        self.numbers, self._rows, self._make, self.n_left_out = numbers, rows, make, n_left_out

    @classmethod
    def of(cls, items: Sequence[MediaItem]) -> MediaList:
        return cls(np.array([item.number for item in items], np.uint64), lambda: items, lambda item: item)

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[MediaItem]:
        return map(self._make, self._rows())

    def blocks(self, choose: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> Iterator[list[MediaItem]]:
        """The items whose numbers are chosen, in order, up to `BLOCK` of them at once.

        Raises:
            DataError: the list has been changed since it was checked.
        """
        rows = iter(self._rows())
        for begin in range(0, len(self), BLOCK):
            numbers = self.numbers[begin : begin + BLOCK]
            block = list(islice(rows, len(numbers)))
            chosen = np.flatnonzero(choose(numbers)).tolist()
            if len(block) < len(numbers):
                raise _changed()
            items = [self._make(block[place]) for place in chosen]
            if any(item.number != numbers[place] for item, place in zip(items, chosen, strict=True)):
                raise _changed()
            if items:
                yield items
        if next(rows, None) is not None:
            raise _changed()


def _changed() -> DataError:
    return DataError("the list was changed while it was read", fix="start again, which goes on with what it holds now")


def open_media_list(
    source: Path,
    *,
    fields: Fields = FIELDS,
    follow_links: bool = False,
    where: Where | None = None,
    folder_captions: bool = False,
) -> MediaList:
    """The items of a folder (sorted by name) or of a list (in its order); at least one.

    A list is read and checked once to its end, and 8 bytes are kept of each row. A link that leads out of the folder,
    or of the list's, is an item with a problem: who may put files there, or hands over a list with its files, could
    otherwise have any file read that the user may read.

    Args:
        follow_links: links are taken wherever they lead, as into a cache or another disk.
        source: a folder, searched with all folders inside it but hidden ones, where the caption stands in a .txt
            file with the same stem; or a list, see `read_rows`, of paths (absolute or from the list's folder on),
            captions, and perhaps `start`s. What else it has is kept as metadata, see `kept_value`.
        fields: the names of these columns.
        where: a condition on a list's columns; rows that do not fulfil it are left out, and not looked at further.
        folder_captions: of a folder, a file without a text has the name of the folder that it lies in as its caption.
    Raises:
        ConfigError: the condition asks for a column that is not there, or compares values of two kinds.
        DataError: the first row that is wrong, with its line; or no row is left.
    """
    with located(source):
        if source.is_dir():
            if where is not None:
                where.check_columns((), file=source)
            items = MediaList.of(_in_folder(source, follow_links, folder_captions))
        elif not source.is_file():
            raise DataError("no such file or folder") from FileNotFoundError(str(source))
        elif source.suffix.lower() in _LISTS:
            items = _listed(source, fields, follow_links, where)
        else:
            expected = f"a folder, or a file named *{', *'.join(_LISTS)}"
            fix = "unpack it first" if source.suffix.lower() in _PACKED else None
            raise DataError("not a media list", got=source.name, expected=expected, fix=fix)
        if not len(items):
            raise DataError("no media", expected="videos or images, each with a caption")
        return items


def read_media_list(
    source: Path, *, fields: Fields = FIELDS, follow_links: bool = False, folder_captions: bool = False
) -> list[MediaItem]:
    """All items of `open_media_list`, in memory."""
    return list(open_media_list(source, fields=fields, follow_links=follow_links, folder_captions=folder_captions))


# -- a folder ------------------------------------------------------------------------------------


def _in_folder(folder: Path, follow_links: bool, folder_captions: bool) -> list[MediaItem]:
    """Every file of a folder; raises DataError where not one has a caption: no work is begun for that."""
    items = list(_folder_items(folder, follow_links, folder_captions))
    if folder_captions:
        return items
    without = [item for item in items if not item.path.with_suffix(_CAPTION_SUFFIX).exists()]
    if items and len(without) == len(items):
        lists = [item.name for item in items if Path(item.name).suffix.lower() in _LISTS]
        example = next((item.name for item in items if item.name not in lists), items[0].name)
        fix = f"or a list of paths and captions: {', '.join(_LISTS)}"
        if lists:
            fix = f"or is {lists[0]} their list? then give that: {folder / lists[0]}"
        expected = f"a text beside each file, as {Path(example).with_suffix(_CAPTION_SUFFIX)} for {example}"
        raise DataError("a folder without captions", got=f"{len(items)} files", expected=expected, fix=fix)
    return items


def _folder_items(folder: Path, follow_links: bool, folder_captions: bool) -> Iterator[MediaItem]:
    for name in sorted(_names(folder)):
        path = folder / name
        try:
            check_characters("name", name)
            caption = path.with_suffix(_CAPTION_SUFFIX)
            if not follow_links:
                _check_inside(folder, path)
                _check_inside(folder, caption)
            text = _folder_caption(path) if folder_captions and not caption.exists() else _read_caption(caption)
            yield MediaItem(path=path, name=name, caption=text)
        except DataError as error:
            if passes(error):
                raise  # of the storage, and of no caption
            yield MediaItem(path=path, name=name, problem=reason(error))


def _names(folder: Path) -> Iterator[str]:
    """Every file but captions and hidden ones: what is not media is reported, not passed over."""
    for parent, folders, files in os.walk(folder, onerror=_cannot_be_read):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and not name.endswith(_CAPTION_SUFFIX):
                yield Path(parent, name).relative_to(folder).as_posix()


def _cannot_be_read(error: OSError) -> Never:
    raise DataError("cannot be read", file=error.filename, got=error.strerror) from error


def _check_inside(folder: Path, file: Path) -> None:
    """Raise DataError where links lead out of the folder that a file is named in, or else out of its own."""
    named = os.path.abspath(file)  # noqa: PTH100 (without looking at links)
    inside = Path(named).is_relative_to(os.path.abspath(folder))  # noqa: PTH100
    root = os.path.realpath(folder if inside else file.parent)
    if not Path(os.path.realpath(file)).is_relative_to(root):
        raise DataError("link out of the folder", where=file.name, expected="a file inside it, or follow_links")


def _folder_caption(path: Path) -> str:
    name = re.sub("[-_\\s]+", " ", path.absolute().parent.name).strip()
    check_characters("folder", name)
    return name


def _read_caption(caption: Path) -> str:
    if not caption.exists():
        raise DataError(NO_CAPTION, expected=caption.name)
    if caption.is_file() and caption.stat().st_size > MAX_CAPTION_BYTES:
        raise DataError("caption too long", where=caption.name, expected=f"at most {MAX_CAPTION_BYTES} bytes")
    with located(where=caption.name):
        text = read_text(caption, at_most=MAX_CAPTION_BYTES).strip()
    if not text:
        raise DataError(EMPTY_CAPTION, expected=f"a text in {caption.name}")
    check_characters("caption", text)
    return text


# -- a list --------------------------------------------------------------------------------------


def _listed(source: Path, fields: Fields, follow_links: bool, where: Where | None) -> MediaList:
    of_table = source.suffix.lower() in TABLES

    def rows() -> Iterator[Row]:
        with located(source):
            for line, row in read_rows(source, fields.check):
                if where is None or _fulfils(where, source, line, row, fields, of_table):
                    yield line, row

    def make(row: Row) -> MediaItem:
        item = _item(source.parent, *row, fields, of_table)
        try:
            if not follow_links:
                _check_inside(source.parent, item.path)
        except DataError as error:
            return replace(item, problem=reason(error))
        return item

    names = dict[tuple[str, ...], None]()  # of the columns of each row, in the order in which they come up
    n_rows = 0

    def seen() -> Iterator[Row]:
        nonlocal n_rows
        for line, row in read_rows(source, fields.check):
            names[tuple(row)] = None
            n_rows += 1
            if where is None or _fulfils(where, source, line, row, fields, of_table):
                yield line, row

    numbers = np.frombuffer(array("Q", (_number(*row, fields) for row in seen())), np.uint64)
    _check_all_there(source, fields, where, dict.fromkeys(name for row in names for name in row))
    if where is not None and n_rows and not len(numbers):
        raise DataError(
            "no row is left", where=where.name, got=f"{where.text}, of {n_rows} rows", expected="one or more"
        )
    if repeated := _repeated(numbers):
        raise _listed_twice(rows(), fields, repeated)
    return MediaList(numbers, rows, make, n_left_out=n_rows - len(numbers))


def _fulfils(where: Where, source: Path, line: int, row: dict[str, object], fields: Fields, of_table: bool) -> bool:
    found = fields.found(tuple(row))
    texts = {column: row[column] for column in (found.path, *found.captions.values())}
    others = {name: kept_value(row[name], of_table=of_table) for name in row if name not in texts}
    try:
        return where.holds(
            others | {name: text for name, text in texts.items() if isinstance(text, str) and text.strip()}
        )
    except ConfigError as error:
        raise ConfigError(**error.parts | {"file": source, "where": f"line {line}: {error.where}"}) from error


def _check_all_there(source: Path, fields: Fields, where: Where | None, names: Iterable[str]) -> None:
    """Raise an error for a column that is asked for and that no row has."""
    names = tuple(names)
    if not names:
        return
    captions = fields.found(names).captions
    if missing := next((name for name in fields.captions if name not in captions), None):
        raise DataError("missing column", where=missing, fix="`--caption-field NAME...` says which ones they are")
    if where is not None:
        where.check_columns((name for name in names if name.strip()), file=source)


def _repeated(numbers: NDArray[np.uint64]) -> set[int]:
    ordered = np.sort(numbers)
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _listed_twice(rows: Iterable[Row], fields: Fields, repeated: set[int]) -> DataError:
    """Of the first row that has a number for the second time."""
    first: dict[int, tuple[int, tuple[str, str, float | None]]] = {}
    for line, row in rows:
        if (number := _number(line, row, fields)) in repeated:
            name, captions, start = _values(row, fields)
            values = name, next(iter(captions.values())), start
            line_before, before = first.setdefault(number, (line, values))
            if line_before == line:
                continue
            expected = f"another caption or start than in line {line_before}"
            what = "listed twice" if values == before else "two rows have one digest, as happens once in a universe"
            return DataError(what, where=f"line {line}", got=values[0], expected=expected)
    return _changed()


def _number(line: int, row: dict[str, object], fields: Fields) -> int:
    """Of a row, which is checked."""
    try:
        name, captions, start = _values(row, fields)
    except DataError as error:
        with located(where=f"line {line}"):
            raise error
    return key_number(name, str(start), next(iter(captions.values())))


def _values(row: dict[str, object], fields: Fields) -> tuple[str, dict[str, str], float | None]:
    """Path, captions by name, at least one, and start of a row.

    Raises:
        DataError: one of them is wrong.
    """
    found = fields.found(tuple(row))
    name = row[found.path]
    check_characters(fields.path, name)
    assert isinstance(name, str)
    if _FOREIGN_PATH.match(name):
        raise DataError("not a file's path", where="path", got=name, expected="a path on this machine")
    captions: dict[str, str] = {}
    for field_name, column in found.captions.items():
        if len(fields.captions) == 1 or not _is_blank(row[column]):
            captions |= _captions(field_name, row[column])
    if not captions:
        raise DataError("no caption", where=", ".join(found.captions), expected="a text in one of them")
    return name, captions, None if found.start is None else _seconds(row[found.start])


def _is_blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def _captions(name: str, value: object) -> dict[str, str]:
    """What a column has: a text, or a list of several, which get numbers."""
    several = value if isinstance(value, list) and value else [value]
    captions = {}
    for number, caption in enumerate(several, start=1):
        check_characters(name, caption)
        assert isinstance(caption, str)
        if len(caption) * 4 > MAX_CAPTION_BYTES and len(caption.encode()) > MAX_CAPTION_BYTES:
            raise DataError("caption too long", expected=f"at most {MAX_CAPTION_BYTES} bytes")
        captions[name if len(several) == 1 else f"{name}.{number}"] = caption.strip()
    return captions


def _item(folder: Path, line: int, row: dict[str, object], fields: Fields, of_table: bool) -> MediaItem:
    name, captions, start = _values(row, fields)
    metadata = {other: kept_value(row[other], of_table=of_table) for other in fields.found(tuple(row)).others}
    return MediaItem(
        path=folder / name,
        name=name,
        caption=next(iter(captions.values())),
        line=line,
        start=start,
        captions=captions if len(captions) > 1 or len(fields.captions) > 1 else {},
        metadata={other: value for other, value in metadata.items() if value is not None},
    )


def _seconds(value: object) -> float | None:
    if value is None or value == "":  # an empty field of a CSV
        return None
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise wrong("start", value, "seconds, 0 or more")
    return seconds
