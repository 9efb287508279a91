"""AR-DF, autoregressive discrete diffusion forcing: what training hides and asks for.

Within a frame the hidden tokens are predicted in parallel (discrete diffusion); from frame to
frame the model is causal (autoregressive). Source: arXiv:2507.08801.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.layout import TokenLayout
from lumos_pl.masking import MaskConfig, draw_mask
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans


def hide_tokens(
    batch: PackedBatch,
    layout: TokenLayout,
    config: MaskConfig,
    *,
    seed: int,
    progress: float = 0.0,
    purpose: str = "ar_df",
) -> MaskedBatch:
    """Hide what training hides. For a sample this depends only on (seed, appearance), not on the rest of the batch.

    Args:
        progress: of the training, 0 to 1.
        purpose: names the draw; another purpose hides other places.
    """
    return hide_positions(
        batch,
        layout,
        [
            draw_mask(
                config,
                spans.latent_frames - n_given,
                spans.n_positions,
                generator=generator(seed, purpose, appearance),
                progress=progress,
                codes=partial(_codes, batch.tokens, spans, n_given, offset),
            )
            for spans, n_given, appearance, offset in zip(
                batch.spans, batch.n_given, batch.appearances, batch.offsets, strict=True
            )
        ],
    )


def _codes(tokens: Tensor, spans: SequenceSpans, n_given: int, offset: int) -> Tensor:
    """Token ids of a sample's latent frames that are not given, [T - n_given, H, W]."""
    ids = tokens[offset + spans.visual_index[n_given:]]
    return ids.view(-1, spans.rows, spans.cols)


def hide_behind_own(
    batch: MaskedBatch, codes: Tensor, layout: TokenLayout, config: MaskConfig, *, seed: int, progress: float = 0.0
) -> MaskedBatch:
    """Hide other places, in clips whose hidden codes have been replaced by the model's own; targets stay the truth.

    Self-forcing for discrete codes: as in sampling, the visible codes of a frame and of those before it may be wrong.

    Args:
        codes: what the model drew at the batch's targets, [M].
    """
    tokens = batch.tokens.index_copy(0, batch.target_index, codes + layout.visual_offset)
    again = hide_tokens(
        replace(batch, tokens=tokens), layout, config, seed=seed, progress=progress, purpose="self_forcing"
    )
    truth = batch.tokens[again.target_index] - layout.visual_offset
    return replace(again, tokens=batch.tokens, target_codes=truth)


def hide_positions(batch: PackedBatch, layout: TokenLayout, token_masks: Sequence[Tensor]) -> MaskedBatch:
    """Replace content tokens by MASK and list the targets: the hidden visual tokens.

    Hidden NEWLINEs are replaced too, but never asked for. Given frames stay as they are.

    Args:
        token_masks: one per sample, True = hidden, over its frames that are not given, [T - n_given, H * (W + 1)].
    """
    hidden, targets, frames = [], [], []
    for spans, n_given, token_mask, offset in zip(batch.spans, batch.n_given, token_masks, batch.offsets, strict=True):
        index = offset + spans.content_index[n_given:]
        is_target = token_mask & spans.is_visual_position
        hidden.append(index[token_mask])
        targets.append(index[is_target])
        frames.append(n_given + is_target.nonzero()[:, 0])

    inputs = batch.tokens.clone()
    inputs[torch.cat(hidden)] = layout.mask
    target_index = torch.cat(targets)
    return MaskedBatch(
        tokens=batch.tokens,
        spans=batch.spans,
        n_given=batch.n_given,
        appearances=batch.appearances,
        counts=batch.counts,
        inputs=inputs,
        target_index=target_index,
        target_codes=batch.tokens[target_index] - layout.visual_offset,
        target_frames=torch.cat(frames),
    )
