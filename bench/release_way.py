"""Lumos-1 computed as the release computes it: the baseline of the benchmarks, and an oracle at real sizes.

Dense masks, logits over the whole vocabulary in fp32 at every token, two passes for guidance one
after the other, a cache that is copied to grow. The weights, and so the results, are ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.layout import TokenLayout
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.clip import Clip
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest
from lumos_pl.spans import SequenceSpans


def dense_attention(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """One call under an explicit mask; [S, n_heads, head_dim] to the same, allowed [S, L]."""
    bias = torch.zeros(allowed.shape, dtype=query.dtype, device=query.device).masked_fill(
        ~allowed, torch.finfo(query.dtype).min
    )
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None])[0].transpose(0, 1)


class DenseAttention:
    """`Attention` of one sample with its S x S mask."""

    def __init__(self, spans: SequenceSpans, device: torch.device) -> None:
        with device:
            self.allowed = attn_mask(spans)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dense_attention(query, key, value, self.allowed)


class GrowingCache:
    """`Attention` after what was kept, which is joined with the new keys and values in every pass."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        self.causal = False

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self.kept:
            key, value = (torch.cat(pair) for pair in zip(self.kept[layer], (key, value), strict=True))
        self.seen[layer] = key, value
        allowed = torch.ones(len(query), len(key), dtype=torch.bool, device=query.device)
        return dense_attention(query, key, value, allowed.tril(len(key) - len(query)) if self.causal else allowed)

    def keep(self) -> None:
        """Let the latest pass stand."""
        self.kept = dict(self.seen)


def release_loss(
    net: LumosTransformer, inputs: Tensor, spans: SequenceSpans, target_index: Tensor, target_codes: Tensor
) -> Tensor:
    """Mean cross-entropy of one sample's targets, out of fp32 logits over all ids at all tokens."""
    device = inputs.device
    hidden = net.model(inputs, net.positions(spans).to(device), DenseAttention(spans, device))
    logits = F.linear(hidden, net.lm_head.weight).float()
    labels = torch.full((len(inputs),), -100, device=device)
    labels[target_index] = target_codes
    visual = logits[:, net.lm_head.visual_offset :]
    is_target = labels != -100
    return F.cross_entropy(visual[is_target], labels[is_target])


@torch.no_grad()
def release_generate(
    net: LumosTransformer, layout: TokenLayout, request: GenerationRequest, config: SamplingConfig
) -> Tensor:
    """Greedy codes [T, H, W] of one request without given frames, by the cosine schedule."""
    clip = Clip(net, layout, request.sequence, given=0, seed=request.seed, config=config)
    caches = [GrowingCache() for _ in clip.branches]
    for branch, cache in zip(clip.branches, caches, strict=True):
        cache.causal = True
        net.model(branch.prefix, branch.positions[: len(branch.prefix)], cache)
        cache.keep()
        cache.causal = False

    def logits(tokens: Tensor, frame: int) -> list[Tensor]:
        each = []
        for branch, cache in zip(clip.branches, caches, strict=True):
            call = branch.calls[1 + frame]
            hidden = net.model(tokens, branch.positions[call.start : call.end], cache)
            each.append(F.linear(hidden, net.lm_head.weight).float())
        return each

    n_codes = request.rows * request.cols
    for frame in range(request.frames):
        clip.begin(frame)
        unknown = torch.ones(n_codes, dtype=torch.bool, device=clip.block.device)
        for step in range(config.steps):
            with_text, without = logits(clip.block, frame)
            guided = without + config.guidance * (with_text - without)
            log_p = guided[clip.visual_index, layout.visual_offset :].log_softmax(-1)
            best, codes = log_p.max(-1)
            block = clip.block[clip.visual_index]
            block[unknown] = layout.visual_offset + codes[unknown]
            if step < config.steps - 1:
                wanted = math.floor(n_codes * math.cos(math.pi / 2 * (step + 1) / config.steps))
                n_left = min(max(wanted, 1), int(unknown.sum()) - 1)
                doubtful = best.masked_fill(~unknown, math.inf).topk(n_left, largest=False).indices
                unknown = torch.zeros_like(unknown).index_fill(0, doubtful, True)
                block[unknown] = layout.mask
            clip.block[clip.visual_index] = block
            if not unknown.any():
                break
        logits(clip.frame_context(), frame)
        for cache in caches:
            cache.keep()
    return clip.codes
