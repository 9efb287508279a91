"""What `lumos tokenize` can be told, and what of it the shards depend on."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

from data_modules.media.decode import START, ClipRequest
from data_modules.media.request import Hdr, Several
from data_modules.media.size_buckets import parse_sizes
from data_modules.shards.where import Where
from data_modules.tokenizing.media_rows import FIELDS, Fields
from data_modules.tokenizing.parts import Part
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.devices import check_device
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.settings.plain import hints_of, read_value
from lumos_pl.settings.ranges import between, optional
from lumos_pl.tokenizers.text import HuggingFaceTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

BATCH_SIZE = 8  # clips that a GPU encodes together


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
        for name, hint in hints_of(TokenizeSettings).items():
            read_value(getattr(self, name), hint, f"--{name.replace('_', '-')}")
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
        if self.engine == "processes":  # the devices of a cluster are elsewhere
            check_device(self.device, where="--device")
        _ = self.condition

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

    def clip_request(self, tokenizer: VisualTokenizer) -> ClipRequest:
        """What is read of each file."""
        return ClipRequest(
            sizes=parse_sizes(self.size, multiple=math.lcm(*tokenizer.strides[1:])),
            fps=self.fps,
            max_frames=self.frames,
            start=self.start,
            min_frames=self.min_frames,
            hdr=self.hdr,
        )

    def record(self, tokenizer: VisualTokenizer, counter: HuggingFaceTokenizer | None) -> dict[str, Any]:
        """All that the shards depend on beside the list, in plain values."""
        return {
            "tokenizer": tokenizer.fingerprint,
            "device": self.device.partition(":")[0],  # rounding differs between CPU and GPU
            "fps": self.fps,
            "frames": self.frames,
            "size": self.size,
            "start": self.start,
            "min_frames": self.min_frames,
            "samples_per_shard": self.samples_per_shard,
            "captions": [*self.fields.captions] if len(self.fields.captions) > 1 else [],  # kept by their names
            # Folders of before these were settings go on.
            **({} if self.hdr == "map" else {"hdr": self.hdr}),
            **({} if self.clips_per_video == 1 else {"clips_per_video": self.clips_per_video}),
            **({"scenes": True} if self.scenes else {}),
            **({} if self.clips_at_once == 1 else {"batch_size": self.clips_at_once}),
            **({} if self.part is None else {"parts": self.part.count}),
            **({} if counter is None else {"text_tokenizer": counter.fingerprint}),
        }
