"""A batch is one packed sequence: samples stand one after another, and nothing is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.machinery.devices import to_device
from lumos_pl.spans import SequenceSpans

KINDS = ("image", "video")


class _OnDevice:
    """Moves the tensor fields of a dataclass; Lightning and the DataLoader call these by name."""

    def to(self, device: torch.device | str) -> Self:
        """To a GPU without making the host wait, which Lightning does not ask for; from one, it is there on return."""
        if torch.device(device).type == "cuda":
            return self._map(lambda tensor: to_device(tensor, device))
        return self._map(lambda tensor: tensor.to(device))

    def pin_memory(self) -> Self:
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, move) -> Self:  # type: ignore[no-untyped-def]
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {name: move(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True)
class PackedBatch(_OnDevice):
    """B samples in one sequence of S tokens.

    Args:
        tokens: [S] ids; sample b is the next `spans[b].length` of them.
        spans: where each sample's text and frames lie.
        n_given: leading latent frames of each sample that stay visible and unsupervised (I2V,
            continuation); fewer than the sample has.
        appearances: a name for the one time that each sample is trained on, unique over the whole run, such as
            `video/2/clip-0017` (source, epoch, key): it seeds every random choice about the sample.
        left_out: what the data could not use for this batch, for whoever keeps the account of it.
        counts: whether the figures of a validation are over it. One that another rank has too is there so that all
            ranks have as many, which a sharded model needs, and counts on that rank alone.
    """

    tokens: Tensor
    spans: tuple[SequenceSpans, ...]
    n_given: tuple[int, ...]
    appearances: tuple[str, ...]
    left_out: tuple[Any, ...] = ()
    counts: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """Of the samples, for messages, as every kind of batch has them."""
        return self.appearances

    @property
    def kind(self) -> str:
        """`image` or `video`, one of `KINDS`: no batch has both."""
        return "image" if all(spans.latent_frames == 1 for spans in self.spans) else "video"

    @property
    def offsets(self) -> list[int]:
        """Index in the batch of each sample's first token."""
        starts = [0]
        for spans in self.spans[:-1]:
            starts.append(starts[-1] + spans.length)
        return starts


@dataclass(frozen=True, kw_only=True)
class MaskedBatch(PackedBatch):
    """A batch with hidden tokens, and what the loss is asked for.

    Args:
        inputs: [S] ids with MASK at the hidden tokens.
        target_index: [M] index in the batch of each hidden visual token.
        target_codes: [M] its code.
        target_frames: [M] its latent frame within its own sample.
    """

    inputs: Tensor
    target_index: Tensor
    target_codes: Tensor
    target_frames: Tensor


def pack(
    sequences: Sequence[TokenSequence],
    appearances: Sequence[str],
    layout: TokenLayout,
    *,
    n_given: Sequence[int] | None = None,
    tokens: Sequence[Tensor] | None = None,
) -> PackedBatch:
    """Build a training batch from sequences; the closing tokens, which nothing sees, stay out.

    Args:
        appearances: one name per sequence, see `PackedBatch`.
        n_given: one count per sequence; none by default.
        tokens: of each sequence, [S], where the layout has built them already.
    """
    if tokens is None:
        tokens = [layout.build(sequence, closed=False) for sequence in sequences]
    return PackedBatch(
        tokens=torch.cat(list(tokens)),
        spans=tuple(layout.spans(sequence, closed=False) for sequence in sequences),
        n_given=tuple(n_given) if n_given is not None else (0,) * len(sequences),
        appearances=tuple(appearances),
    )
