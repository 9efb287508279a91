"""Block-causal attention for many small clips on a CPU, where calls cost more than arithmetic.

Samples of one latent shape are set side by side, their texts padded on the left, so that their
frames begin at the same column and each step of the staircase is one call for all of them:

             prefix      frame 0   frame 1
   sample 0  ..BOS text  ########  ########        . = padding, which nothing attends to
    sample 1  BOS text..  ########  ########

Scores are written out, which is faster than a fused kernel as long as they fit into the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lumos_pl.spans import SequenceSpans

MAX_SCORES = 1 << 17  # of one frame's queries and all keys in one head; beyond, a fused kernel is faster


def is_small(spans: SequenceSpans) -> bool:
    """Whether one sample's scores are few enough; closing tokens, which only whole sequences have, are unsupported."""
    queries = max(spans.frame_length, spans.prefix)
    return not spans.closing and queries * spans.length <= MAX_SCORES


class PaddedAttention:
    """`BlockCausalAttention` with other calls: the same function of a packed batch, up to rounding.

    Args:
        spans: one per sample, all of them small.
    """

    def __init__(self, spans: Sequence[SequenceSpans]) -> None:
        starts = [0]
        for s in spans:
            starts.append(starts[-1] + s.length)
        groups: dict[tuple[int, int], list[tuple[int, SequenceSpans]]] = {}
        for start, s in zip(starts, spans, strict=False):
            groups.setdefault((s.latent_frames, s.frame_length), []).append((start, s))
        self.groups = [_Group(members) for members in groups.values()]
        # Where each token of the packed batch is among the tokens of all groups, one group after another.
        self.order = torch.cat([group.packed_index for group in self.groups]).argsort()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.cat([group.attend(query, key, value) for group in self.groups])[self.order]


class _Group:
    """B samples of one latent shape as rows of L columns."""

    def __init__(self, members: Sequence[tuple[int, SequenceSpans]]) -> None:
        _, first = members[0]
        self.prefix = max(s.prefix for _, s in members)
        self.ends = [self.prefix + (t + 1) * first.frame_length for t in range(first.latent_frames)]
        width = self.ends[-1] if self.ends else self.prefix
        place = torch.arange(width)[None] - self.prefix + torch.tensor([s.prefix for _, s in members])[:, None]
        is_token = place >= 0  # [B, L]
        self.index = (place.clamp(min=0) + torch.tensor([start for start, _ in members])[:, None]).flatten()
        self.token_index = is_token.flatten().nonzero()[:, 0]
        self.packed_index = self.index[self.token_index]
        # Not -inf: rows of padding are thrown away, but must not become NaN and spoil the gradients.
        self.bias = torch.where(is_token, 0.0, -1e30)[:, None, None]
        later = torch.ones(self.prefix, self.prefix, dtype=torch.bool).triu(1)
        self.causal_bias = torch.where(later, -1e30, self.bias[..., : self.prefix])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Outputs for the members' tokens, in packed order, [their tokens, n_heads, head_dim]."""
        rows = len(self.bias)
        q, k, v = (x[self.index].unflatten(0, (rows, -1)).transpose(1, 2) for x in (query, key, value))
        start = self.prefix
        outputs = [_attend(q[:, :, :start], k[:, :, :start], v[:, :, :start], self.causal_bias)]
        for end in self.ends:
            outputs.append(_attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], self.bias[..., :end]))
            start = end
        return torch.cat(outputs, dim=2).transpose(1, 2).flatten(0, 1)[self.token_index]


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention, [B, n_heads, S, head_dim] to the same shape; bias [B, 1, S or 1, L]."""
    b, n_heads, s, head_dim = query.shape
    folded = (query / math.sqrt(head_dim)).reshape(b * key.shape[1], -1, head_dim)  # by kv head
    scores = torch.bmm(folded, key.reshape(len(folded), -1, head_dim).transpose(1, 2)).view(b, n_heads, s, -1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores.to(exact) + bias, dim=-1).to(value.dtype)
    mixed = torch.bmm(weights.view(len(folded), -1, weights.shape[-1]), value.reshape(len(folded), -1, head_dim))
    return mixed.view(b, n_heads, s, head_dim)
