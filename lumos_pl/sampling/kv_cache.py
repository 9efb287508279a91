"""Keys and values of the tokens that have been processed already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lumos_pl.models.attention import AttentionCall, attend
from lumos_pl.models.config import TransformerConfig


class KVCache:
    """Memory for one sample's keys and values, allocated once: [n_layers, S, n_kv_heads, head_dim] each."""

    def __init__(
        self, config: TransformerConfig, max_length: int, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.n_layers, max_length, config.n_kv_heads, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store tokens from index `start` on, overwriting what was there.

        Returns:
            the layer's keys and values, [S, n_kv_heads, head_dim] each.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[start : start + len(key)] = key
        values[start : start + len(value)] = value
        return keys, values


class CachedAttention:
    """A part of each sample's staircase, over a packed batch; earlier tokens come from the caches.

    One call per sample rather than one padded call for all: it is as fast on a CPU, needs no key mask,
    and sums each sample in the same order whatever else is in the batch.

    Args:
        caches: one per sample; the tokens of the calls are written to it.
        calls: per sample, consecutive steps of `block_causal_calls`; the batch holds only their queries.
    """

    def __init__(self, caches: Sequence[KVCache], calls: Sequence[Sequence[AttentionCall]]) -> None:
        self.caches, self.calls = caches, calls
        self.lengths = [c[-1].end - c[0].start for c in calls]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        samples = zip(self.caches, self.calls, *(x.split(self.lengths) for x in (query, key, value)), strict=True)
        for cache, calls, q, k, v in samples:
            first = calls[0].start
            keys, values = cache.write(layer, first, k, v)
            for call in calls:
                queries = q[call.start - first : call.end - first].to(keys.dtype)
                outputs.append(attend(queries, keys[: call.end], values[: call.end], causal=call.causal))
        return torch.cat(outputs)
