"""From video and image files with captions to shards: `lumos tokenize`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from data_modules.media.decode import START, ClipRequest
from data_modules.media.reader import MediaReader
from data_modules.media.request import Hdr, Several
from data_modules.media.size_buckets import parse_sizes
from data_modules.shards.growing import GrowingShards
from data_modules.shards.manifest import Manifest
from data_modules.shards.shards import KIND_FOLDERS
from data_modules.shards.where import Where
from data_modules.shards.writer import default_shard_size
from data_modules.tokenizing.clips_of_video import Task
from data_modules.tokenizing.journal import Journal, Outcome
from data_modules.tokenizing.ledger import Ledger
from data_modules.tokenizing.media_item import NO_CAPTION, MediaItem
from data_modules.tokenizing.media_list import MediaList, open_media_list
from data_modules.tokenizing.media_rows import FIELDS, Fields
from data_modules.tokenizing.parts import WHOLE, Part
from data_modules.tokenizing.ray_engine import run_on_ray
from data_modules.tokenizing.state import (
    ONE_NAME,
    Begun,
    Counts,
    TokenizeFolder,
    begin_parts,
    knows_as_spelled,
    recorded_shard_size,
)
from data_modules.tokenizing.work import OnProgress, TokenizeProgress, Work
from data_modules.tokenizing.workers import ClipMaker, run_tasks
from lumos_pl.checkpoints.named import resolve_latest
from lumos_pl.errors import ConfigError, DataError, LumosError
from lumos_pl.machinery.devices import check_device
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.settings.ranges import between, optional
from lumos_pl.tokenizers.load import VISUAL_TOKENIZER_FILE, load_visual_tokenizer, open_text_tokenizer
from lumos_pl.tokenizers.text import HuggingFaceTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

__all__ = ["OnProgress", "TokenizeProgress", "TokenizeSettings", "tokenize_items", "tokenize_media"]

BATCH_SIZE = 8  # clips that a GPU encodes together

Claim = Callable[[Path, dict[str, Any], str | None], None]
"""Called before the work with a folder, its settings and the digest of the list, None for the folder of all parts;
raises DataError where the shards are to lie in the end and others lie already."""


def _n_cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """
    Args:
        fps: frames per second that videos are resampled to.
        frames: of a clip, at most.
        size: `256p`, `384p` (aspect buckets), or WIDTHxHEIGHT in px.
        start: where in each video the clip starts, in seconds, unless the list says it; None: in the middle.
        clips_per_video: so many, spread evenly over each video, or `all`, one after another; each is whole, unless a
            video is no longer than one. A row with a start is one clip, there.
        scenes: no clip crosses a cut between scenes, see `media.scenes`; those that are shorter give none.
        min_frames: videos that give fewer are quarantined.
        workers: processes that decode and encode; 0: this one alone. By default one per core.
        samples_per_shard: None: as `default_shard_size` says of the list, when the work is begun.
        device: of the visual tokenizer: `cpu`, `cuda` or `cuda:N`.
        hdr: `map` brings videos of high dynamic range to a screen's, see `media.colour`; `refuse` quarantines them.
        fields: of a list, the columns that say where a file is and what it shows.
        where: a condition on a list's columns; rows that do not fulfil it are left out.
        text_tokenizer: counts the ids of the captions, see `open_text_tokenizer`; a training with the same one then
            knows what fits without reading.
        max_bad: the share of items that may give no sample; the first FEW never stop the work.
        retry_quarantined: items that gave no sample are done again.
        retry: how long the storage of a file that was there is tried: a minute and a half, in which a mount comes back.
        follow_links: links among the media are taken also where they lead out of the folder.
        folder_captions: of a folder, a file without a text has its folder's name as its caption.
        part: the items of the list that are done, into a folder of their own; None: all of them.
        batch_size: clips of one shape that are encoded together; None: BATCH_SIZE on a GPU, one by one on a CPU, where
            a batch gains no time.
        engine: `processes` of this machine, or `ray`: over a Ray cluster, see `ray_engine`, without `workers`.
    """

    fps: int = 12
    frames: int = 24
    size: str = "256p"
    start: float | None = None
    clips_per_video: int | Literal["all"] = 1
    scenes: bool = False
    min_frames: int = 1
    workers: int = field(default_factory=_n_cores)
    samples_per_shard: int | None = None
    device: str = "cpu"
    hdr: Hdr = "map"
    fields: Fields = FIELDS
    where: str | None = None
    text_tokenizer: str | None = None
    max_bad: float = 0.01
    retry_quarantined: bool = False
    retry: RetryConfig = field(default_factory=lambda: RetryConfig(attempts=9))
    follow_links: bool = False
    folder_captions: bool = False
    part: Part | None = None
    batch_size: int | None = None
    engine: Literal["processes", "ray"] = "processes"

    def __post_init__(self) -> None:
        between(1, 1000).check("--fps", self.fps)
        between(1, 1_000_000).check("--frames", self.frames)
        between(1, self.frames).check("--min-frames", self.min_frames)
        between(0, 1024).check("--workers", self.workers)
        optional(between(1, 1_000_000)).check("--samples-per-shard", self.samples_per_shard)
        optional(START).check("--start", self.start)
        if self.clips_per_video != "all":
            between(1, 1_000_000).check("--clips-per-video", self.clips_per_video)
        if self.start is not None and self.several != Several():
            raise ConfigError("one clip at one place, or several", where="--start", fix="leave one flag out")
        between(0, 1).check("--max-bad", self.max_bad)
        optional(between(1, 1024)).check("--batch-size", self.batch_size)
        if self.engine not in ("processes", "ray"):
            raise ConfigError("unknown", where="--engine", got=self.engine, expected="processes or ray")
        if self.engine == "processes":  # the devices of a cluster are elsewhere
            check_device(self.device, where="--device")
        _ = self.condition
        if self.hdr not in get_args(Hdr):
            raise ConfigError("unknown", where="--hdr", got=self.hdr, expected=" or ".join(get_args(Hdr)))

    @property
    def condition(self) -> Where | None:
        """What `where` says."""
        return None if self.where is None else Where.parse(self.where, "--where")

    @property
    def several(self) -> Several:
        per_video = None if self.clips_per_video == "all" else self.clips_per_video
        return Several(per_video=per_video, scenes=self.scenes)

    @property
    def clips_at_once(self) -> int:
        """How many clips of one shape are encoded together."""
        return self.batch_size or (1 if self.device == "cpu" else BATCH_SIZE)


def tokenize_media(
    source: Path,
    out: Path,
    tokenizer_source: str,
    settings: TokenizeSettings,
    *,
    on_progress: OnProgress | None = None,
    on_list: Callable[[MediaList], None] = lambda items: None,
    claim: Claim | None = None,
) -> dict[str, Manifest]:
    """Write the clips of `source` as shards: images to `out/images`, videos to `out/videos`.

    The result is the same to the byte whatever the number of workers, and after any number of
    interruptions, kills included: the same call goes on where the last one was. Shards are written as they are filled,
    and are final. A file that cannot be used is named with its reason in `out/quarantine.jsonl`. Where all is done
    already, nothing is done. Later the list may have more rows, and another order: what is new is done then.

    One of several parts (`settings.part`) has all this in `out/part-00000-of-00004`, and `out` is one data set when all
    parts are there: of the same samples, in another order.

    Args:
        source: see `open_media_list`.
        tokenizer_source: see `load_visual_tokenizer`.
        on_progress: called at the start and after each item.
        on_list: called once the list is read.
        claim: see `Claim`.
    Returns:
        the manifest of each folder of shards, by its name; of a part perhaps none.
    Raises:
        ConfigError: a setting is wrong, or other than when `out` was begun, or the list lacks what was done of it.
        DataError: a row of the list is wrong, `out` holds something else, a worker died, or nothing
            could be used, or too little.
        TemporaryError: media cannot be read for now, and nothing is quarantined for that; or another process is at it.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("the shards would lie among the media", where="--out", got=out, fix="write elsewhere")
    if settings.text_tokenizer is not None:
        open_text_tokenizer(settings.text_tokenizer)  # what is wrong with it is said before anything is read
    items = open_media(source, settings, as_spelled=knows_as_spelled(out))
    on_list(items)
    source_now = str(resolve_latest(Path(tokenizer_source), holding=VISUAL_TOKENIZER_FILE))  # the same in every worker
    return tokenize_items(
        items,
        out,
        settings,
        make_tokenizer=partial(load_visual_tokenizer, source_now, device=settings.device),
        make_reader=MediaReader,
        on_progress=on_progress,
        make_here=partial(load_visual_tokenizer, source_now) if settings.engine == "ray" else None,
        claim=claim,
    )


def open_media(source: Path, settings: TokenizeSettings, *, as_spelled: bool = False) -> MediaList:
    """The items to tokenize; raises DataError also for a folder without a single caption."""
    items = open_media_list(
        source,
        fields=settings.fields,
        follow_links=settings.follow_links,
        where=settings.condition,
        folder_captions=settings.folder_captions,
        as_spelled=as_spelled,
    )
    if source.is_dir() and all((item.problem or "").startswith(NO_CAPTION) for item in items):
        raise DataError(
            "a folder without captions",
            file=source,
            got=f"{len(items)} files",
            expected="a .txt beside each, of the same name",
            fix="or give a .csv, .jsonl or .parquet with the columns path and caption",
        )
    return items


def tokenize_items(
    items: MediaList | Sequence[MediaItem],
    out: Path,
    settings: TokenizeSettings,
    *,
    make_tokenizer: Callable[[], VisualTokenizer],
    make_reader: Callable[[], Any],
    on_progress: OnProgress | None = None,
    make_here: Callable[[], VisualTokenizer] | None = None,
    claim: Claim | None = None,
) -> dict[str, Manifest]:
    """`tokenize_media` with given tools, which every worker makes for itself.

    Args:
        make_here: makes the tokenizer that this process asks for its name and sizes, where it needs another device.
        claim: see `Claim`.
    """
    listed = items if isinstance(items, MediaList) else MediaList.of(items)
    make_here = make_tokenizer if make_here is None else make_here
    tokenizer = make_here()
    maker = ClipMaker(
        make_tokenizer=make_tokenizer,
        make_reader=make_reader,
        request=clip_request(settings, tokenizer),
        several=settings.several,
        retry=settings.retry,
        batch_size=settings.clips_at_once,
    )
    counter = None if settings.text_tokenizer is None else open_text_tokenizer(settings.text_tokenizer)
    if settings.samples_per_shard is None:
        size = recorded_shard_size(out) or default_shard_size(len(listed))
        settings = replace(settings, samples_per_shard=size)
    record, folder = _record(tokenizer, counter, settings), TokenizeFolder(out)
    record |= {} if knows_as_spelled(out) else ONE_NAME
    if settings.part is not None:
        if claim is not None:
            claim(out, record, None)  # of all parts, whose lists may grow one after another
        begin_parts(out, record)
        folder = TokenizeFolder(out / settings.part.folder)
    with folder.lock():
        if claim is not None:
            claim(folder.path, record, hashlib.sha256(listed.numbers.tobytes()).hexdigest())
        return _Attempt(listed, folder, record, tokenizer, counter, maker, settings, on_progress).made()


def clip_request(settings: TokenizeSettings, tokenizer: VisualTokenizer) -> ClipRequest:
    """What is read of each file."""
    return ClipRequest(
        sizes=parse_sizes(settings.size, multiple=math.lcm(*tokenizer.strides[1:])),
        fps=settings.fps,
        max_frames=settings.frames,
        start=settings.start,
        min_frames=settings.min_frames,
        hdr=settings.hdr,
    )


def _record(
    tokenizer: VisualTokenizer, counter: HuggingFaceTokenizer | None, settings: TokenizeSettings
) -> dict[str, Any]:
    """All that the shards depend on beside the list, in plain values."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "device": settings.device.partition(":")[0],  # rounding differs between CPU and GPU
        "fps": settings.fps,
        "frames": settings.frames,
        "size": settings.size,
        "start": settings.start,
        "min_frames": settings.min_frames,
        "samples_per_shard": settings.samples_per_shard,
        "captions": [*settings.fields.captions] if len(settings.fields.captions) > 1 else [],  # kept by their names
        # Folders of before these were settings go on.
        **({} if settings.hdr == "map" else {"hdr": settings.hdr}),
        **({} if settings.clips_per_video == 1 else {"clips_per_video": settings.clips_per_video}),
        **({"scenes": True} if settings.scenes else {}),
        **({} if settings.clips_at_once == 1 else {"batch_size": settings.clips_at_once}),
        **({} if settings.part is None else {"parts": settings.part.count}),
        **({} if counter is None else {"text_tokenizer": counter.fingerprint}),
    }


@dataclass(frozen=True)
class _Attempt:
    """One call's work in a folder that it has locked."""

    items: MediaList
    folder: TokenizeFolder
    record: dict[str, Any]
    tokenizer: VisualTokenizer
    counter: HuggingFaceTokenizer | None
    maker: ClipMaker
    settings: TokenizeSettings
    on_progress: OnProgress | None

    def made(self) -> dict[str, Manifest]:
        folder, part = self.folder, self.settings.part or WHOLE
        begun = folder.begin(self.record)
        again = self.settings.retry_quarantined
        if begun.media is not None and self._is_done_of_before(begun, again):
            return self._manifests(begun.counts)
        ledger = Ledger(folder.path) if begun.media is None or begun.counts is None else Ledger.of_shards(folder.path)
        journal = Journal(folder.journal, None if begun.media is None else self.items.numbers)
        if again:
            journal.forget_quarantined()
            ledger.forget_quarantined()
        work = Work(
            self.items,
            part.holds,
            folder,
            journal,
            ledger,
            max_bad=self.settings.max_bad,
            retry=self.settings.retry,
            on_progress=self.on_progress,
        )
        if begun.counts is not None and work.done == work.total:
            folder.remove_journal()
            return self._manifests(begun.counts)
        record = self.record | {"n_media": work.total}
        folder.write(record, complete=None)
        return self._filled(work, journal, ledger, record)

    def _is_done_of_before(self, begun: Begun, again: bool) -> bool:
        """Whether nothing is left to do in a folder whose items are known by their places in a list.

        Raises:
            ConfigError: it is not done, and the list is another.
        """
        same = _digest_of_before(self.items) == begun.media
        if begun.counts is None and not same:
            fix = "use the list as it was until this is done (it may grow afterwards), or another --out"
            raise ConfigError("this folder was begun with another list", file=self.folder.path, where="media", fix=fix)
        return begun.counts is not None and same and not (again and begun.counts.get("quarantined"))

    def _manifests(self, counts: Counts | None) -> dict[str, Manifest]:
        return {kind: Manifest.load(self.folder.path / kind) for kind in KIND_FOLDERS if counts and kind in counts}

    def _run(self, tasks: Iterator[Task]) -> Generator[tuple[int, Outcome], None, None]:
        if self.settings.engine == "ray":
            return run_on_ray(self.maker, tasks, self.settings.device)
        return run_tasks(self.maker, tasks, self.settings.workers)

    def _filled(self, work: Work, journal: Journal, ledger: Ledger, record: dict[str, Any]) -> dict[str, Manifest]:
        folder = self.folder
        shards = GrowingShards(
            folder.path,
            ledger,
            self.tokenizer,
            samples_per_shard=self.record["samples_per_shard"],
            text_tokenizer=self.counter,
            taken_over=journal.drop,
        )
        shards.remove_manifests()
        try:
            work.do(self._run, shards)
            manifests = shards.finish()
        except LumosError:
            work.write_quarantine()
            work.tell()
            raise
        finally:
            shards.abandon()
        n_quarantined = work.write_quarantine()
        if not manifests and self.settings.part is None:
            first = json.loads(folder.quarantine.read_text().partition("\n")[0])
            folder.abandon()
            raise DataError(
                "nothing could be tokenized",
                file=folder.quarantine,
                where=f"{first['path']}: {first['reason']}",
                got=f"{n_quarantined} of {work.total} quarantined",
                fix="each line there says why",
            )
        counts = {kind: manifest.n_samples for kind, manifest in manifests.items()}
        rests = {"rests": ledger.n_rests} if ledger.n_rests else {}
        folder.complete(record, {**counts, "quarantined": n_quarantined, **rests})
        return manifests


def _digest_of_before(items: MediaList) -> str:
    """What tokenize.json had of a list whose items were known by their places."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.name, item.line, item.start, item.caption, item.problem]).encode())
    return digest.hexdigest()
