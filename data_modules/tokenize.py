"""From video and image files with captions to shards: `lumos tokenize`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

from data_modules.manifest import Manifest
from data_modules.media.decode import START, ClipRequest
from data_modules.media.reader import MediaReader
from data_modules.media.size_buckets import parse_sizes
from data_modules.media.video_stream import Hdr
from data_modules.media_list import MediaItem, read_media_list
from data_modules.shard_sample import ShardSample
from data_modules.shards import KIND_FOLDERS, write_by_kind
from data_modules.tokenize_state import Journal, TokenizeFolder
from data_modules.tokenize_workers import ClipMaker, Task, run_tasks
from lumos_pl.checkpoints.named import resolve_latest
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.devices import check_device
from lumos_pl.settings.ranges import between, optional
from lumos_pl.tokenizers.load import VISUAL_TOKENIZER_FILE, load_visual_tokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer


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
        min_frames: videos that give fewer are quarantined.
        workers: processes that decode and encode; 0: this one alone. By default one per core.
        samples_per_shard: see `ShardWriter`.
        device: of the visual tokenizer: `cpu`, `cuda` or `cuda:N`.
        hdr: `map` brings videos of high dynamic range to a screen's, see `media.colour`; `refuse` quarantines them.
        follow_links: links among the media are taken also where they lead out of the folder.
    """

    fps: int = 12
    frames: int = 24
    size: str = "256p"
    start: float | None = None
    min_frames: int = 1
    workers: int = field(default_factory=_n_cores)
    samples_per_shard: int = 64
    device: str = "cpu"
    hdr: Hdr = "map"
    follow_links: bool = False

    def __post_init__(self) -> None:
        between(1, 1000).check("--fps", self.fps)
        between(1, 1_000_000).check("--frames", self.frames)
        between(1, self.frames).check("--min-frames", self.min_frames)
        between(0, 1024).check("--workers", self.workers)
        between(1, 1_000_000).check("--samples-per-shard", self.samples_per_shard)
        optional(START).check("--start", self.start)
        check_device(self.device, where="--device")
        if self.hdr not in get_args(Hdr):
            raise ConfigError("unknown", where="--hdr", got=self.hdr, expected=" or ".join(get_args(Hdr)))


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
            could be used.
    """
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("the shards would lie among the media", where="--out", got=out, fix="write elsewhere")
    source_now = str(resolve_latest(Path(tokenizer_source), holding=VISUAL_TOKENIZER_FILE))  # the same in every worker
    return tokenize_items(
        read_media_list(source, follow_links=settings.follow_links),
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
    maker = ClipMaker(make_tokenizer=make_tokenizer, make_reader=make_reader, request=request)
    record = _record(items, tokenizer, settings)
    folder = TokenizeFolder(out)
    with folder.lock():
        if counts := folder.begin(record):
            return {kind: Manifest.load(out / kind) for kind in KIND_FOLDERS if kind in counts}
        journal = Journal(folder.journal, len(items))
        _fill(journal, items, maker, settings.workers, on_progress)
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
        **({} if settings.hdr == "map" else {"hdr": settings.hdr}),  # folders of before it was a setting go on
    }


def _fill(
    journal: Journal, items: Sequence[MediaItem], maker: ClipMaker, workers: int, on_progress: OnProgress | None
) -> None:
    """Make what the journal does not have yet."""
    frames = 0

    def report() -> None:
        if on_progress is not None:
            progress = TokenizeProgress(
                done=journal.done, total=len(items), quarantined=journal.quarantined, frames=frames
            )
            on_progress(progress)

    tasks: list[Task] = []
    for index, item in enumerate(items):
        if index in journal:
            continue
        if item.problem is not None:
            journal.append(index, item.problem)
        else:
            tasks.append((index, item))
    report()
    with closing(run_tasks(maker, tasks, workers)) as outcomes:
        for index, outcome in outcomes:
            journal.append(index, outcome)
            if isinstance(outcome, ShardSample):
                frames += outcome.frames
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
    quarantine: list[dict[str, Any]] = []

    def samples() -> Iterator[ShardSample]:
        for item, outcome in zip(items, journal.outcomes(), strict=True):
            if isinstance(outcome, str):
                quarantine.append({"path": item.name, "line": item.line, "reason": outcome})
            elif (outcome.key, outcome.text) != (item.key, item.caption):
                fix = "remove it, and all clips are made anew"
                raise DataError(
                    "a sample of another list", file=folder.journal, where=item.name, got=outcome.key, fix=fix
                )
            else:
                yield outcome

    manifests = write_by_kind(
        folder.path,
        samples(),
        tokenizer=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        strides=tokenizer.strides,
        samples_per_shard=samples_per_shard,
        again=True,
    )
    write_atomically(folder.quarantine, "".join(json.dumps(entry) + "\n" for entry in quarantine).encode())
    if not manifests:
        folder.abandon()
        raise DataError(
            "nothing could be tokenized",
            file=folder.quarantine,
            where=f"{quarantine[0]['path']}: {quarantine[0]['reason']}",
            got=f"{len(quarantine)} of {len(items)} quarantined",
            fix="each line there says why",
        )
    counts = {kind: manifest.n_samples for kind, manifest in manifests.items()}
    folder.complete(record, {**counts, "quarantined": len(quarantine)})
    return manifests
