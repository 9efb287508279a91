"""A row of a list of media: which column is what, and the item that its values are."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from data_modules.shards.sample import Scalar, check_characters, key_number, one_name
from data_modules.shards.where import Where
from data_modules.tokenizing.media_item import MAX_CAPTION_BYTES, MediaItem
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.json_file import wrong

_TIME = r"((clip|scene|segment|video)[\s_-]*)?(%s)([^a-z]|s?$|ing|sec|time|stamp)"
_START, _END = (re.compile(_TIME % words) for words in ("start|begin", "end|stop"))
_CLOCK = re.compile(r"\s*(?:([0-9]{1,4}):)?([0-9]{1,4}):([0-9]{1,2}(?:\.[0-9]+)?)\s*")
_FOREIGN_PATH = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
MOST_VALUE_BYTES = 4096  # of a text: what is longer is no property of a sample to choose by
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?")  # as JSON writes one
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Fields:
    """The columns of a list that say where a file is, and what it shows. Capitals and blanks around do not count.

    Args:
        path: of the files.
        caption: of the captions; of several columns each that a row has a text in is kept, by the column's name.
        start: of the seconds where clips start, where there is such a column; None: there is none.
    """

    path: str = "path"
    caption: str | tuple[str, ...] = "caption"
    start: str | None = "start"

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

        path, start = called(self.path), None if self.start is None else called(self.start)
        captions = {name: column for name in self.captions if (column := called(name)) is not None}
        for flag, wanted, is_there in (
            ("--path-field", self.path, path),
            ("--caption-field", self.captions[0], captions),
        ):
            if not is_there:
                raise DataError("missing column", where=wanted, fix=f"`{flag} NAME` says which one it is")
        assert path is not None
        others = tuple(n for n in names if n.strip() and n not in (path, start, *captions.values()))
        if start is None and self.start == FIELDS.start and (near := _like_start(others)):
            fix = f"`--start-field {shlex.quote(near[0])}` if clips start there, else `--start-field none`"
            raise DataError("unknown column", where=near[0], expected="start, or a name less like it", fix=fix)
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

    @property
    def end(self) -> str | None:
        """The column beside the starts that seems to say where clips end; kept, and no clip ends by it."""
        return None if self.start is None else next(filter(_seems(_END), self.others), None)


def _seems(what: re.Pattern[str]) -> Callable[[str], bool]:
    return lambda name: what.match(name.strip().casefold()) is not None


def _like_start(names: Sequence[str]) -> list[str]:
    return difflib.get_close_matches("start", names, n=1, cutoff=0.75) or [*filter(_seems(_START), names)]


FIELDS = Fields()


def row_number(line: int, row: dict[str, object], fields: Fields, folder: str | None) -> int:
    """Of a row, which is checked.

    Args:
        folder: see `one_name`; None: each spelling of a path is another file.
    """
    try:
        name, captions, start = row_values(row, fields)
    except DataError as error:
        with located(where=f"line {line}"):
            raise error
    known_as = name if folder is None else one_name(name, folder)
    return key_number(known_as, str(start), next(iter(captions.values())))


def row_values(row: dict[str, object], fields: Fields) -> tuple[str, dict[str, str], float | None]:
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


def row_item(
    source: Path, line: int, row: dict[str, object], fields: Fields, of_table: bool, folder: str | None
) -> MediaItem:
    """Of a row of the list `source`; `folder` as in `row_number`."""
    name, captions, start = row_values(row, fields)
    metadata = {other: kept_value(row[other], of_table=of_table) for other in fields.found(tuple(row)).others}
    return MediaItem(
        path=source.parent / name,
        name=name,
        known_as=None if folder is None else one_name(name, folder),
        caption=next(iter(captions.values())),
        line=line,
        start=start,
        captions=captions if len(captions) > 1 or len(fields.captions) > 1 else {},
        metadata={other: value for other, value in metadata.items() if value is not None},
    )


def kept_value(value: object, *, of_table: bool) -> Scalar | None:
    """What is kept of a value in a list; None: nothing.

    Numbers, texts, true and false stay what they are, lists and objects become their JSON, dates and times their ISO
    form. Nothing is kept of NaN, of bytes, and of a text of more than `MOST_VALUE_BYTES`.

    Args:
        of_table: it is a text of a CSV, where a number, without zeros before it, stands for one, and true and false, in
            any capitals, for themselves; an empty one is missing.
    """
    if isinstance(value, str) and of_table:
        value = value.strip()
        if _NUMBER.fullmatch(value):
            return float(value) if re.search("[.eE]", value) else int(value)
        value = _TRUTH.get(value.lower(), value or None)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    elif isinstance(value, date | time):
        value = value.isoformat()
    elif isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, str):
        return value if len(value.encode(errors="replace")) <= MOST_VALUE_BYTES else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int) else None


def _seconds(value: object) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):  # an empty field of a CSV
        return None
    if isinstance(value, float) and math.isnan(value):  # how Parquet of other tools than pandas has it
        return None
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value)):
        hours, minutes, seconds_of = clock.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds_of)
    try:
        seconds = (
            float(value) if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise wrong("start", value, "seconds, 0 or more, or 0:01:30.5")
    return seconds


def fulfils(where: Where, source: Path, line: int, row: dict[str, object], fields: Fields, of_table: bool) -> bool:
    found = fields.found(tuple(row))
    texts = {column: row[column] for column in (found.path, *found.captions.values())}
    others = {name: kept_value(row[name], of_table=of_table) for name in row if name not in texts}
    try:
        return where.holds(
            others | {name: text for name, text in texts.items() if isinstance(text, str) and text.strip()}
        )
    except ConfigError as error:
        raise ConfigError(**error.parts | {"file": source, "where": f"line {line}: {error.where}"}) from error
