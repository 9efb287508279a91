"""Which media files to tokenize, with which captions: from a folder, a CSV or a JSONL file.

A wrong row of a list stops everything before work starts; in a folder, a file without a good caption
is kept as an item with a `problem`, to be reported like a file that cannot be decoded.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Never

from data_modules.reading import reason
from data_modules.rows import read_rows, read_text
from data_modules.shard_sample import check_characters, sample_key
from lumos_pl.errors import DataError, located
from lumos_pl.machinery.json_file import wrong

MAX_CAPTION_BYTES = 1 << 16

_CAPTION_SUFFIX = ".txt"
_REQUIRED, _OPTIONAL = {"path", "caption"}, {"start"}
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
        problem: why it cannot be used; None: nothing known yet.
    """

    path: Path
    name: str
    caption: str = ""
    line: int | None = None
    start: float | None = None
    problem: str | None = None

    @cached_property
    def key(self) -> str:
        """The sample's key: the same for the same name, start and caption, wherever it is listed."""
        return sample_key(self.name, str(self.start), self.caption)


def read_media_list(source: Path, *, follow_links: bool = False) -> list[MediaItem]:
    """The items of a folder (sorted by name) or of a list (in its order); at least one.

    A link that leads out of the folder, or of the list's, is an item with a problem: who may put files there, or hands
    over a list with its files, could otherwise have any file read that the user may read.

    Args:
        follow_links: links are taken wherever they lead, as into a cache or another disk.
        source: a folder, searched with all folders inside it but hidden ones, where the caption stands in a .txt
            file with the same stem; or a .csv with a header, or a .jsonl of objects, with `path` (absolute or from
            the list's folder on), `caption` and perhaps `start`.
    Raises:
        DataError: the first row that is wrong, with its line.
    """
    with located(source):
        if source.is_dir():
            items = list(_folder_items(source, follow_links))
        elif not source.is_file():
            raise DataError("no such file or folder") from FileNotFoundError(str(source))
        elif source.suffix in (".csv", ".jsonl"):
            items = _list_items(source, read_rows(source, _check_names), follow_links)
        else:
            raise DataError("not a media list", got=source.name, expected="a folder, or a file named *.csv or *.jsonl")
        if not items:
            raise DataError("no media", expected="videos or images, each with a caption")
        return items


# -- a folder ------------------------------------------------------------------------------------


def _folder_items(folder: Path, follow_links: bool) -> Iterator[MediaItem]:
    for name in sorted(_names(folder)):
        path = folder / name
        try:
            check_characters("name", name)
            caption = path.with_suffix(_CAPTION_SUFFIX)
            if not follow_links:
                _check_inside(folder, path)
                _check_inside(folder, caption)
            yield MediaItem(path=path, name=name, caption=_read_caption(caption))
        except DataError as error:
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


def _read_caption(caption: Path) -> str:
    if not caption.exists():
        raise DataError("no caption", expected=caption.name)
    if caption.is_file() and caption.stat().st_size > MAX_CAPTION_BYTES:
        raise DataError("caption too long", where=caption.name, expected=f"at most {MAX_CAPTION_BYTES} bytes")
    with located(where=caption.name):
        text = read_text(caption, at_most=MAX_CAPTION_BYTES).strip()
    check_characters("caption", text)
    return text


# -- a list --------------------------------------------------------------------------------------


def _list_items(source: Path, rows: Iterable[tuple[int, dict[str, object]]], follow_links: bool) -> list[MediaItem]:
    items = []
    lines: dict[str, int] = {}
    for line, row in rows:
        with located(where=f"line {line}"):
            item = _item(source.parent, line, row)
            if (first := lines.setdefault(item.key, line)) != line:
                raise DataError(
                    "listed twice", got=item.name, expected=f"another caption or start than in line {first}"
                )
        try:
            if not follow_links:
                _check_inside(source.parent, item.path)
        except DataError as error:
            item = replace(item, problem=reason(error))
        items.append(item)
    return items


def _item(folder: Path, line: int, row: dict[str, object]) -> MediaItem:
    name, caption = row["path"], row["caption"]
    check_characters("path", name)
    check_characters("caption", caption)
    assert isinstance(name, str) and isinstance(caption, str)
    if _FOREIGN_PATH.match(name):
        raise DataError("not a file's path", where="path", got=name, expected="a path on this machine")
    if len(caption.encode()) > MAX_CAPTION_BYTES:
        raise DataError("caption too long", expected=f"at most {MAX_CAPTION_BYTES} bytes")
    return MediaItem(
        path=folder / name, name=name, caption=caption.strip(), line=line, start=_seconds(row.get("start"))
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


def _check_names(names: Iterable[str]) -> None:
    for what, found in ("missing", _REQUIRED - set(names)), ("unknown", set(names) - _REQUIRED - _OPTIONAL):
        if found:
            raise DataError(f"{what} column", where=min(found), expected="path, caption and, if need be, start")
