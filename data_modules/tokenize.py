"""From video and image files with captions to shards: `lumos tokenize`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from data_modules.clips_of_video import Task, parse_key
from data_modules.manifest import Manifest
from data_modules.media.decode import START, ClipRequest
from data_modules.media.reader import MediaReader
from data_modules.media.request import Hdr, Several
from data_modules.media.size_buckets import parse_sizes
from data_modules.media_list import FIELDS, Fields, MediaItem, read_media_list
from data_modules.shard_sample import ShardSample
from data_modules.shards import KIND_FOLDERS, read_shard, remove_shards, write_by_kind
from data_modules.tokenize_state import QUARANTINE_FILE, ClipSample, Counts, Journal, Outcome, TokenizeFolder
from data_modules.tokenize_workers import ClipMaker, run_tasks
from lumos_pl.checkpoints.named import resolve_latest
from lumos_pl.errors import ConfigError, DataError, LumosError, TemporaryError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.devices import check_device
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.settings.ranges import between, optional
from lumos_pl.tokenizers.load import VISUAL_TOKENIZER_FILE, load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

FEW = 10  # items without a sample, which no share forbids


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
        samples_per_shard: see `ShardWriter`.
        device: of the visual tokenizer: `cpu`, `cuda` or `cuda:N`.
        hdr: `map` brings videos of high dynamic range to a screen's, see `media.colour`; `refuse` quarantines them.
        fields: of a list, the columns that say where a file is and what it shows.
        max_bad: the share of items that may give no sample; the first FEW never stop the work.
        retry_quarantined: items that gave no sample are done again.
        retry: how long the storage of a file that was there is tried: a minute and a half, in which a mount comes back.
        follow_links: links among the media are taken also where they lead out of the folder.
    """

    fps: int = 12
    frames: int = 24
    size: str = "256p"
    start: float | None = None
    clips_per_video: int | Literal["all"] = 1
    scenes: bool = False
    min_frames: int = 1
    workers: int = field(default_factory=_n_cores)
    samples_per_shard: int = 64
    device: str = "cpu"
    hdr: Hdr = "map"
    fields: Fields = FIELDS
    max_bad: float = 0.01
    retry_quarantined: bool = False
    retry: RetryConfig = field(default_factory=lambda: RetryConfig(attempts=9))
    follow_links: bool = False

    def __post_init__(self) -> None:
        between(1, 1000).check("--fps", self.fps)
        between(1, 1_000_000).check("--frames", self.frames)
        between(1, self.frames).check("--min-frames", self.min_frames)
        between(0, 1024).check("--workers", self.workers)
        between(1, 1_000_000).check("--samples-per-shard", self.samples_per_shard)
        optional(START).check("--start", self.start)
        if self.clips_per_video != "all":
            between(1, 1_000_000).check("--clips-per-video", self.clips_per_video)
        if self.start is not None and self.several != Several():
            raise ConfigError("one clip at one place, or several", where="--start", fix="leave one flag out")
        between(0, 1).check("--max-bad", self.max_bad)
        check_device(self.device, where="--device")
        if self.hdr not in get_args(Hdr):
            raise ConfigError("unknown", where="--hdr", got=self.hdr, expected=" or ".join(get_args(Hdr)))

    @property
    def several(self) -> Several:
        per_video = None if self.clips_per_video == "all" else self.clips_per_video
        return Several(per_video=per_video, scenes=self.scenes)


@dataclass(frozen=True, kw_only=True)
class TokenizeProgress:
    """How far the work is: items done and in all, of which quarantined, and RGB frames encoded by this call."""

    done: int
    total: int
    quarantined: int
    frames: int


OnProgress = Callable[[TokenizeProgress], None]


def tokenize_media(
    source: Path,
    out: Path,
    tokenizer_source: str,
    settings: TokenizeSettings,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Manifest]:
    """Write the clips of `source` as shards: images to `out/images`, videos to `out/videos`.

    The result is the same to the byte whatever the number of workers, and after any number of
    interruptions, kills included: the same call goes on where the last one was. A file that cannot
    be used is named with its reason in `out/quarantine.jsonl`. Where all is done already, nothing
    is done.

    Args:
        source: see `read_media_list`.
        tokenizer_source: see `load_visual_tokenizer`.
        on_progress: called at the start and after each item.
    Returns:
        the manifest of each folder of shards, by its name.
    Raises:
        ConfigError: a setting is wrong, or other than when `out` was begun.
        DataError: a row of the list is wrong, `out` holds something else, a worker died, or nothing
            could be used, or too little.
        TemporaryError: media cannot be read for now; nothing is quarantined for that.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("the shards would lie among the media", where="--out", got=out, fix="write elsewhere")
    source_now = str(resolve_latest(Path(tokenizer_source), holding=VISUAL_TOKENIZER_FILE))  # the same in every worker
    return tokenize_items(
        read_media_list(source, fields=settings.fields, follow_links=settings.follow_links),
        out,
        settings,
        make_tokenizer=partial(load_visual_tokenizer, source_now, device=settings.device),
        make_reader=MediaReader,
        on_progress=on_progress,
    )


def tokenize_items(
    items: Sequence[MediaItem],
    out: Path,
    settings: TokenizeSettings,
    *,
    make_tokenizer: Callable[[], VisualTokenizer],
    make_reader: Callable[[], Any],
    on_progress: OnProgress | None = None,
) -> dict[str, Manifest]:
    """`tokenize_media` with given tools, which every worker makes for itself."""
    tokenizer = make_tokenizer()
    sizes = parse_sizes(settings.size, multiple=math.lcm(*tokenizer.strides[1:]))
    request = ClipRequest(
        sizes=sizes,
        fps=settings.fps,
        max_frames=settings.frames,
        start=settings.start,
        min_frames=settings.min_frames,
        hdr=settings.hdr,
    )
    maker = ClipMaker(
        make_tokenizer=make_tokenizer,
        make_reader=make_reader,
        request=request,
        several=settings.several,
        retry=settings.retry,
    )
    record = _record(items, tokenizer, settings)
    folder = TokenizeFolder(out)
    with folder.lock():
        counts = folder.begin(record)
        anew = settings.retry_quarantined and (counts is None or counts.get("quarantined", 0) > 0)
        if counts and not anew:
            return {kind: Manifest.load(out / kind) for kind in KIND_FOLDERS if kind in counts}
        journal = _reopened(folder, record, items, counts) if counts else Journal(folder.journal, len(items))
        if anew:
            journal.forget_quarantined()
        try:
            _fill(journal, items, maker, settings, on_progress)
        except LumosError:
            _write_quarantine(folder, items, journal.reasons())
            raise
        return _assemble(folder, record, items, journal, tokenizer, settings.samples_per_shard)


def _record(items: Sequence[MediaItem], tokenizer: VisualTokenizer, settings: TokenizeSettings) -> dict[str, Any]:
    """All that the shards depend on, in plain values."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.name, item.line, item.start, item.caption, item.problem]).encode())
    return {
        "media": digest.hexdigest(),
        "n_media": len(items),
        "tokenizer": tokenizer.fingerprint,
        "device": settings.device.partition(":")[0],  # rounding differs between CPU and GPU
        "fps": settings.fps,
        "frames": settings.frames,
        "size": settings.size,
        "start": settings.start,
        "min_frames": settings.min_frames,
        "samples_per_shard": settings.samples_per_shard,
        # folders of before these were settings go on
        **({} if settings.hdr == "map" else {"hdr": settings.hdr}),
        **({} if settings.clips_per_video == 1 else {"clips_per_video": settings.clips_per_video}),
        **({"scenes": True} if settings.scenes else {}),
    }


def _reopened(folder: TokenizeFolder, record: dict[str, Any], items: Sequence[MediaItem], counts: Counts) -> Journal:
    """The journal of a folder that was complete, with the samples of its shards."""
    places = {parse_key(item.key)[0]: place for place, item in enumerate(items)}
    journal = Journal(folder.journal, len(items))
    for kind in KIND_FOLDERS:
        if kind in counts:
            manifest = Manifest.load(folder.path / kind)
            for index in range(len(manifest.shards)):
                for sample in read_shard(folder.path / kind, manifest, index):
                    digest, number = parse_key(sample.key)
                    place = places[digest]
                    if place not in journal and journal.clips(place) <= (number or 0):
                        journal.append(place, sample if number is None else ClipSample(number, sample))
    journal.end_clips(counts.get("rests", 0))
    folder.reopen(record)  # now that all of it stands in the journal
    return journal


def _fill(
    journal: Journal,
    items: Sequence[MediaItem],
    maker: ClipMaker,
    settings: TokenizeSettings,
    on_progress: OnProgress | None,
) -> None:
    """Make what the journal does not have yet.

    Raises:
        DataError: more than `max_bad` of the items give no sample: something is wrong with all of them.
    """
    frames, most = 0, max(FEW, math.floor(settings.max_bad * len(items)))

    def add(index: int, outcome: Outcome) -> None:
        journal.append(index, outcome)
        check()

    def check() -> None:
        if journal.quarantined > most:
            raise DataError(
                "too many items give no sample",
                where="--max-bad",
                got=f"{journal.quarantined} of {journal.done} so far",
                expected=f"at most {most} of {len(items)}",
                fix=f"{QUARANTINE_FILE} says why; mend it and add --retry-quarantined, or raise --max-bad",
            )

    def report() -> None:
        if on_progress is not None:
            progress = TokenizeProgress(
                done=journal.done, total=len(items), quarantined=journal.quarantined, frames=frames
            )
            on_progress(progress)

    report()
    pending = [(index, item) for index, item in enumerate(items) if index not in journal]
    for index, item in pending:
        if item.problem is not None:
            add(index, item.problem)
    # A file that is there now and not later is out of reach for a while; so are all, where not one is there.
    named = [(index, item) for index, item in pending if item.problem is None]
    tasks = [Task(index, item, journal.clips(index)) for index, item in named if os.path.lexists(item.path)]
    if named and not tasks:
        fix = "see whether their storage is there, and the paths of the list; then start again"
        raise TemporaryError("no file of the list is there", file=named[0][1].path, got=f"{len(named)} files", fix=fix)
    there = {task.index for task in tasks}
    for index, _ in named:
        if index not in there:
            add(index, "no such file")
    check()
    with closing(run_tasks(maker, tasks, settings.workers)) as outcomes:
        for index, outcome in outcomes:
            add(index, outcome)
            if isinstance(outcome, ShardSample | ClipSample):
                frames += (outcome.sample if isinstance(outcome, ClipSample) else outcome).frames
            report()


def _assemble(
    folder: TokenizeFolder,
    record: dict[str, Any],
    items: Sequence[MediaItem],
    journal: Journal,
    tokenizer: VisualTokenizer,
    samples_per_shard: int,
) -> dict[str, Manifest]:
    """Shards and quarantine list from a full journal; what an interrupted attempt left of them is the same."""
    quarantined: list[tuple[int, str]] = []

    def samples() -> Iterator[ShardSample]:
        for place, (item, outcome) in enumerate(zip(items, journal.outcomes(), strict=True)):
            if isinstance(outcome, str):
                quarantined.append((place, outcome))
                continue
            for sample in outcome:
                if (parse_key(sample.key)[0], sample.text) != (parse_key(item.key)[0], item.caption):
                    fix = "remove it, and all clips are made anew"
                    raise DataError(
                        "a sample of another list", file=folder.journal, where=item.name, got=sample.key, fix=fix
                    )
                yield sample

    for kind in KIND_FOLDERS:
        remove_shards(folder.path / kind)  # of a folder that was complete before
    manifests = write_by_kind(
        folder.path,
        samples(),
        tokenizer=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        strides=tokenizer.strides,
        samples_per_shard=samples_per_shard,
        again=True,
    )
    _write_quarantine(folder, items, quarantined)
    if not manifests:
        folder.abandon()
        raise DataError(
            "nothing could be tokenized",
            file=folder.quarantine,
            where=f"{items[quarantined[0][0]].name}: {quarantined[0][1]}",
            got=f"{len(quarantined)} of {len(items)} quarantined",
            fix="each line there says why",
        )
    counts = {kind: manifest.n_samples for kind, manifest in manifests.items()}
    rests = {"rests": journal.rests} if journal.rests else {}
    folder.complete(record, {**counts, "quarantined": len(quarantined), **rests})
    return manifests


def _write_quarantine(
    folder: TokenizeFolder, items: Sequence[MediaItem], quarantined: Iterable[tuple[int, str]]
) -> None:
    entries = (
        {"path": items[place].name, "line": items[place].line, "reason": reason} for place, reason in quarantined
    )
    write_atomically(folder.quarantine, "".join(json.dumps(entry) + "\n" for entry in entries).encode())
