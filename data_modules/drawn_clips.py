"""Clips that are drawn as they are asked for, and never end: moving pictures, for training a visual tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from lumos_pl.moving_pictures.clip import VERSION, draw_clip
from lumos_pl.tokenizers.reconstruction import PixelBatch

DRAWN = "moving_pictures"  # what stands for them where videos are named


class DrawnSource:
    """What `ClipSource` is for videos: batches that are a function of their number.

    Args:
        size: height and width, px.
        seed: of the clips; None: those for validation, the same for every run.
    """

    def __init__(self, frames: int, size: tuple[int, int], *, batch_size: int, seed: int | None) -> None:
        self.frames, self.size, self.batch_size, self.seed = frames, size, batch_size, seed

    def n_batches(self, most: int) -> int:
        """Of a validation, at most so many."""
        return most

    def fingerprint(self) -> str:
        return f"{DRAWN}-{VERSION}-{self.seed}"

    def load(self, numbers: Iterable[int]) -> Iterator[PixelBatch]:
        """The batches of these numbers; a stage of the stream."""
        for number in numbers:
            clips = range(number * self.batch_size, (number + 1) * self.batch_size)
            frames = torch.stack([self._draw(clip) for clip in clips])
            yield PixelBatch(frames, [f"{DRAWN} {clip}" for clip in clips])

    def note(self, left_out: Iterable[str]) -> None:
        """Nothing: a drawing can be used."""

    def _draw(self, number: int) -> torch.Tensor:
        split = "val" if self.seed is None else "train"
        return draw_clip(self.seed or 0, number, frames=self.frames, size=self.size, split=split)
