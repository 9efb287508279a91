"""Clips as pixels: of the list that was tokenized, and of the files that were made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from data_modules.media.reader import MediaReader
from data_modules.media.request import ClipRequest
from data_modules.shards.manifest import Manifest
from data_modules.shards.shards import read_shard
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from experiments.own.judge import Frames
from experiments.own.settings import OwnSettings
from lumos_pl.errors import DataError
from lumos_pl.tokenizers.visual import VisualTokenizer

VIDEOS = "videos"  # of a folder of shards
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """A clip of a file, and what it shows."""

    item: MediaItem
    frames: Frames


def clip_items(codes: Path) -> list[MediaItem]:
    """The clips that a folder of shards holds the codes of, each as the row of a list that gives it again.

    Pictures are none; where there is nothing else, there is no clip.
    """
    folder = codes / VIDEOS
    if not folder.is_dir():
        return []
    manifest = Manifest.load(folder)
    samples = (sample for index in range(len(manifest.shards)) for sample in read_shard(folder, manifest, index))
    return [
        MediaItem(path=Path(sample.source), name=sample.source, caption=sample.text, start=sample.start_s)
        for sample in samples
        if isinstance(sample.text, str)
    ]


def read_clips(items: Iterable[MediaItem], settings: OwnSettings) -> Iterator[Clip]:
    """The pixels of clips, those that cannot be read any more left out; of one without a start, the middle."""
    with MediaReader() as reader:
        for item in items:
            request = ClipRequest(
                sizes=((settings.width, settings.height),),
                fps=settings.fps,
                max_frames=settings.frames,
                min_frames=settings.frames,
                start=item.start,
            )
            with suppress(DataError):
                yield Clip(item=item, frames=reader.read(item.path, request).frames)


def listed_clips(file: Path, settings: OwnSettings, at_most: int) -> list[Clip]:
    """Some of a list's clips, evenly over it."""
    return list(read_clips(spaced(read_media_list(file), at_most), settings))


def spaced(items: Sequence[Item], at_most: int) -> list[Item]:
    """So many of the items at most, evenly over them."""
    places = np.linspace(0, len(items) - 1, min(at_most, len(items))).round().astype(int)
    return [items[place] for place in places]


def reconstructed(tokenizer: VisualTokenizer, frames: Frames) -> Frames:
    """What comes back of a clip through its codes."""
    codes = tokenizer.encode(torch.from_numpy(frames)[None])
    made: Frames = tokenizer.decode(codes)[0, : len(frames)].cpu().numpy()
    return made
