"""A tokenizer without a network: each cell is replaced by the nearest patch of a dictionary.

    first frame        cells of strides[1] x strides[2] pixels, each one of `entries` still patches
    groups of frames   cells of strides[0] frames of as many pixels, each one of `entries` moving patches

Footage in which the same things recur (a game, a cartoon, a still camera) is made of the same patches again and again:
a few thousand of them represent what moves in it exactly, where a briefly trained network would blur it. Of footage
that never repeats a dictionary keeps less than a network does.

Before training it is filled with patches of the clips (k-means||, arXiv:1203.6402): in each of several rounds some are
drawn, the likelier the farther they are from those drawn before. Training then moves them by their gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumos_pl.errors import ConfigError
from lumos_pl.tokenizers.trained import Reconstruction, TokenizerConfig, TrainedTokenizer, fold, unfold
from lumos_pl.tokenizers.visual import pad_frames

ROUNDS = 8  # in which entries are drawn
POOL_BYTES = 128 << 20  # size of the clips that entries are drawn from
MOST_PATCHES = 1 << 24  # per kind that can be drawn from at once
DISTANCES = 1 << 24  # held in memory at once


class DictionaryTokenizer(TrainedTokenizer):
    """The kind `dictionary`; it is empty until `fill`."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__(config)
        t, h, w = config.strides
        self.still = nn.Parameter(torch.zeros(config.entries, 3 * h * w))
        self.moving = nn.Parameter(torch.zeros(config.entries, t * 3 * h * w))

    @property
    def codebook_size(self) -> int:
        return self.config.entries

    @property
    def is_filled(self) -> bool:
        return bool(self.still.any() or self.moving.any())

    @torch.no_grad()
    def fill(
        self,
        clips: Iterable[Tensor],
        generator: torch.Generator,
        *,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Use patches of clips, RGB uint8 [B, N, H, W, 3], as entries.

        Reads clips until they amount to POOL_BYTES or end. If there are fewer patches than entries, patches repeat:
        encoding never uses the later ones of equal entries, but a model may draw any.

        Args:
            on_progress: called with the share of the work done; reading the clips is the first half.
        Raises:
            ConfigError: there are no clips.
        """
        still: list[Tensor] = []
        moving: list[Tensor] = []
        n_bytes = 0
        for frames in clips:
            for pool, cells in zip((still, moving), self._cells(frames.movedim(-1, 1)), strict=True):
                pool.append(cells.movedim(2, -1).flatten(0, -2).cpu())
            n_bytes += frames.numel()
            on_progress(min(1.0, n_bytes / POOL_BYTES) / 2)
            if n_bytes >= POOL_BYTES:
                break
        if not still:
            raise ConfigError("no clip to take patches of", where="fill", fix="give clips, [B, N, H, W, 3]")
        for place, (entries, pool) in enumerate([(self.still, still), (self.moving, moving)]):
            patches, counts = torch.unique(torch.cat(pool)[:MOST_PATCHES], dim=0, return_counts=True)
            found = []
            for drawn in _drawn(patches, counts, len(entries), generator):
                found.append(drawn)
                on_progress((2 + place + sum(map(len, found)) / len(entries)) / 4)
            if len(drawn := torch.cat(found)):  # images have no moving ones
                entries.copy_(drawn[torch.arange(len(entries)) % len(drawn)])
        on_progress(1.0)

    def to_codes(self, pictures: Tensor) -> Tensor:
        """See `TrainedTokenizer`."""
        still, moving = self._cells(pictures)
        return torch.cat([_nearest(still, self.still), _nearest(moving, self.moving)], dim=1)

    def from_codes(self, codes: Tensor) -> Tensor:
        """See `TrainedTokenizer`."""
        t, h, w = self.config.strides
        still = F.embedding(codes[:, :1], self.still).movedim(-1, 2).flatten(0, 1)
        moving = F.embedding(codes[:, 1:], self.moving).movedim(-1, 2).flatten(0, 1)
        b, n = len(codes), codes.shape[1] - 1
        first = unfold(still, (h, w))[:, :, None]  # [B, 3, 1, H, W]
        later = unfold(moving, (h, w)).unflatten(1, (3, t)).unflatten(0, (b, n))  # [B, T - 1, 3, t, H, W]
        return torch.cat([first, later.transpose(1, 2).flatten(2, 3)], dim=2)

    def forward(self, pictures: Tensor) -> Reconstruction:
        """See `TrainedTokenizer`."""
        with torch.no_grad(), torch.autocast(pictures.device.type, enabled=False):  # as in `encode`
            codes = self.to_codes(pictures)
        return Reconstruction(self.from_codes(codes))

    def _cells(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [B, 3, N, H, W] to their still cells [B, 1, 3 * h * w, ...] and moving ones [B, T - 1, n, ...]."""
        t, h, w = self.config.strides
        frames = pad_frames(pictures.transpose(1, 2), t)  # [B, N, 3, H, W]
        still = fold(frames[:, 0], (h, w))[:, None]
        b, n = len(frames), (frames.shape[1] - 1) // t
        groups = frames[:, 1:].unflatten(1, (n, t)).transpose(2, 3)  # [B, T - 1, 3, t, H, W]
        return still, fold(groups.flatten(2, 3).flatten(0, 1), (h, w)).unflatten(0, (b, n))


def _nearest(cells: Tensor, entries: Tensor) -> Tensor:
    """Cells [B, T, n, h, w] to the numbers of the nearest entries, [B, T, h, w]; the first one of equal entries."""
    flat = cells.movedim(2, -1)
    numbers = [_distances(chunk, entries).argmin(1) for chunk in _chunks(flat.flatten(0, -2), entries)]
    return torch.cat(numbers).reshape(flat.shape[:-1])


def _chunks(patches: Tensor, entries: Tensor) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = patches.split(max(1, DISTANCES // max(entries.shape)))
    return chunks


def _distances(patches: Tensor, entries: Tensor) -> Tensor:
    """Squared distances, [n, d] and [k, d] to [n, k], without the term that is the same for all entries of a patch."""
    return torch.addmm(entries.square().sum(1), patches, entries.T, alpha=-2)


def _drawn(patches: Tensor, counts: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Draw `count` different patches of bytes [n, d], or all there are, in [-1, 1], over ROUNDS rounds."""
    if len(patches) <= count:
        yield _unit(patches)
        return
    weight = counts.float().sqrt()  # the root keeps frequent patches from crowding out the others
    mean = _unit(patches.float().mean(0, keepdim=True))
    far = torch.cat([(_unit(chunk) - mean).square().sum(1) for chunk in _chunks(patches, mean)])
    is_free = torch.ones(len(patches))
    ends = sorted({count * done // ROUNDS for done in range(ROUNDS + 1)})  # fewer rounds if `count` is small
    for n in (end - begin for begin, end in pairwise(ends)):
        chances = far.clamp(min=1e-9) * weight * is_free
        numbers = torch.multinomial(chances, n, generator=generator)
        is_free[numbers] = 0
        entries = _unit(patches[numbers])
        yield entries
        nearest = []
        for chunk in map(_unit, _chunks(patches, entries)):
            nearest.append(chunk.square().sum(1) + _distances(chunk, entries).amin(1))
        far = torch.minimum(far, torch.cat(nearest))


def _unit(patches: Tensor) -> Tensor:
    """Bytes to [-1, 1]."""
    return patches.float() / 127.5 - 1
