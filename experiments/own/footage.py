"""What a folder of somebody's own videos holds, what of it is set apart for validation, and whether it is enough."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_modules.media.kinds import may_move
from data_modules.shards.reading import is_absent, reason
from data_modules.tokenizing.media_item import NO_FILE, MediaItem, text_beside
from data_modules.tokenizing.media_list import open_media_list
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.machinery.retrying import passes

LISTS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
LIST_NAME = "captions"  # of a list that lies in the folder itself
STILL, TWICE = "a picture that does not move", "another name of a file that is taken"  # problems of an item
ONE_SOURCE = "source"  # a column of a list: rows that have the same text there come from one video
HELD_OUT_EVERY = 10  # so many sources are trained on for one that is validated with, itself counted
# A rule of thumb, not a measurement: with less, a model of minutes is said to know its clips by heart.
ENOUGH_CLIPS, ENOUGH_SOURCES, ENOUGH_OF_CAPTION = 150, 20, 10


@dataclass(frozen=True, kw_only=True)
class Footage:
    """The videos of a folder, or of a list.

    Args:
        items: each with its caption, in order, by the path that links lead to.
        listed: the list that they stand in; None: the folder was searched.
        named_by_folder: how many have no caption but the name of their folder.
        left_aside: names of other files, by what is wrong with them, their captions or links.
    """

    items: tuple[MediaItem, ...]
    listed: Path | None
    named_by_folder: int
    left_aside: Mapping[str, Sequence[str]]

    @property
    def fingerprint(self) -> str:
        """Of names, captions and sizes: another one means other videos."""
        digest = hashlib.sha256()
        for item in self.items:
            size = item.path.stat().st_size if item.path.is_file() else None
            digest.update(json.dumps([item.name, item.caption, item.start, size]).encode())
        return digest.hexdigest()[:16]

    def without(self, problems: Mapping[str, str]) -> Footage:
        """Without the videos of these keys, each left aside for what is said of it."""
        left = tuple(item for item in self.items if item.key not in problems)
        more = _by_problem((problems[item.key], item.name) for item in self.items if item.key in problems)
        return replace(self, items=left, left_aside={**self.left_aside, **more})

    @property
    def folder(self) -> Path:
        """The one that all videos lie in, or in folders of it."""
        parents = [item.path.absolute().parents for item in self.items]
        return next(folder for folder in parents[0] if all(folder in others for others in parents))


def open_footage(source: Path) -> Footage:
    """What a folder or a list names.

    Raises:
        ConfigError: several lists are in the folder.
        DataError: it is not there, is no list, or names no video.
    """
    listed = _list_in(source) if source.is_dir() else source
    items = list(open_media_list(listed or source, folder_captions=listed is None))
    videos: dict[tuple[str, str, float | None], MediaItem] = {}
    left = list[tuple[str, str]]()
    for item in items:
        # Links are judged here, where the folder is known: in the lists that are written of these items they lead out.
        file = os.path.realpath(item.path)
        problem = item.problem or _not_a_video(item.path)
        if problem is None and (file, item.caption, item.start) in videos:
            problem = TWICE
        if problem is None:
            videos[file, item.caption, item.start] = item
        else:
            left.append((problem, item.name))
    left_aside = _by_problem(left)
    if not videos:
        got = ", ".join(f"{len(names)} {what}" for what, names in left_aside.items())
        raise DataError("no videos", file=source, got=got, fix="give a folder that holds some, such as *.mp4")
    by_folder = sum(not text_beside(item.path).exists() for item in videos.values())
    return Footage(
        items=tuple(replace(item, path=Path(file)) for (file, *_), item in videos.items()),
        listed=listed,
        named_by_folder=by_folder if listed is None else 0,
        left_aside=left_aside,
    )


def _not_a_video(file: Path) -> str | None:
    """Why a file gives no clips, as far as its beginning tells; None: it may, or cannot be read for now."""
    try:
        with open_regular(file, at_most=None) as opened:
            return None if may_move(opened) else STILL
    except DataError as error:
        if passes(error):
            return None
        return NO_FILE if is_absent(error) else reason(error)
    except OSError:  # amid the file: for the work, which waits
        return None


def _by_problem(left: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Names by what is wrong, in a few words; what most have comes first."""
    names = defaultdict[str, list[str]](list)
    for problem, name in left:
        names[problem.partition(" | ")[0]].append(name)
    return dict(sorted(names.items(), key=lambda one: -len(one[1])))


def changes(before: Iterable[MediaItem], now: Iterable[MediaItem]) -> str:
    """How the videos of two moments differ, in words."""
    old, new = ({(str(item.path.absolute()), item.start) for item in items} for items in (before, now))
    counts = {"new": len(new - old), "gone": len(old - new)}
    words = [f"{count} {what}" for what, count in counts.items() if count]
    return ", ".join(words) or "other captions or sizes"


def _list_in(folder: Path) -> Path | None:
    found = sorted(path for path in folder.glob(f"{LIST_NAME}.*") if path.suffix.lower() in LISTS)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ConfigError("several lists of captions", file=folder, got=names, fix="give the one that is meant")
    return found[0] if found else None


# -- what is held out ------------------------------------------------------------------------------


def split(items: Sequence[MediaItem], same: Iterable[Sequence[str]] = ()) -> tuple[list[MediaItem], list[MediaItem]]:
    """Those to train on, and those to validate with: whole sources, so that no video is on both sides.

    A source is a file, or what has one text in a list's column `source`; files of the same bytes are one, and so are
    the sources that one file is said to be of. Of about each ten sources one is held out, spread over the captions,
    always the same; of one alone, none.

    Args:
        same: names of files that hold the same bytes, in groups.
    """
    joined = {name: group[0] for group in same for name in group}
    parents: dict[str, str] = {}

    def source(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    files = [joined.get(item.name, str(item.path)) for item in items]
    for file, item in zip(files, items, strict=True):
        if (named := item.metadata.get(ONE_SOURCE)) is not None:
            parents[source(file)] = source(str(named))
    sources: dict[str, list[MediaItem]] = defaultdict(list)
    for file, item in zip(files, items, strict=True):
        sources[source(file)].append(item)
    ordered = sorted(sources, key=lambda name: (sources[name][0].caption, hashlib.sha256(name.encode()).digest()))
    every = min(HELD_OUT_EVERY, max(2, len(ordered)))
    held = set(ordered[every // 2 :: every])
    return (
        [item for name, group in sources.items() if name not in held for item in group],
        [item for name, group in sources.items() if name in held for item in group],
    )


def write_list(items: Iterable[MediaItem]) -> bytes:
    """The content of a list of media, as `lumos tokenize` and `lumos sample --prompts` take it: a row for each item."""
    rows = []
    for item in items:
        row: dict[str, object] = {"path": str(item.path.absolute()), "caption": item.caption}
        others: dict[str, object] = {"start": item.start, ONE_SOURCE: item.metadata.get(ONE_SOURCE)}
        rows.append(row | {name: value for name, value in others.items() if value is not None})
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


# -- whether it is enough --------------------------------------------------------------------------


def too_little(clips: int, train: Sequence[MediaItem], held: Sequence[MediaItem]) -> list[str]:
    """What is not enough for a model that makes something of its own, each with what would be; empty: it is."""
    sources = len({item.path for item in (*train, *held)})
    told = []
    if clips < ENOUGH_CLIPS:
        few = "one clip is" if clips == 1 else f"{clips} clips are"
        told.append(
            f"{few} too little for a model that makes clips of its own: expect one that knows these by heart; "
            f"about {ENOUGH_CLIPS} are enough"
        )
    if not held:
        none = "one source video alone: nothing can be" if sources == 1 else "no held-out video can be used: nothing is"
        told.append(f"{none} held out, so nothing is judged on what was not trained on")
    elif sources < ENOUGH_SOURCES:
        told.append(
            f"{sources} source videos: what is judged on held-out ones rests on few; about {ENOUGH_SOURCES} are enough"
        )
    counts = Counter(item.caption for item in train)
    rare = sum(count < ENOUGH_OF_CAPTION for count in counts.values())
    if rare and len(counts) > 1:
        told.append(
            f"{rare} of {len(counts)} captions belong to fewer than {ENOUGH_OF_CAPTION} videos each: "
            "what they say is hardly learned"
        )
    return told
