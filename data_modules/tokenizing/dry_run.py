"""A look at media before the work: `lumos tokenize --dry-run`."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import textwrap
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple, Protocol

import numpy as np
import torch

from data_modules.media.reader import MediaReader
from data_modules.media.request import ClipRequest, DecodedClip, Several
from data_modules.shards.reading import is_absent, reason
from data_modules.shards.sheet import Words, paint_rows, save_sheet
from data_modules.tokenizing.clips_of_video import Reader
from data_modules.tokenizing.media_item import NO_CAPTION, NO_FILE, MediaItem
from data_modules.tokenizing.media_list import MediaList
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import open_media
from lumos_pl.errors import DataError
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.tokenizers.load import load_visual_tokenizer, open_text_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

LOOKED_AT, MEASURED, SHOWN, COMPARED = 200, 3, 10, 20_000
_FIRST_BYTES = 1 << 16
_TAR_BYTES, _JSON_BYTES = 512, 300  # a member's header and its padding; what a sample's JSON holds beside the caption


class Looker(Reader, Protocol):
    """See `MediaReader`."""

    def look(self, path: Path, request: ClipRequest) -> DecodedClip: ...


class Items(Protocol):
    """A list of media, see `MediaList`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[MediaItem]: ...


class Seen(NamedTuple):
    """An item and its first frame, with what its file says of itself."""

    item: MediaItem
    first: DecodedClip
    clips: int


@dataclass
class DryRun:
    """What was found of media. Of many, files are looked at that lie evenly over the list.

    Args:
        total: items in the list.
        looked_at: of them, those whose files were opened, at most LOOKED_AT.
        problems: items that would be quarantined, by reason: those of the list, and of the files that were looked at.
        unusable: how many items would give no sample, as far as can be told.
        repeated: items whose caption stands beside another as well.
        longest, most_ids: characters of a caption; its ids, as far as a text tokenizer counts them.
        same: files of the same bytes, in groups, among the first COMPARED files.
        clip_seconds, clip_bytes: that a clip takes, as measured on a few; 0 where none could be made.
    """

    total: int
    seen: list[Seen] = field(default_factory=list)
    looked_at: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    unusable: int = 0
    repeated: int = 0
    longest: int = 0
    most_ids: int = 0
    same: list[list[str]] = field(default_factory=list)
    measured: int = 0
    clip_seconds: float = 0.0
    clip_bytes: float = 0.0

    @property
    def clips(self) -> int:
        """All that would be made, by those that were looked at."""
        return round(sum(one.clips for one in self.seen) * self.total / max(1, self.looked_at))


def look_through(
    source: Path,
    tokenizer_source: str,
    settings: TokenizeSettings,
    *,
    on_list: Callable[[MediaList], None] = lambda items: None,
) -> tuple[DryRun, ClipRequest]:
    """What `tokenize_media` would meet, and what it would read of each file; see there for arguments and errors."""
    items = open_media(source, settings)
    on_list(items)
    tokenizer = load_visual_tokenizer(tokenizer_source, device=settings.device)
    request = settings.clip_request(tokenizer)
    text = None if settings.text_tokenizer is None else open_text_tokenizer(settings.text_tokenizer)

    def count_ids(caption: str) -> int:
        return 0 if text is None else len(text.encode(caption))

    with MediaReader() as reader:
        return look_before(items, reader, tokenizer, request, settings.several, count_ids), request


def look_before(
    items: Items,
    reader: Looker,
    tokenizer: VisualTokenizer,
    request: ClipRequest,
    several: Several,
    count_ids: Callable[[str], int] = lambda caption: 0,
) -> DryRun:
    """Look at media and write nothing. Headers and first frames are read of LOOKED_AT files, evenly over the list.

    Args:
        request, several: what would be made of each file.
        count_ids: of the longest captions and of those of the files that are looked at.
    """
    found = DryRun(total=len(items))
    wanted = set(np.linspace(0, len(items) - 1, min(LOOKED_AT, len(items))).round().astype(int).tolist())
    digests, paths = array("Q"), dict[Path, str]()
    bad_of_list = bad_seen = 0
    for index, item in enumerate(items):
        if item.caption:
            digests.append(int.from_bytes(hashlib.sha256(item.caption.encode()).digest()[:8], "little"))
            if index in wanted or len(item.caption) > found.longest:
                found.most_ids = max(found.most_ids, count_ids(item.caption))
            found.longest = max(found.longest, len(item.caption))
        if len(paths) < COMPARED:
            paths.setdefault(item.path, item.name)
        if item.problem is not None:
            found.problems[_short(item.problem)] += 1
            bad_of_list += 1
        if index not in wanted:
            continue
        found.looked_at += 1
        if item.problem is not None:
            continue
        try:
            first = reader.look(item.path, request)
            found.seen.append(Seen(item, first, _clips_of(first, item, request, several)))
        except DataError as error:
            found.problems[NO_FILE if is_absent(error) else _short(reason(error))] += 1
            bad_seen += 1
    found.unusable = bad_of_list + round(bad_seen * len(items) / max(1, found.looked_at))
    _, counts = np.unique(np.frombuffer(digests, np.uint64), return_counts=True)
    found.repeated = int(counts[counts > 1].sum())
    found.same = list(_same_bytes(paths))
    _measure(found, reader, tokenizer, request)
    return found


def _short(problem: str) -> str:
    return problem.partition(" | ")[0]


def _clips_of(first: DecodedClip, item: MediaItem, request: ClipRequest, several: Several) -> int:
    """Raises DataError for a video that is too short."""
    facts = first.facts
    if first.is_image or facts is None:
        return 1
    if facts.seconds * request.fps < request.min_frames - 0.5:
        raise DataError("the video is too short", got=f"{facts.seconds:.3f} s")
    if item.start is not None:
        if facts.seconds <= item.start:
            raise DataError("the video ends before the clip starts")
        return 1
    if several.per_video is None:  # the last one needs no more than its last frame to begin
        return max(1, math.ceil(facts.seconds * request.fps - 1e-3) // request.max_frames)
    return max(1, min(several.per_video, math.floor(facts.seconds / float(request.length) + 1e-3)))


def _same_bytes(paths: dict[Path, str]) -> Iterator[list[str]]:
    """Names of files that hold the same: of one size, then of one beginning, then all of them."""
    by_size: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(about.st_mode):
            by_size[about.st_size].append(path)
    groups: Iterable[list[Path]] = by_size.values()
    for at_most in (_FIRST_BYTES, None):
        finer: dict[object, list[Path]] = defaultdict(list)
        for group in groups:
            for path in group if len(group) > 1 else ():
                finer[path.stat().st_size, _digest(path, at_most)].append(path)
        groups = finer.values()
    for group in groups:
        if len(group) > 1:
            yield [paths[path] for path in group]


def _digest(path: Path, at_most: int | None) -> bytes:
    try:
        with open_regular(path, at_most=None) as file:
            if at_most is not None:
                return hashlib.sha256(file.read(at_most)).digest()
            return hashlib.file_digest(file, "sha256").digest()
    except (DataError, OSError):
        return os.urandom(16)  # like no other


def _measure(found: DryRun, reader: Looker, tokenizer: VisualTokenizer, request: ClipRequest) -> None:
    """Make a few clips, on one thread as a worker does; the first, which warms up, is made twice."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        chosen = found.seen[:: max(1, len(found.seen) // MEASURED)][:MEASURED]
        seconds, n_bytes = list[float](), list[int]()
        for number, one in enumerate([*chosen[:1], *chosen]):
            begun = time.perf_counter()
            try:
                clip = reader.read(one.item.path, request)
            except DataError:
                continue
            codes = tokenizer.encode(torch.from_numpy(clip.frames)[None])[0].cpu()
            if number > 0:
                seconds.append(time.perf_counter() - begun)
                n_bytes.append(_padded(128 + 2 * codes.numel()) + _padded(_JSON_BYTES + len(one.item.caption.encode())))
    finally:
        torch.set_num_threads(threads)
    if seconds:
        found.measured, found.clip_seconds = len(seconds), sum(seconds) / len(seconds)
        found.clip_bytes = sum(n_bytes) / len(n_bytes)


def _padded(n_bytes: int) -> int:
    """In a tar, with the header."""
    return _TAR_BYTES * (1 + -(-n_bytes // _TAR_BYTES))


# -- what is told ----------------------------------------------------------------------------------


def told(found: DryRun, request: ClipRequest, several: Several, workers: int) -> list[tuple[str, str]]:
    """What was found, in lines of a name and a text."""
    about = "" if found.looked_at == found.total else "about "
    scale = found.total / max(1, found.looked_at)
    videos = [one for one in found.seen if not one.first.is_image]
    images = len(found.seen) - len(videos)
    lengths = [one.first.facts.seconds for one in videos if one.first.facts]
    rates = Counter(f"{one.first.facts.rate:.4g}" for one in videos if one.first.facts and one.first.facts.rate)
    sizes = Counter(f"{one.first.facts.width}x{one.first.facts.height}" for one in found.seen if one.first.facts)
    buckets = Counter("{1}x{0}".format(*one.first.frames.shape[1:3]) for one in found.seen)
    several_say = " at most, by scene" if several.scenes else ""
    ids = f", the one with most ids {found.most_ids}" if found.most_ids else ""
    captions = [f"{found.repeated} repeated", f"the longest has {found.longest} characters{ids}"]
    if missing := found.problems[NO_CAPTION]:
        captions.insert(0, f"{missing} missing")
    lines = [
        ("looked at", f"{found.looked_at} of {found.total} files: what each says of itself, and its first frame"),
        ("images", f"{about}{round(images * scale)}"),
        ("videos", f"{about}{round(len(videos) * scale)}" + _of_lengths(lengths, scale)),
        ("clips", f"{about}{found.clips}{several_say}, of up to {request.max_frames} frames at {request.fps} a second"),
        ("sizes", _counted(sizes)),
        ("cropped to", _counted(buckets)),
        ("rates", _counted(rates, " a second")),
        ("captions", ", ".join(captions)),
        ("same bytes", _of_same(found.same)),
        ("unusable", _counted(found.problems) or "none"),
        ("will take", _of_cost(found, workers)),
    ]
    return [(name, text) for name, text in lines if text]


def _counted(counts: Counter[str], unit: str = "") -> str:
    told = [f"{count} {name}{unit}" for name, count in counts.most_common(6)]
    more = len(counts) - len(told)
    return ", ".join([*told, *([f"{more} others"] if more > 0 else [])])


def _of_lengths(lengths: list[float], scale: float) -> str:
    if not lengths:
        return ""
    total = sum(lengths) * scale
    shortest, middle, longest = min(lengths), median(lengths), max(lengths)
    each = f"from {shortest:.2f} s to {longest:.2f} s, half of them up to {middle:.2f} s"
    return f", {_in_units(total, _TIMES)} in all; {each}"


def _of_same(same: list[list[str]]) -> str:
    if not same:
        return ""
    shown = "; ".join(" = ".join(names[:3]) for names in same[:3])
    groups = counted(len(same), "group")
    return f"{sum(map(len, same))} files in {groups}: {textwrap.shorten(shown, 160, placeholder=' ...')}"


def _of_cost(found: DryRun, workers: int) -> str:
    if not found.measured:
        return ""
    seconds, n_bytes = found.clips * found.clip_seconds / max(1, workers), found.clips * found.clip_bytes
    processes = "this process" if workers == 0 else counted(workers, "process", "processes")
    taken = f"{_in_units(seconds, _TIMES)} in {processes}, and {_in_units(n_bytes, _SIZES)}"
    return f"about {taken}, as measured on {counted(found.measured, 'clip')}"


_TIMES, _SIZES = ((3600, "hours"), (60, "minutes"), (1, "s")), ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _in_units(value: float, units: tuple[tuple[float, str], ...]) -> str:
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    return f"{value / size:.1f} {name}"


def sheet(found: DryRun, *, title: str, out: Path) -> Path:
    """Paint the first frames of ten items that lie evenly over the list, to the next free name of `out`."""
    places = np.linspace(0, len(found.seen) - 1, min(SHOWN, len(found.seen))).round().astype(int)
    shown = [found.seen[place] for place in places]
    about = f"{counted(found.total, 'file')}, {found.looked_at} looked at; nothing was written but this sheet"
    pictures = [{"first frame": one.first.frames[0]} for one in shown]
    figure = paint_rows((title, about), [_words(one) for one in shown], pictures)
    return save_sheet(figure, out=out, named=False)


def _words(one: Seen) -> Words:
    facts = one.first.facts
    assert facts is not None
    height, width = one.first.frames.shape[1:3]
    length = (
        "image"
        if one.first.is_image
        else f"{facts.seconds:.2f} s at {facts.rate:.4g} fps, {one.clips} clip{'s'[: one.clips > 1]}"
    )
    return Words(
        key=textwrap.shorten(one.item.name, 48, placeholder=" ..."),
        caption=textwrap.fill(textwrap.shorten(one.item.caption, 160, placeholder=" ..."), 40),
        details=f"{facts.width}x{facts.height} px, cropped to {width}x{height}\n{length}",
    )
