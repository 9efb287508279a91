"""One clip to make: the file, what it shows, and where in it it starts."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_modules.shards.sample import Scalar, key_number, sample_key
from lumos_pl.errors import DataError

MAX_CAPTION_BYTES = 1 << 16
NO_CAPTION, EMPTY_CAPTION, NO_FILE = "no caption", "empty caption", "no such file"  # problems of an item


@dataclass(frozen=True, kw_only=True)
class MediaItem:
    """A clip to make.

    Args:
        path: the file to read.
        name: its path as the list has it, or as it is inside the folder.
        known_as: what the key is made of in its place, see `one_name`; None: the name.
        caption: what it shows; empty where there is a problem.
        line: of the list; None for a folder.
        start: where in a video the clip starts, in seconds; None: not said.
        captions: where there may be several, each by its name; `caption` is the first of them.
        metadata: what else the list says of it, by column.
        problem: why it cannot be used; None: nothing known yet.
    """

    path: Path
    name: str
    known_as: str | None = None
    caption: str = ""
    line: int | None = None
    start: float | None = None
    captions: Mapping[str, str] = field(default_factory=dict, hash=False)
    metadata: Mapping[str, Scalar] = field(default_factory=dict, hash=False)
    problem: str | None = None

    @cached_property
    def key(self) -> str:
        """The sample's key: the same for the same file, start and caption, wherever it is listed."""
        return sample_key(self._known_as, *self._more)

    @cached_property
    def number(self) -> int:
        """What the key ends with: 64 bits that stand for it."""
        return key_number(self._known_as, *self._more)

    @property
    def _known_as(self) -> str:
        return self.name if self.known_as is None else self.known_as

    @property
    def _more(self) -> tuple[str, ...]:
        return str(self.start), self.caption


def spelled_otherwise(path: Path) -> Iterator[Path]:
    """The path with its name's accents composed, and apart: some systems store one, and lists have the other."""
    if not path.name.isascii():
        yield from (path.with_name(unicodedata.normalize(form, path.name)) for form in ("NFC", "NFD"))


def text_beside(path: Path) -> Path:
    """The text that holds a file's caption; where there is none, what it would be called."""
    names = (name.with_suffix(suffix) for name in (path, *spelled_otherwise(path)) for suffix in (".txt", ".TXT"))
    return next((name for name in names if name.exists()), path.with_suffix(".txt"))


def check_inside(folder: Path, file: Path) -> None:
    """Raise DataError where links lead out of the folder that a file is named in, or else out of its own."""
    named = os.path.abspath(file)  # noqa: PTH100 (without looking at links)
    inside = Path(named).is_relative_to(os.path.abspath(folder))  # noqa: PTH100
    root = os.path.realpath(folder if inside else file.parent)
    if not Path(os.path.realpath(file)).is_relative_to(root):
        raise DataError("link out of the folder", where=file.name, expected="a file inside it, or follow_links")
