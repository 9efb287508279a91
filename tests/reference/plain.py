"""Lumos-1 written the slow way, from the rules alone: dense masks, loops, full logits. The oracle of the fast path."""

from __future__ import annotations

import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer


def may_attend(tokens: list[int], layout: TokenLayout) -> Tensor:
    """[S, S], True where query (row) may see key (column), read off the ids of one sample."""
    block, frame = [], -1
    inside = False
    for token in tokens:
        if token == layout.frame_start:
            frame, inside = frame + 1, True
        block.append(frame if inside else None)
        if token == layout.frame_end:
            inside = False
    allowed = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for query in range(len(tokens)):
        for key in range(len(tokens)):
            same_frame = block[query] is not None and block[query] == block[key]
            allowed[query, key] = key <= query or same_frame
    return allowed


def plain_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """[S, n_heads, head_dim], one head and one query at a time."""
    group = query.shape[1] // key.shape[1]
    rows = []
    for i in range(query.shape[0]):
        heads = []
        for head in range(query.shape[1]):
            keys, values = key[allowed[i], head // group], value[allowed[i], head // group]
            scores = keys @ query[i, head] / query.shape[-1] ** 0.5
            heads.append(scores.softmax(0) @ values)
        rows.append(torch.stack(heads))
    return torch.stack(rows)


class PlainAttention:
    """Attention over one sample with its dense mask."""

    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain_attention(query, key, value, self.allowed)


def plain_states(net: LumosTransformer, inputs: Tensor, tokens: Tensor, layout: TokenLayout) -> Tensor:
    """The states of one sample; `tokens` are the ids before hiding, which show the structure."""
    sequence = layout.parse(torch.cat([tokens, torch.tensor([layout.video_end, layout.sep])]))
    spans = layout.spans(sequence, closed=False)
    attention = PlainAttention(may_attend(tokens.tolist(), layout))
    states: Tensor = net.model(inputs, net.positions(spans), attention)
    return states
