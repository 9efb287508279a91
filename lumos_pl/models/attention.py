"""Block-causal attention without any S x S tensor.

Text-like tokens outside the frames are causal; the tokens of one frame block see each other in both
directions and everything before the block; no sample sees another. The attention mask, True = may
attend, is therefore a staircase, and is never written out: each step of it is one dense call from a
block's queries to all keys up to the block's end:

    keys     text  | frame 0 | frame 1
    text     \\
    frame 0  ###### #########
    frame 1  ###### ######### #########
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lumos_pl.spans import SequenceSpans

# Without cuDNN, torch's own first choice on the newest GPUs: it spends tens of milliseconds preparing for every new
# pair of lengths, and texts make nearly every pair a new one.
CUDA_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class AttentionCall:
    """Queries [start, end) of one sample see its keys [0, end), or only earlier ones if `causal`."""

    start: int
    end: int
    causal: bool = False


def block_causal_calls(spans: SequenceSpans) -> list[AttentionCall]:
    """The staircase of one sample; indices count from its first token."""
    prefix = AttentionCall(0, spans.prefix, causal=True)
    frames = [AttentionCall(*spans.frame_block(frame)) for frame in range(spans.latent_frames)]
    closing = [AttentionCall(i, i + 1) for i in range(spans.length - spans.closing, spans.length)]
    return [prefix, *frames, *closing]


def attn_mask(spans: SequenceSpans) -> Tensor:
    """The staircase written out, True = may attend, [S, S]; for tests and pictures only."""
    allowed = torch.zeros(spans.length, spans.length, dtype=torch.bool)
    for call in block_causal_calls(spans):
        allowed[call.start : call.end, : call.end] = True
        if call.causal:
            allowed[call.start : call.end].tril_()
    return allowed


class Attention(Protocol):
    """How the tokens of a forward pass see each other; the layers know nothing of the layout."""

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
    """Grouped-query attention of one call; shapes as in `Attention`, with at most as many queries as keys."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.is_cuda and q.dtype == torch.float32:  # torch's fused kernels for these need ungrouped heads
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    with sdpa_kernel(CUDA_KERNELS) if q.is_cuda else nullcontext():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
    return out.squeeze(0).transpose(0, 1)


class BlockCausalAttention:
    """Attention over a packed batch: one call per text and per frame.

    Args:
        staircases: of the samples, if not those of `block_causal_calls`.
    """

    def __init__(
        self, spans: Sequence[SequenceSpans], staircases: Sequence[Sequence[AttentionCall]] | None = None
    ) -> None:
        staircases = staircases or [block_causal_calls(s) for s in spans]
        starts = accumulate((calls[-1].end for calls in staircases), initial=0)
        calls = [(start, call) for start, each in zip(starts, staircases, strict=False) for call in each]
        self.query_lengths = [call.end - call.start for _, call in calls]
        self.key_ranges = [(start, start + call.end) for start, call in calls]
        self.causal = [call.causal for _, call in calls]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = (token_ranges(x, self.key_ranges) for x in (key, value))
        calls = zip(query.split(self.query_lengths), keys, values, self.causal, strict=True)
        return torch.cat([attend(q, k, v, causal=causal) for q, k, v, causal in calls])


def token_ranges(x: Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Views of the tokens [start, end) of x, [S, ...]; ranges may overlap.

    Their gradients are summed in fp32 and rounded once. Slices would each make a gradient as large as x and be summed
    one by one in its precision, so keys and values of the first frame, which all others see, would be rounded once
    per frame.
    """
    views: tuple[Tensor, ...] = _TokenRanges.apply(x, ranges)  # type: ignore[no-untyped-call]
    return views


class _TokenRanges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranges: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.ranges, ctx.shape, ctx.dtype = ranges, x.shape, x.dtype
        ctx.set_materialize_grads(False)
        return tuple(x[start:end] for start, end in ranges)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        there = [(bounds, grad) for bounds, grad in zip(ctx.ranges, grads, strict=True) if grad is not None]
        if not there:
            return None, None
        exact = torch.promote_types(ctx.dtype, torch.float32)
        total = torch.zeros(ctx.shape, dtype=exact, device=there[0][1].device)
        for (start, end), grad in there:
            total[start:end].add_(grad)
        return total.to(ctx.dtype), None
