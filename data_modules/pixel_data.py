"""Videos as pixels, for training a visual tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from data_modules.config import TIMEOUT_S
from data_modules.drawn_clips import DRAWN, DrawnSource
from data_modules.made_clips import make_clips
from data_modules.media.decode import ClipRequest
from data_modules.media.reader import MediaReader
from data_modules.media.size_buckets import parse_sizes
from data_modules.shards.reading import RETRY, read_listed, read_twice, reason
from data_modules.stream.loader import TokenLoader, check_workers
from data_modules.stream.position import (
    VALIDATION_STAGES,
    PositionedDataModule,
    StreamPosition,
    check_can_follow,
)
from data_modules.stream.skipped_steps import SkippedSteps
from data_modules.stream.token_stream import errors_as_items
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.seeding import generator
from lumos_pl.settings.plain import check_instance, read_value
from lumos_pl.settings.ranges import LARGEST_COUNT, between, check_ranges
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.tokenizers.reconstruction import PixelBatch
from lumos_pl.tokenizers.visual import Strides

LEFT_OUT_SHARE = 0.01  # share of a split's clips that may be unusable

Frames = NDArray[np.uint8]  # RGB, [N, H, W, 3]


@dataclass(frozen=True, kw_only=True)
class PixelDataConfig:
    """The videos that a tokenizer is trained on.

    Args:
        root, val_root: a folder of videos, or a list of them, as for `lumos tokenize`; `moving_pictures`: clips that
            the project draws on demand, without end; null for validation: none.
        size: `WIDTHxHEIGHT` in pixels; all pictures are cropped to it (no aspect buckets).
        frames, fps: RGB frames of a clip, and frames per second. Shorter videos are left out.
        batch_size: clips of a micro-batch.
        num_workers: loading processes of each rank; 0 loads in the training process.
        timeout_s: seconds that the training waits for a worker's batch.
        retry: how long a read that fails temporarily is retried; its waits are shortened to fit into `timeout_s`.
        skip_steps: steps to leave out of the data's order, as numbers and ranges: `[1200, 3000-3010]`.
        val_batches: micro-batches of a validation, over all ranks.
        follow_links: also follow links that lead out of the folder.
    """

    root: str | None = None
    val_root: str | None = None
    size: str = "64x64"
    frames: int = 17
    fps: int = 8
    batch_size: int = 16
    num_workers: int = 1
    timeout_s: int = TIMEOUT_S
    retry: RetryConfig = field(default_factory=RetryConfig)
    skip_steps: list[int | str] = field(default_factory=list)
    val_batches: int = 4
    follow_links: bool = False

    def __post_init__(self) -> None:
        some = between(1, 10**6)
        check_ranges(
            "data",
            self,
            timeout_s=some,
            frames=some,
            fps=some,
            batch_size=some,
            num_workers=between(0, 1024),
            val_batches=some,
        )
        SkippedSteps.parse(self.skip_steps)

    @property
    def patience(self) -> RetryConfig:
        """`retry`, shortened so that a worker answers before it is taken for one that hangs."""
        return self.retry.within(self.timeout_s / 2)

    @property
    def has_validation(self) -> bool:
        return self.val_root is not None


class PixelDataModule(PositionedDataModule):
    """Batches of clips of one shape, in an order that depends only on (list, batch size, seed).

    The optimizer step is the only state, as in `TokenDataModule`. A clip that cannot be used is named in a warning
    and replaced by the next one in the order; if they are more than LEFT_OUT_SHARE, the run stops.

    Args:
        strides: of the tokenizer; the size must be a multiple.
        world: clips to make if they do not exist yet.
        was_there: see `TokenDataModule`.
    """

    def __init__(
        self,
        config: PixelDataConfig,
        strides: Strides,
        *,
        seed: int = 0,
        world: WorldClipsConfig | None = None,
        was_there: bool = False,
    ) -> None:
        check_instance(config, PixelDataConfig, "config")
        strides = read_value(strides, Strides, "strides")
        seed = read_value(seed, int, "seed")
        if world is not None:
            check_instance(world, WorldClipsConfig, "world")
        super().__init__(
            skipped=SkippedSteps.parse(config.skip_steps), most_left_out=LARGEST_COUNT, retry=config.patience
        )
        self._world, self._was_there = world, was_there
        self.config, self.strides, self.seed = config, strides, seed
        self._train: ClipSource | DrawnSource | None = None
        self._val: ClipSource | DrawnSource | None = None

    def prepare_data(self) -> None:
        """Make the clips of `world` that do not exist yet."""
        if self._world is not None and self._train is None:
            make_clips(self._world, None)

    def setup(self, stage: str | None = None) -> None:
        """Read the lists; no video is opened.

        Args:
            stage: `validate` and `test` need no training data.
        Raises:
            ConfigError, DataError: what is wrong with the settings or a list.
        """
        if self._train is not None:
            return
        check_workers(self.config.num_workers)
        if stage not in VALIDATION_STAGES:
            if self.config.root is None:
                raise ConfigError("no data", where="data.root", fix="give a folder of videos, or a list of them")
            self._train = self._source(self.config.root, self.seed)
        if self.config.val_root is not None:
            self._val = self._source(self.config.val_root, None)

    def _source(self, root: str, seed: int | None) -> ClipSource | DrawnSource:
        config = self.config
        sizes = parse_sizes(config.size, multiple=math.lcm(*self.strides[1:]), where="data.size")
        if len(sizes) > 1:
            raise ConfigError("tokenizers train on one size", where="data.size", got=config.size, expected="as 64x64")
        if root == DRAWN:
            ((width, height),) = sizes
            return DrawnSource(config.frames, (height, width), batch_size=config.batch_size, seed=seed)
        request = ClipRequest(sizes=sizes, fps=config.fps, max_frames=config.frames, min_frames=config.frames)
        # Tokenizer training needs no captions, not even in a folder.
        listed = partial(read_media_list, Path(root), follow_links=config.follow_links, folder_captions=True)
        items = read_twice(listed, Path(root), config.patience, was_there=self._was_there)
        return ClipSource(Path(root), items, request, batch_size=config.batch_size, seed=seed, retry=config.patience)

    def train_dataloader(self) -> TokenLoader:
        """The endless stream, from the trainer's optimizer step on."""
        if self.trainer is not None:
            check_can_follow(self.trainer)
        return self.stream(self._position)

    def stream(self, position: Callable[[], StreamPosition]) -> TokenLoader:
        """The endless stream from wherever `position` says when an iteration begins."""
        return self._loader(self._train_source, partial(self._numbers, position))

    def _numbers(self, position: Callable[[], StreamPosition]) -> Callable[[], Iterator[int]]:
        return partial(_own_batches, replace(position(), skipped=self.skipped))

    def first_clips(self) -> Iterator[Tensor]:
        """The training clips in their first order, RGB uint8 [B, N, H, W, 3]: each once, but drawn ones without end."""
        for batch in islice(self.stream(StreamPosition), self._train_source.n_batches(sys.maxsize)):
            self._train_source.note(batch.left_out)
            yield batch.frames

    @property
    def _train_source(self) -> ClipSource | DrawnSource:
        if self._train is None:
            raise ConfigError("the data are not read yet", where="PixelDataModule", fix="call setup() first")
        return self._train

    def val_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """The first clips of the list, the same at every call; none without `val_root`."""
        if self._val is None:
            return []
        n_batches = self._val.n_batches(self.config.val_batches)
        position = self._position()
        shared = range(position.rank, n_batches, position.world_size)
        numbers = shared if n_batches >= position.world_size else range(n_batches)
        return self._loader(self._val, partial(partial, _of_this_worker, numbers), n_batches=len(numbers))

    def _loader(
        self,
        source: ClipSource | DrawnSource,
        numbers: Callable[[], Callable[[], Iterable[int]]],
        *,
        n_batches: int | None = None,
    ) -> TokenLoader:
        """A loader of batches; `numbers`, called as an iteration begins, gives what a worker calls for its numbers."""
        read = partial(_pipeline, source, numbers)
        return TokenLoader(read, self.config.num_workers, n_batches=n_batches, timeout_s=self.config.timeout_s)

    def on_before_batch_transfer(self, batch: PixelBatch, dataloader_idx: int) -> PixelBatch:
        """Name what was left out; done in this process, because each worker comes across it anew."""
        source = self._val if self.trainer is not None and self.trainer.validating else self._train
        (source or self._train_source).note(batch.left_out)
        return batch

    def identity(self) -> dict[str, str | int]:
        config = self.config
        return {
            "clips": self._train_source.fingerprint(),
            "size": config.size,
            "frames": config.frames,
            "fps": config.fps,
            "batch_size": config.batch_size,
        }


class ClipSource:
    """The clips of one split, in batches that are a function of their number.

    Args:
        root: where they are listed, for messages.
        items: see `read_media_list`.
        seed: of the order, which differs in each epoch; None: in the order of the list.
        retry: for reads that fail temporarily.
    """

    def __init__(
        self,
        root: Path,
        items: list[MediaItem],
        request: ClipRequest,
        *,
        batch_size: int,
        seed: int | None,
        retry: RetryConfig = RETRY,
    ) -> None:
        self.root, self.items, self.request, self.batch_size, self.seed = root, items, request, batch_size, seed
        self._retry = retry
        self._tolerated = int(LEFT_OUT_SHARE * len(self.items))
        self._noted: set[str] = set()

    def fingerprint(self) -> str:
        """Of the list, and of the files by their sizes."""
        digest = hashlib.sha256()
        for item in self.items:
            n_bytes = item.path.stat().st_size if item.path.is_file() else None
            digest.update(json.dumps([item.name, item.start, item.problem, n_bytes]).encode())
        return digest.hexdigest()

    def n_batches(self, most: int) -> int:
        """Batches in one pass over all clips, but at most `most`."""
        return min(most, math.ceil(len(self.items) / self.batch_size))

    def load(self, numbers: Iterable[int]) -> Iterator[PixelBatch]:
        """The batches with these numbers, decoded; a stage of the stream."""
        unusable: dict[str, str] = {}  # reasons by the clips' keys
        with MediaReader() as reader:
            for number in numbers:
                known = len(unusable)
                clips = [self._read(position, reader, unusable) for position in self._positions(number)]
                names, frames = zip(*clips, strict=True)
                yield PixelBatch(torch.from_numpy(np.stack(frames)), names, list(unusable.values())[known:])

    def note(self, left_out: Iterable[str]) -> None:
        """Warn of each clip that was left out, once; raise DataError if they are too many."""
        for line in left_out:
            if line not in self._noted:
                self._noted.add(line)
                logging.getLogger(__name__).warning("left out: %s", line)
        if len(self._noted) > self._tolerated:
            raise self._too_many(self._noted)

    def _positions(self, number: int) -> range:
        """Positions of a batch's clips in the order; a list ends, shuffled epochs follow each other."""
        start = number * self.batch_size
        stop = start + self.batch_size
        return range(start, stop if self.seed is not None else min(stop, len(self.items)))

    def _item(self, position: int) -> MediaItem:
        epoch, place = divmod(position, len(self.items))
        return self.items[place if self.seed is None else _permutation(self.seed, epoch, len(self.items))[place]]

    def _read(self, position: int, reader: MediaReader, unusable: dict[str, str]) -> tuple[str, Frames]:
        """The clip at this position, or the first usable one after it."""
        for item in map(self._item, range(position, position + 2 * self._tolerated + 1)):
            if item.key in unusable:
                continue
            try:
                return item.name, self._frames(item, reader)
            except DataError as error:
                unusable[item.key] = f"{item.name}: {reason(error)}"
        raise self._too_many(unusable.values())

    def _frames(self, item: MediaItem, reader: MediaReader) -> Frames:
        if item.problem is not None:
            raise DataError(item.problem)
        request = self.request if item.start is None else replace(self.request, start=item.start)
        frames = read_listed(lambda: reader.read(item.path, request), item.path, self._retry).frames
        if len(frames) < request.min_frames:  # an image
            raise DataError("too few frames", got=len(frames), expected=request.min_frames)
        return frames

    def _too_many(self, lines: Collection[str]) -> DataError:
        return DataError(
            "too many clips cannot be used",
            file=self.root,
            got=f"{len(lines)} of {len(self.items)}, such as {next(iter(lines))}",
            expected=f"at most {self._tolerated}",
            fix="repair them, or take them out of the list",
        )


def _pipeline(
    source: ClipSource | DrawnSource, numbers: Callable[[], Callable[[], Iterable[int]]]
) -> webdataset.DataPipeline:
    return webdataset.DataPipeline(numbers(), source.load, errors_as_items)


def _own_batches(position: StreamPosition) -> Iterator[int]:
    own = range(position.start + position.rank, sys.maxsize, position.world_size)
    return map(position.of_order, _of_this_worker(own))


def _of_this_worker(numbers: range) -> range:
    info = get_worker_info()
    return numbers if info is None else numbers[info.id :: info.num_workers]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, n_items: int) -> list[int]:
    order: list[int] = torch.randperm(n_items, generator=generator(seed, "pixels", epoch)).tolist()
    return order
