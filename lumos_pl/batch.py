"""A batch is one packed sequence: samples follow one another without padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.machinery.devices import to_device
from lumos_pl.settings.plain import check_instance, check_list, check_texts
from lumos_pl.spans import SequenceSpans

KINDS = ("image", "video")


def check_tokens(tokens: Tensor, spans: Sequence[SequenceSpans]) -> None:
    """Raise DataError unless tokens are integers, [S], S being the total length of the samples; ids are not checked."""
    n_tokens = sum(of_sample.length for of_sample in spans)
    is_packed = isinstance(tokens, Tensor) and tokens.shape == (n_tokens,)
    if not is_packed or tokens.dtype not in (torch.int64, torch.int32):
        got = f"{tokens.dtype} {list(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise DataError("not the tokens of these samples", where="tokens", got=got, expected=f"int64 [{n_tokens}]")


class _OnDevice:
    """Moves the tensor fields of a dataclass; Lightning and the DataLoader call these by name."""

    def to(self, device: torch.device | str) -> Self:
        """Copy to a GPU without blocking the host; from a GPU the copy is complete on return."""
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
        n_given: leading latent frames of each sample that stay visible and are not trained on (I2V,
            continuation); fewer than the sample has.
        appearances: a name for each time that a sample is trained on, unique in the whole run, such as
            `video/2/clip-0017` (source, epoch, key). It seeds every random choice about the sample.
        left_out: what the data could not use for this batch, for whoever keeps count of it.
        counts: whether validation figures include this batch. A sharded model needs equally many batches on all ranks,
            so a rank may be given a batch that another rank has too; it counts only there.
    """

    tokens: Tensor
    spans: tuple[SequenceSpans, ...]
    n_given: tuple[int, ...]
    appearances: tuple[str, ...]
    left_out: tuple[Any, ...] = ()
    counts: bool = True

    def __post_init__(self) -> None:
        n_samples = len(self.spans)
        for name, given in ("n_given", self.n_given), ("appearances", self.appearances):
            if len(given) != n_samples:
                raise DataError("not one for each sample", where=name, got=len(given), expected=n_samples)
        for spans, n_given in zip(self.spans, self.n_given, strict=True):
            if not 0 <= n_given < spans.latent_frames:
                expected = f"0 to {spans.latent_frames - 1}: a sample of {spans.latent_frames} latent frames"
                raise DataError("no latent frame is left", where="n_given", got=n_given, expected=expected)
        check_tokens(self.tokens, self.spans)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the samples for messages; every kind of batch has them."""
        return self.appearances

    @property
    def kind(self) -> str:
        """`image` if all samples have one latent frame, else `video`; see `KINDS`."""
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
    """A batch with hidden tokens, and the targets of the loss.

    Args:
        inputs: [S] ids, MASK at the hidden tokens.
        target_index: [M] index in the batch of each hidden visual token.
        target_codes: [M] its true code.
        target_frames: [M] its latent frame within its own sample.
    """

    inputs: Tensor
    target_index: Tensor
    target_codes: Tensor
    target_frames: Tensor


def check_masked(batch: object) -> None:
    """Raise ConfigError unless it is a batch with hidden tokens."""
    if not isinstance(batch, MaskedBatch):
        got, fix = type(batch).__name__, "make batches by lumos_pl.pack; the module hides tokens of them"
        raise ConfigError("not a batch to train on", where="batch", got=got, expected="PackedBatch", fix=fix)


def pack(
    sequences: Sequence[TokenSequence],
    appearances: Sequence[str] | None = None,
    layout: TokenLayout | None = None,
    *,
    n_given: Sequence[int] | None = None,
    tokens: Sequence[Tensor] | None = None,
) -> PackedBatch:
    """Build a training batch from sequences, without their closing tokens, which nothing sees.

    With a layout it is the `collate_fn` of your own loader: `partial(pack, layout=module.layout)`.

    Args:
        appearances: one name per sequence, see `PackedBatch`. By default the digest of its tokens; the module adds the
            epoch if the loader repeats its samples in each.
        layout: the vocabulary, such as `LumosModule.layout`.
        n_given: one count per sequence; none are given by default.
        tokens: of each sequence, [S], if they have been built already.
    Raises:
        DataError: an id, code or number that is not in the vocabulary, or not one name or count for each sequence.
        ConfigError: no sequences, or no layout.
    """
    check_instance(layout, TokenLayout, "layout", fix="give LumosModule.layout, or LayoutConfig.build()")
    assert layout is not None
    sequences = check_list(sequences, "sequences")
    for place, sequence in enumerate(sequences):
        check_instance(sequence, TokenSequence, f"sequences[{place}]")
    if not sequences:
        raise ConfigError("nothing to pack", where="sequences", expected="one or more")
    if tokens is None:
        tokens = [layout.build(sequence, closed=False) for sequence in sequences]
    if appearances is None:
        appearances = [hashlib.sha256(own.numpy().tobytes()).hexdigest()[:16] for own in tokens]
    return PackedBatch(
        tokens=torch.cat(list(tokens)),
        spans=tuple(layout.spans(sequence, closed=False) for sequence in sequences),
        n_given=tuple(n_given) if n_given is not None else (0,) * len(sequences),
        appearances=tuple(check_texts(appearances, "appearances")),
    )
