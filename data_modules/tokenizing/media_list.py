"""Which media files to tokenize, with which captions: from a folder, a CSV or a JSONL file.

A wrong row of a list stops everything before work starts; in a folder, a file without a good caption
is kept as an item with a `problem`, to be reported like a file that cannot be decoded.
"""

from __future__ import annotations

import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.reading import reason
from data_modules.shards.sample import check_characters, one_name
from data_modules.shards.where import Where
from data_modules.tokenizing.media_item import (
    EMPTY_CAPTION,
    MAX_CAPTION_BYTES,
    NO_CAPTION,
    MediaItem,
    check_inside,
    spelled_otherwise,
    text_beside,
)
from data_modules.tokenizing.media_rows import FIELDS, Fields, fulfils, row_item, row_number, row_values
from data_modules.tokenizing.rows import TABLES, Row, encoding_of, read_rows, read_text
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.retrying import passes

_LISTS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_BESIDE = (".json", ".xml", ".yaml", ".xmp", ".aae", ".nfo", ".description", ".vtt", ".srt", ".ass")
"""What cameras, editors and downloaders lay beside a file of theirs, and call by its name: no media."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z", ".rar")
BLOCK = 1024  # rows that are looked at together


class MediaList:
    """Items in an order, of which as little as can be is kept: a list is read anew for each look at them.

    Args:
        numbers: of each item, in order, see `MediaItem.number`.
        rows: what an item is made of, in order.
        make: the item of such a row.

    Attributes:
        n_left_out: rows that a condition left out.
        end: see `Roles`.
    """

    def __init__(
        self,
        numbers: NDArray[np.uint64],
        rows: Callable[[], Iterable[Any]],
        make: Callable[[Any], MediaItem],
        *,
        n_left_out: int = 0,
        end: str | None = None,
    ) -> None:
        self.numbers, self._rows, self._make, self.n_left_out, self.end = numbers, rows, make, n_left_out, end

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
    as_spelled: bool = False,
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
        as_spelled: of a list, paths of one file that are spelled otherwise are of other files, as they once were.
    Raises:
        ConfigError: the condition asks for a column that is not there, or compares values of two kinds.
        DataError: the first row that is wrong, with its line; or no row is left.
    """
    with located(source):
        if source.is_dir():
            if where is not None:
                where.check_columns((), file=source)
            items = MediaList.of(_in_folder(source, follow_links, folder_captions))
        elif not source.exists():
            raise DataError("no such file or folder") from FileNotFoundError(str(source))
        elif not source.is_file():
            raise DataError("neither a regular file nor a folder", expected="a folder of media, or a list of them")
        elif source.suffix.lower() in _LISTS:
            items = _listed(source, fields, follow_links, where, as_spelled)
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
    without = [item for item in items if not text_beside(item.path).exists()]
    if items and len(without) == len(items):
        lists = [item.name for item in items if Path(item.name).suffix.lower() in _LISTS]
        example = next((item.name for item in items if item.name not in lists), items[0].name)
        fix = f"or a list of paths and captions: {', '.join(_LISTS)}"
        if lists:
            fix = f"or is {lists[0]} their list? then give that: {folder / lists[0]}"
        expected = f"a text beside each file, as {Path(example).with_suffix('.txt')} for {example}"
        raise DataError("a folder without captions", got=f"{len(items)} files", expected=expected, fix=fix)
    return items


def _folder_items(folder: Path, follow_links: bool, folder_captions: bool) -> Iterator[MediaItem]:
    for name in sorted(_names(folder, follow_links)):
        path = folder / name
        try:
            check_characters("name", name)
            caption = text_beside(path)
            if not follow_links:
                check_inside(folder, path)
                check_inside(folder, caption)
            text = _folder_caption(path) if folder_captions and not caption.exists() else _read_caption(caption)
            yield MediaItem(path=path, name=name, caption=text)
        except DataError as error:
            if passes(error):
                raise  # of the storage, and of no caption
            yield MediaItem(path=path, name=name, problem=reason(error))


def _names(folder: Path, follow_links: bool) -> Iterator[str]:
    """Every file but captions, hidden ones, and what describes a file beside it; what else is no media is reported.

    So is a link to a folder that is not to be followed. A folder that several names lead to is looked into once.
    """
    waiting, seen = deque([folder]), set[str]()
    while waiting:
        for parent, folders, files in os.walk(waiting.popleft(), onerror=_cannot_be_read):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for link in filter(Path.is_symlink, (Path(parent, name) for name in folders)):
                if follow_links or _is_inside(folder, link):
                    waiting.append(link)
                else:
                    yield link.relative_to(folder).as_posix()
            shown = [name for name in files if not name.startswith(".") and not name.endswith((".txt", ".TXT"))]
            stems = {Path(name).stem for name in shown if not name.lower().endswith(_BESIDE)}
            for name in shown:
                if not (name.lower().endswith(_BESIDE) and any(stem in stems for stem in _stems(name))):
                    yield Path(parent, name).relative_to(folder).as_posix()


def _stems(name: str) -> Iterator[str]:
    """Of `a.en.vtt`: `a.en`, `a`."""
    while stem := name.rpartition(".")[0]:
        yield stem
        name = stem


def _is_inside(folder: Path, link: Path) -> bool:
    try:
        check_inside(folder, link)
    except DataError:
        return False
    return True


def _cannot_be_read(error: OSError) -> Never:
    raise DataError("cannot be read", file=error.filename, got=error.strerror) from error


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
        text = read_text(caption, at_most=MAX_CAPTION_BYTES, encoding=encoding_of(caption)).strip()
    if not text:
        raise DataError(EMPTY_CAPTION, expected=f"a text in {caption.name}")
    check_characters("caption", text)
    return text


# -- a list --------------------------------------------------------------------------------------


def _listed(source: Path, fields: Fields, follow_links: bool, where: Where | None, as_spelled: bool) -> MediaList:
    of_table = source.suffix.lower() in TABLES
    folder = None if as_spelled else os.path.abspath(source.parent)  # noqa: PTH100 (without looking at links)

    def rows() -> Iterator[Row]:
        with located(source):
            for line, row in read_rows(source, fields.check):
                if where is None or fulfils(where, source, line, row, fields, of_table):
                    yield line, row

    def make(row: Row) -> MediaItem:
        item = row_item(source, *row, fields, of_table, folder)
        if not item.name.isascii() and not os.path.lexists(item.path):
            there = (path for path in spelled_otherwise(item.path) if os.path.lexists(path))
            item = replace(item, path=next(there, item.path))
        try:
            if not follow_links:
                check_inside(source.parent, item.path)
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
            if where is None or fulfils(where, source, line, row, fields, of_table):
                yield line, row

    numbers = np.frombuffer(array("Q", (row_number(*row, fields, folder) for row in seen())), np.uint64)
    all_names = tuple(dict.fromkeys(name for row in names for name in row))
    _check_all_there(source, fields, where, all_names)
    if where is not None and n_rows and not len(numbers):
        raise DataError(
            "no row is left", where=where.name, got=f"{where.text}, of {n_rows} rows", expected="one or more"
        )
    if repeated := _repeated(numbers):
        raise _listed_twice(rows(), fields, folder, repeated)
    end = fields.found(all_names).end if all_names else None
    return MediaList(numbers, rows, make, n_left_out=n_rows - len(numbers), end=end)


def _check_all_there(source: Path, fields: Fields, where: Where | None, names: tuple[str, ...]) -> None:
    """Raise an error for a column that is asked for and that no row has."""
    if not names:
        return
    found = fields.found(names)
    if found.start is None and fields.start not in (None, FIELDS.start):
        raise DataError("missing column", where=fields.start, fix="`--start-field NAME` says which one it is")
    captions = found.captions
    if missing := next((name for name in fields.captions if name not in captions), None):
        raise DataError("missing column", where=missing, fix="`--caption-field NAME...` says which ones they are")
    if where is not None:
        where.check_columns((name for name in names if name.strip()), file=source)


def _repeated(numbers: NDArray[np.uint64]) -> set[int]:
    ordered = np.sort(numbers)
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def _listed_twice(rows: Iterable[Row], fields: Fields, folder: str | None, repeated: set[int]) -> DataError:
    """Of the first row that has a number for the second time."""
    first: dict[int, tuple[int, tuple[str, str, float | None]]] = {}
    for line, row in rows:
        if (number := row_number(line, row, fields, folder)) in repeated:
            name, captions, start = row_values(row, fields)
            values = name if folder is None else one_name(name, folder), next(iter(captions.values())), start
            line_before, before = first.setdefault(number, (line, values))
            if line_before == line:
                continue
            expected = f"another caption or start than in line {line_before}"
            what = "listed twice" if values == before else "two rows have one digest, as happens once in a universe"
            return DataError(what, where=f"line {line}", got=name, expected=expected)
    return _changed()
