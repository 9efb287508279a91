"""What is asked for: captions from the command line or from a list."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_modules.shards.sample import check_characters
from data_modules.tokenizing.rows import read_rows, read_text
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.regular_file import read_regular

TEXT_FIELDS = ("prompt", "caption")
FILE_FIELD = "path"
MOST_BYTES = 256 << 20  # of a list, which is held in memory
_MEDIA_SUFFIX = re.compile(r"\.(mp4|mov|mkv|webm|avi|gif|png|jpe?g|webp|bmp)$", re.IGNORECASE)
FORMATS = (".txt", ".json", ".jsonl", ".csv")


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """
    Args:
        text: the caption.
        file: what the list calls the clip, or the image that it begins with; None: the list has no such names.
        metadata: its line of a .jsonl, as it stands there.
    """

    text: str
    file: str | None = None
    metadata: str | None = None

    @property
    def title(self) -> str:
        """What a benchmark names the clip by: the file's name without its suffix, or the caption."""
        return self.text if self.file is None else _MEDIA_SUFFIX.sub("", PurePosixPath(self.file).name)


def given_prompts(texts: Iterable[str]) -> list[Prompt]:
    """Captions of the command line, in their order."""
    prompts = []
    for text in texts:
        try:
            check_characters("--prompt", text)
        except DataError as error:
            raise ConfigError("unusable prompt", where=error.where, got=error.got, expected=error.expected) from None
        prompts.append(Prompt(text=text))
    return prompts


def read_prompts(source: Path, *, field: str | None = None) -> list[Prompt]:
    """The captions of a list in its order; at least one.

    Args:
        source: .txt, a caption a line; .json, an object of {file name: caption}; .jsonl or .csv with a
            field `prompt` or `caption`, perhaps `path`, the file's name, and any others.
        field: of the caption in a .jsonl or .csv, if it is another one.
    Raises:
        DataError: the first caption that cannot be one, with its line.
    """
    with located(source):
        if source.suffix not in FORMATS:
            raise DataError("not a list of prompts", expected=f"a file named *{', *'.join(FORMATS)}")
        if field is not None and source.suffix not in (".jsonl", ".csv"):
            raise ConfigError("only rows have fields", file=source, where="--prompt-field", expected=".jsonl or .csv")
        match source.suffix:
            case ".txt":
                prompts = list(_lines(read_text(source, at_most=MOST_BYTES)))
            case ".json":
                prompts = list(_named(read_regular(source, at_most=MOST_BYTES)))
            case _:
                prompts = list(_rows(source, field))
        if not prompts:
            raise DataError("no prompts")
        return prompts


def _lines(text: str) -> Iterator[Prompt]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            with located(where=f"line {number}"):
                check_characters("prompt", line)
                yield Prompt(text=line.strip())


def _named(content: bytes) -> Iterator[Prompt]:
    listed = parse_json(content.removeprefix(codecs.BOM_UTF8), dict[str, object])
    for number, (name, caption) in enumerate(listed.items(), start=1):
        if not isinstance(caption, str):  # nothing is quoted of what is no list
            got = type(caption).__name__
            raise DataError("wrong field", where=f"entry {number}: caption", got=got, expected="a text")
        with located(where=repr(name[:80])):
            check_characters("file name", name)
            check_characters("caption", caption)
            yield Prompt(text=caption.strip(), file=name)


def _rows(source: Path, field: str | None) -> Iterator[Prompt]:
    wanted = TEXT_FIELDS if field is None else (field,)

    def check_names(names: Iterable[str]) -> None:
        listed = list(names)
        if not any(name in listed for name in wanted):
            # Not their names: a link may lead to a file that is somebody else's, and no list.
            raise DataError("no caption", got="other fields", expected=" or ".join(wanted))

    lines = read_text(source, at_most=MOST_BYTES).split("\n") if source.suffix == ".jsonl" else None
    for number, row in read_rows(source, check_names, at_most=MOST_BYTES):
        with located(where=f"line {number}"):
            name = next(name for name in wanted if name in row)
            text, file = row[name], row.get(FILE_FIELD) or None
            check_characters(name, text)
            if file is not None:
                check_characters(FILE_FIELD, file)
            assert isinstance(text, str) and (file is None or isinstance(file, str))
            metadata = None if lines is None else lines[number - 1].strip()
            yield Prompt(text=text.strip(), file=file, metadata=metadata)


def file_inside(folder: Path, prompt: Prompt) -> Path:
    """The file in `folder` that the list names for a prompt.

    Raises:
        DataError: it names none, one outside, or one that is not there.
    """
    if prompt.file is None:
        fix = f"name it in a .json {{file name: caption}}, or in the field {FILE_FIELD!r} of a .jsonl or .csv"
        raise DataError("the list does not say which file of the folder is given", file=folder, fix=fix)
    file = folder / prompt.file
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError("file outside the folder", file=folder, got=prompt.file)
    return file
