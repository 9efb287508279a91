"""Block-causal attention through a kernel for ragged batches, on CUDA in bf16 or fp16.

One call computes one step of the staircase for all samples together, however ragged: first every
text, then every first frame, and so on. The kernel wants the keys of its segments one after another,
but a sample's later keys lie between the segments. They become segments without queries, which cost
nothing, so that no key is copied:

    keys        sample 0: text frame 0 | frame 1   sample 1: text frame 0 | frame 1
    frame 0     ######################   (no q)    ######################   (not given)
    frame 1     ###############################    ###############################

The kernel is torch's own (`varlen`) or that of the flash-attn package (`flash`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, zip_longest

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.devices import to_device
from lumos_pl.machinery.torch_versions import varlen_attention
from lumos_pl.models.attention import AttentionCall, block_causal_calls, token_ranges
from lumos_pl.spans import SequenceSpans

# Called with (query, key, value, query_ends, key_ends, most_queries, most_keys, causal), the first three
# [tokens, heads, head_dim]; returns the query's shape, like flash-attn's `flash_attn_varlen_func`.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool], Tensor]


@dataclass(frozen=True)
class VarlenCall:
    """Segment i's queries see its keys and no others.

    Args:
        blocks: indices of the blocks (texts and frames, in the batch's order) that hold its queries.
        keys: the tokens [start, end) of the batch that its segments cover.
        query_ends, key_ends: a leading 0, then where each segment ends among the call's queries, and among its keys.
        causal: within each segment, which then has as many queries as keys.
    """

    blocks: list[int]
    keys: tuple[int, int]
    query_ends: list[int]
    key_ends: list[int]
    causal: bool


def varlen_calls(spans: Sequence[SequenceSpans]) -> list[VarlenCall]:
    """One call per step of the longest staircase."""
    staircases = [block_causal_calls(s) for s in spans]
    starts = accumulate((s.length for s in spans), initial=0)
    first_blocks = accumulate(map(len, staircases), initial=0)
    samples = list(zip(starts, first_blocks, strict=True))[:-1]
    calls = []
    for number, step in enumerate(zip_longest(*staircases)):
        there = [
            (start, block + number, call)
            for (start, block), call in zip(samples, step, strict=True)
            if call is not None
        ]
        calls.append(_one_call(there))
    return calls


def _one_call(step: Sequence[tuple[int, int, AttentionCall]]) -> VarlenCall:
    """The call for one step of some samples, given as (start in the batch, index of the block, its call)."""
    query_ends, key_ends, first = [0], [0], step[0][0]
    for start, _, call in step:
        if start - first > key_ends[-1]:  # the keys in between become a segment without queries
            query_ends.append(query_ends[-1])
            key_ends.append(start - first)
        query_ends.append(query_ends[-1] + call.end - call.start)
        key_ends.append(start - first + call.end)
    return VarlenCall(
        blocks=[block for _, block, _ in step],
        keys=(first, first + key_ends[-1]),
        query_ends=query_ends,
        key_ends=key_ends,
        causal=step[0][2].causal,
    )


class VarlenAttention:
    """`BlockCausalAttention` with other calls: the same function of a packed batch, up to rounding."""

    def __init__(self, spans: Sequence[SequenceSpans], device: torch.device, kernel: Kernel) -> None:
        self.kernel, self.calls = kernel, varlen_calls(spans)
        self.block_lengths = [call.end - call.start for s in spans for call in block_causal_calls(s)]
        ends = [ends for call in self.calls for ends in (call.query_ends, call.key_ends)]
        sent = to_device(torch.tensor([end for each in ends for end in each], dtype=torch.int32), device)
        self.ends = sent.split([len(each) for each in ends])  # two per call, sent in one copy

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        blocks = query.split(self.block_lengths)
        keys, values = (token_ranges(x, [call.keys for call in self.calls]) for x in (key, value))
        outputs: dict[int, Tensor] = {}
        for number, (call, k, v) in enumerate(zip(self.calls, keys, values, strict=True)):
            q = torch.cat([blocks[block] for block in call.blocks])
            most_queries, most_keys = (max(b - a for a, b in pairwise(e)) for e in (call.query_ends, call.key_ends))
            most_queries = max(2, most_queries)  # given 1, kernels assume one query in every segment
            query_ends, key_ends = self.ends[2 * number : 2 * number + 2]
            out = self.kernel(q, k, v, query_ends, key_ends, most_queries, most_keys, call.causal)
            outputs |= zip(call.blocks, out.split([self.block_lengths[block] for block in call.blocks]), strict=True)
        return torch.cat([outputs[block] for block in range(len(blocks))])


def torch_kernel() -> Kernel:
    """torch's own kernel.

    Raises:
        ConfigError: this torch has no such kernel.
    """
    kernel = varlen_attention()
    if kernel is None:
        raise ConfigError(
            "this torch has no attention for ragged batches",
            where="model.attention",
            got=f"varlen, torch {torch.__version__}",
            fix="torch>=2.10, or model.attention=auto",
        )
    return kernel


def flash_attn_kernel() -> Kernel:
    """The flash-attn package's kernel.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ConfigError(
            "flash-attn cannot be imported",
            where="model.attention",
            got=f"flash, {error}",
            fix="where CUDA's compiler is: pip install --no-build-isolation 'lumos_pl[flash]'; or model.attention=auto",
        ) from None

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor, most_q: int, most_k: int, causal: bool
    ) -> Tensor:
        out: Tensor = flash_attn_varlen_func(q, k, v, query_ends, key_ends, most_q, most_k, causal=causal)
        return out

    return kernel
