"""Greedy generation from the rules alone: every pass computes the whole sequence, each branch on its own.

No cache, no packing, logits over the whole vocabulary at every token.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.generate import GenerationRequest
from tests.reference.plain import plain_states


def plain_generate(
    net: LumosTransformer,
    layout: TokenLayout,
    request: GenerationRequest,
    *,
    steps: int,
    guidance: float,
    partial_context: float,
    given_visible: bool = True,
) -> Tensor:
    """Codes [T, H, W] by the cosine schedule."""
    codes = request.sequence.codes.clone()
    n_codes = request.rows * request.cols
    for frame in range(request.n_given, request.latent_frames):
        visible = [given_visible and earlier < request.n_given for earlier in range(frame)]
        unknown = set(range(n_codes))
        for step in range(steps):
            sequence = replace(request.sequence, codes=codes[: frame + 1])
            branches = (sequence, replace(sequence, text_ids=None))
            c, u = (_logits(net, layout, branch, unknown, partial_context, visible) for branch in branches)
            p = (u + guidance * (c - u)).softmax(-1)
            for position in unknown:
                codes[frame].view(-1)[position] = p[position].argmax()
            n_left = min(max(math.floor(n_codes * math.cos(math.pi / 2 * (step + 1) / steps)), 1), len(unknown) - 1)
            if step == steps - 1:
                n_left = 0
            unknown = set(sorted(unknown, key=lambda position: float(p[position].max()))[:n_left])
            if not unknown:
                break
    return codes


def _logits(
    net: LumosTransformer,
    layout: TokenLayout,
    sequence: TokenSequence,
    unknown: set[int],
    partial_context: float,
    visible: list[bool],
) -> Tensor:
    """Logits over the codes at every code of the last frame, [H * W, K]."""
    tokens = layout.build(sequence, closed=False)
    inputs = tokens.tolist()
    starts = [i for i, token in enumerate(inputs) if token == layout.frame_start]
    n_content = len(inputs) - starts[-1] - 4
    n_hidden = max(1, round(partial_context * n_content))
    for start, whole in zip(starts, visible, strict=False):
        for i in range(0 if whole else n_hidden):
            inputs[start + 3 + round(i * n_content / n_hidden)] = layout.mask
    places = [i for i in range(starts[-1], len(inputs)) if inputs[i] >= layout.visual_offset]
    for position in unknown:
        inputs[places[position]] = layout.mask
    states = plain_states(net, torch.tensor(inputs), tokens, layout)
    return (states @ net.lm_head.weight.T)[places, layout.visual_offset :]
