"""Lumos-1 computed as the release computes it: the baseline of the benchmarks, and an oracle at real sizes.

Dense masks; logits over the whole vocabulary in fp32 at every token, of which the rows that count are
copied, guided and made probabilities at full width; two passes for guidance one after the other; a cache
that is copied to grow. Left out of what the release does: int64 masks, rotations computed anew in
every layer, the random draw. The weights, and so the results, are ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.layout import TokenLayout
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest
from lumos_pl.sampling.unfinished_clip import UnfinishedClip
from lumos_pl.spans import SequenceSpans

LOSS_CHUNK = 200  # rows of logits that the release gives to one call of the cross-entropy


def dense_bias(allowed: Tensor) -> Tensor:
    """What is added to the scores, [S, L]: 0 where attention is allowed, else a number that leaves nothing."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.bfloat16).min)


def dense_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """One call under an explicit mask; [S, n_heads, head_dim] to the same."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None, None])[0].transpose(0, 1)


class DenseAttention:
    """`Attention` of one sample with its S x S mask."""

    def __init__(self, spans: SequenceSpans, device: torch.device) -> None:
        with device:
            self.bias = dense_bias(attn_mask(spans))

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dense_attention(query, key, value, self.bias)


class GrowingCache:
    """`Attention` after what was kept, which is joined with the new keys and values in every pass."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in self.kept:
            key, value = (torch.cat(pair) for pair in zip(self.kept[layer], (key, value), strict=True))
        self.seen[layer] = key, value
        return dense_attention(query, key, value, self.bias)

    def allow(self, allowed: Tensor) -> None:
        """Which keys, kept and new, the queries of the passes that follow see: [S, L]."""
        self.bias = dense_bias(allowed)

    def keep(self) -> None:
        """Let the latest pass stand."""
        self.kept = dict(self.seen)


def full_logits(net: LumosTransformer, states: Tensor) -> Tensor:
    """[S, D] to [S, V] in fp32, or in fp64 if the model is."""
    logits = F.linear(states, net.lm_head.weight)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def release_loss(
    net: LumosTransformer, inputs: Tensor, spans: SequenceSpans, target_index: Tensor, target_codes: Tensor
) -> Tensor:
    """Mean cross-entropy of one sample's targets, out of fp32 logits over all ids at all tokens."""
    device = inputs.device
    states = net.model(inputs, net.positions(spans).to(device), DenseAttention(spans, device))
    logits = full_logits(net, states)
    labels = torch.full((len(inputs),), -100, device=device)
    labels[target_index] = target_codes
    is_target = labels != -100
    visual = logits[is_target][:, net.lm_head.visual_offset :]
    chunks = zip(visual.split(LOSS_CHUNK), labels[is_target].split(LOSS_CHUNK), strict=True)
    return torch.cat([F.cross_entropy(*chunk, reduction="none") for chunk in chunks]).mean()


@torch.no_grad()
def release_generate(
    net: LumosTransformer, layout: TokenLayout, request: GenerationRequest, config: SamplingConfig
) -> Tensor:
    """Greedy codes [T, H, W] of one request without given frames, by the cosine schedule."""
    clip = UnfinishedClip(net, layout, request.sequence, n_given=0, seed=request.seed, config=config)
    device = clip.blocks.device
    caches = [GrowingCache() for _ in clip.branches]
    for branch, cache in zip(clip.branches, caches, strict=True):
        n_prefix = len(branch.prefix)
        cache.allow(torch.ones(n_prefix, n_prefix, dtype=torch.bool, device=device).tril())
        net.model(branch.prefix, branch.positions[:n_prefix], cache)
        cache.keep()

    def logits(tokens: Tensor, frame: int) -> list[Tensor]:
        each = []
        for branch, cache in zip(clip.branches, caches, strict=True):
            call = branch.calls[1 + frame]
            states = net.model(tokens, branch.positions[call.start : call.end], cache)
            each.append(full_logits(net, states))
        return each

    index, n_codes = clip.visual_index, request.rows * request.cols
    is_text = torch.arange(len(net.lm_head.weight), device=device) < layout.visual_offset
    for frame in range(request.latent_frames):
        clip.begin(frame)
        for branch, cache in zip(clip.branches, caches, strict=True):
            call = branch.calls[1 + frame]
            cache.allow(torch.ones(call.end - call.start, call.end, dtype=torch.bool, device=device))
        unknown = torch.ones(n_codes, dtype=torch.bool, device=device)
        for step in range(config.steps):
            with_text, without = logits(clip.block, frame)
            guided = config.guidance * (with_text[index] - without[index]) + without[index]
            share, ids = torch.where(is_text, -math.inf, guided).softmax(-1).max(-1)
            block = clip.block[index]
            block[unknown] = ids[unknown]
            if step < config.steps - 1:
                wanted = math.floor(n_codes * math.cos(math.pi / 2 * (step + 1) / config.steps))
                n_left = min(max(wanted, 1), int(unknown.sum()) - 1)
                doubtful = share.log().masked_fill(~unknown, math.inf).topk(n_left, largest=False).indices
                unknown = torch.zeros_like(unknown).index_fill(0, doubtful, True)
                block[unknown] = layout.mask
            clip.block[index] = block
            if not unknown.any():
                break
        logits(clip.frame_context(), frame)
        for cache in caches:
            cache.keep()
    return clip.codes
