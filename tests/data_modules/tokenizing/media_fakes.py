"""A visual tokenizer and a reader of made-up media, which worker processes can import."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data_modules.media.decode import ClipRequest, DecodedClip, Several
from lumos_pl.errors import DataError
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.visual import Strides, pad_frames

OUTAGE = ".outage"  # of a file beside a clip: how often reading that one fails
KILLER = "killer"  # a file that kills the process that reads it


class MeanTokenizer:
    """The code of a cell is the mean of its bytes."""

    fingerprint = "mean"
    codebook_size = 256
    strides: Strides = (4, 8, 8)

    def encode(self, frames: Tensor) -> Tensor:
        padded = pad_frames(frames, 4).float()
        first, rest = padded[:, :1], padded[:, 1:]
        groups = torch.cat([first, rest.unflatten(1, (-1, 4)).mean(2)], dim=1) if rest.shape[1] else first
        codes: Tensor = groups.mean(-1).unflatten(3, (-1, 8)).mean(4).unflatten(2, (-1, 8)).mean(3).long()
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        frames = codes.repeat_interleave(8, 2).repeat_interleave(8, 3)
        frames = torch.cat([frames[:, :1], frames[:, 1:].repeat_interleave(4, 1)], dim=1)
        return frames[..., None].expand(*frames.shape, 3).to(torch.uint8)


class OtherTokenizer(MeanTokenizer):
    fingerprint = "other"


class Unopened(MeanTokenizer):
    """One that can be made in the process that asks, and in none of its workers."""

    def __init__(self, refusal: Exception | None = None) -> None:
        if multiprocessing.parent_process() is not None:
            if refusal is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise refusal


class WrittenReader:
    """Reads what `write_clip` writes: names that start with `video` or `image`, 16x8 px."""

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        if path.stem == KILLER:
            os.kill(os.getpid(), signal.SIGKILL)
        outage = path.with_suffix(OUTAGE)
        if outage.is_file() and (left := int(outage.read_text())):
            outage.write_text(str(left - 1))
            raise DataError("cannot be read", file=path) from OSError(errno.EIO, os.strerror(errno.EIO))
        if not path.is_file():
            raise DataError("cannot be read", file=path) from FileNotFoundError(errno.ENOENT, "No such file")
        try:
            seed, n_frames = map(int, path.read_text().split())
        except ValueError as error:
            raise DataError("not a video or image", file=path, got=error) from error
        shift = int(request.start or 0)
        pixels = torch.randint(256, (n_frames, 8, 16, 3), generator=generator(seed, "clip", shift), dtype=torch.uint8)
        frames = pixels[: request.max_frames].numpy()
        return DecodedClip(frames=np.ascontiguousarray(frames), fps=request.fps, is_image=n_frames == 1)

    def clips(self, path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
        """Whole clips one after another, or at starts; a file beside it says at which one it fails, and how."""
        n_frames = int(path.read_text().split()[1])
        n_clips, rest = divmod(n_frames, request.max_frames)
        if n_frames == 1:
            yield WrittenReader.read(self, path, request)
            return 0
        for number, start in enumerate(several.starts or [float(i * request.length) for i in range(max(1, n_clips))]):
            if number < several.done:
                continue
            trouble = path.with_suffix(f".{number}")
            if trouble.is_file():
                if trouble.read_text() == "damage":
                    raise DataError("damaged frame", file=path)
                trouble.unlink()
                raise DataError("cannot be read", file=path) from OSError(errno.EIO, os.strerror(errno.EIO))
            clip = WrittenReader.read(self, path, replace(request, start=start))
            yield replace(clip, start=start)
        return int(n_clips > 0 and rest > 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def write_clip(path: Path, seed: int, n_frames: int) -> None:
    path.write_text(f"{seed} {n_frames}")
