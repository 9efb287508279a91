"""An unfinished clip or image: its guidance branches, and the frame that is being refined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.machinery.devices import to_device
from lumos_pl.models.attention import block_causal_calls
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.draw import (
    LogitsBuffers,
    confidence_noise,
    draw_codes,
    least_confident,
    n_remaining_after,
    partial_context_index,
)
from lumos_pl.sampling.kv_cache import KVCache
from lumos_pl.seeding import generator

HIDDEN = -1  # in place of a code that is still to be drawn


class Branch:
    """A clip's sequence with or without its text: the tokens before the frames, and a cache of its own."""

    def __init__(self, net: LumosTransformer, layout: TokenLayout, sequence: TokenSequence) -> None:
        weight = net.lm_head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        spans = layout.spans(sequence, closed=False)
        self.prefix = to_device(layout.build(sequence, closed=False)[: spans.prefix], weight.device)
        self.positions = to_device(net.positions(spans), weight.device)
        self.calls = block_causal_calls(spans)  # one for the prefix, then one per frame
        self.cache = KVCache(net.config, spans.length, dtype=dtype, device=weight.device)


class UnfinishedClip:
    """The state of one clip: `blocks` are the tokens of its frames, [T, frame_length].

    Args:
        sequence: its codes after the given frames are placeholders.
        n_given: leading latent frames that are kept.
        seed: its draws depend only on (seed, frame), not on what else is in the batch.
        buffers: shared by the clips that are made together.
    """

    def __init__(
        self,
        net: LumosTransformer,
        layout: TokenLayout,
        sequence: TokenSequence,
        *,
        n_given: int,
        seed: int,
        config: SamplingConfig,
        buffers: LogitsBuffers | None = None,
    ) -> None:
        self.buffers = buffers or LogitsBuffers()
        self.net, self.layout, self.config = net, layout, config
        self.n_given, self.seed = n_given, seed
        # Without guidance nothing would be asked of the branch without text.
        sequences = [sequence] if config.guidance == 1 else [sequence, replace(sequence, text_ids=None)]
        self.branches = [Branch(net, layout, s) for s in sequences]

        device = net.lm_head.weight.device
        spans = layout.spans(sequence, closed=False)
        self.shape = sequence.codes.shape
        blocks = layout.build(sequence, closed=False)[spans.prefix :].view(spans.latent_frames, -1)
        self.blocks = to_device(blocks, device)
        self.visual_index = to_device(spans.visual_index[0] - spans.prefix, device)  # within a block, [n]
        content_index = spans.content_index[0] - spans.prefix
        hidden = partial_context_index(len(content_index), config.partial_context)
        self.context_hidden = to_device(content_index[hidden], device)
        self._log_p = torch.zeros(len(blocks), dtype=torch.float64, device=device)  # sum over a frame's draws

    @property
    def latent_frames(self) -> int:
        return len(self.blocks)

    @property
    def codes(self) -> Tensor:
        """[T, H, W] int64, on the CPU."""
        return (self.blocks[:, self.visual_index] - self.layout.visual_offset).reshape(self.shape).cpu()

    def first_not_finite(self) -> int | None:
        """The first latent frame that was drawn from non-finite numbers, or None; waits for the GPU."""
        return next((frame for frame, log_p in enumerate(self._log_p.tolist()) if not math.isfinite(log_p)), None)

    def frame_codes(self) -> Tensor:
        """The current frame's codes so far, HIDDEN where one is still to be drawn: [H, W] int64, on the CPU."""
        ids = self.block[self.visual_index]
        codes = (ids - self.layout.visual_offset).masked_fill(ids == self.layout.mask, HIDDEN)
        return codes.reshape(self.shape[1:]).cpu()

    def given_context(self) -> Tensor:
        """Tokens of the given frames as later ones see them, [n_given * frame_length]."""
        blocks = self.blocks[: self.n_given]
        return (blocks if self.config.given_context == "visible" else self._partly_hidden(blocks)).flatten()

    def frame_context(self) -> Tensor:
        """Tokens of the current frame as later ones see them, [frame_length]."""
        return self._partly_hidden(self.block)

    def _partly_hidden(self, blocks: Tensor) -> Tensor:
        return blocks.index_fill(-1, self.context_hidden, self.layout.mask)

    def begin(self, frame: int) -> None:
        """Hide every code of a frame."""
        self.frame, self.block = frame, self.blocks[frame]  # a view
        self._hide(self.visual_index)
        self.remaining = torch.arange(len(self.visual_index), device=self.blocks.device)  # indices of codes, [M]
        # Numbers for every position and step, so that a draw depends on where it is, not on what else remains or in
        # which order. All at once: one copy per frame instead of one per step.
        draws = generator(self.seed, "sampling", frame)
        uniform = torch.rand(self.config.steps, 2, len(self.visual_index), dtype=torch.float64, generator=draws)
        self.uniform = to_device(uniform, self.blocks.device)

    def _hide(self, index: Tensor) -> None:
        """Put MASK at these places of the frame; `block[index] = id` would copy the id to a GPU and wait for it."""
        self.block.index_fill_(0, index, self.layout.mask)

    def refine(self, step: int, states: Sequence[Tensor]) -> None:
        """Draw the remaining codes of the frame, and hide the least confident of them again.

        Args:
            states: the decoder's states of the frame's tokens in each branch, [frame_length, D].
        """
        index = self.visual_index[self.remaining]
        with_text, *without = (s[index] for s in states)
        # The head is linear: guiding its input instead of its output runs it once instead of twice.
        guided = torch.lerp(without[0], with_text, self.config.guidance) if without else with_text
        for_code, for_confidence = self.uniform[step][:, self.remaining]
        codes, log_p = self.net.lm_head(
            guided, partial(draw_codes, uniform=for_code, config=self.config, buffers=self.buffers)
        )
        self._log_p[self.frame] += log_p.sum()
        self.block[index] = self.layout.visual_offset + codes
        noise = confidence_noise(step, self.frame - self.n_given, self.config)
        n_remaining = n_remaining_after(step, len(self.visual_index), len(self.remaining), self.config)
        self.remaining = self.remaining[least_confident(log_p, n_remaining, noise=noise, uniform=for_confidence)]
        self._hide(self.visual_index[self.remaining])
