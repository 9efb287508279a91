"""Block-causal attention without any S x S tensor.

Text-like tokens outside the frames are causal; the tokens of one frame block see each other in both
directions and everything before the block; no sample sees another. The allowed pairs are therefore
a staircase, and each step of it is one dense call from a block's queries to all keys up to its end:

    keys     text  | frame 0 | frame 1
    text     \\
    frame 0  ###### #########
    frame 1  ###### ######### #########
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.spans import SequenceSpans


@dataclass(frozen=True)
class AttentionCall:
    """Queries [start, end) of one sample see its keys [0, end), or only earlier ones if `causal`."""

    start: int
    end: int
    causal: bool = False


def block_causal_calls(spans: SequenceSpans) -> list[AttentionCall]:
    """The staircase of one sample; indices count from its first token."""
    prefix = AttentionCall(0, spans.prefix, causal=True)
    frames = [AttentionCall(*spans.frame_block(frame)) for frame in range(spans.frames)]
    closing = [AttentionCall(i, i + 1) for i in range(spans.length - spans.closing, spans.length)]
    return [prefix, *frames, *closing]


def attn_mask(spans: SequenceSpans) -> Tensor:
    """The staircase drawn out, True = may attend, [S, S]: for tests and pictures only."""
    allowed = torch.zeros(spans.length, spans.length, dtype=torch.bool)
    for call in block_causal_calls(spans):
        allowed[call.start : call.end, : call.end] = True
        if call.causal:
            allowed[call.start : call.end].tril_()
    return allowed


class Attention(Protocol):
    """How the tokens of a forward pass see each other; the layers do not know the layout."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """
        Args:
            layer: index of the calling layer (a KV cache keeps keys and values per layer).
            query: [S, n_heads, head_dim].
            key, value: [S, n_kv_heads, head_dim].
        Returns:
            [S, n_heads, head_dim].
        """
        ...


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """Grouped-query attention of one call; shapes as in `Attention`, fewer queries than keys allowed."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and q.dtype == torch.float32:  # for these torch has no fused kernel but one without groups
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)[0].transpose(0, 1)


class BlockCausalAttention:
    """Attention over a packed batch: one call per text and per frame."""

    def __init__(self, spans: Sequence[SequenceSpans]) -> None:
        self.lengths = [s.length for s in spans]
        self.calls = [block_causal_calls(s) for s in spans]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        # Split first: the gradient of a slice is as large as what it was cut from, so cutting
        # frames from the whole batch would cost the square of the batch size.
        samples = zip(self.calls, *(x.split(self.lengths) for x in (query, key, value)), strict=True)
        for calls, q, k, v in samples:
            for call in calls:
                outputs.append(attend(q[call.start : call.end], k[: call.end], v[: call.end], causal=call.causal))
        return torch.cat(outputs)
