from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.models.attention import block_causal_calls
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.kv_cache import CachedAttention, KVCache

SHAPES = [(3, 2, 3, 5), (3, 4, 2, None), (3, 1, 1, 12)]  # latent frames, rows, cols, text


@torch.no_grad()
@pytest.mark.parametrize("n_prefilled", [0, 2])
def test_cached_passes_equal_full_recomputation(
    n_prefilled: int,
    make_decoder: Callable[..., LumosTransformer],
    make_sequence: Callable[..., TokenSequence],
    layout: TokenLayout,
) -> None:
    """Prefixes in one pass, then frame by frame, each written several times: the logits of one pass over all."""
    net = make_decoder()
    sequences = [make_sequence(*shape, seed=i) for i, shape in enumerate(SHAPES)]
    spans = [layout.spans(sequence, closed=False) for sequence in sequences]
    tokens = [layout.build(sequence, closed=False) for sequence in sequences]
    full = net(torch.cat(tokens), spans).split([s.length for s in spans])

    caches = [KVCache(net.config, s.length, dtype=torch.float32) for s in spans]
    for cache in caches:  # whatever lies in the memory must not matter
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    calls = [block_causal_calls(s) for s in spans]
    parts = [slice(0, 1 + n_prefilled), *(slice(1 + f, 2 + f) for f in range(n_prefilled, 3))]
    states: list[list[torch.Tensor]] = [[] for _ in spans]
    for part in parts:
        attention = CachedAttention(caches, [c[part] for c in calls])
        cuts = [slice(c[part][0].start, c[part][-1].end) for c in calls]
        positions = torch.cat([net.positions(s)[cut] for s, cut in zip(spans, cuts, strict=True)])
        right = torch.cat([t[cut] for t, cut in zip(tokens, cuts, strict=True)])
        for inputs in right.flip(0), right:  # a frame's last pass is what counts
            made = net.model(inputs, positions, attention)
        for own, new in zip(states, made.split(attention.lengths), strict=True):
            own.append(new)
    for own, expected in zip(states, full, strict=True):
        logits = torch.cat(own) @ net.lm_head.weight.T
        torch.testing.assert_close(logits, expected @ net.lm_head.weight.T, atol=1e-5, rtol=1e-5)
