"""Block-causal attention through the flash-attn package, on CUDA in bf16 or fp16.

One call does one step of the staircase for all samples together, however ragged: first every text,
then every first frame, and so on. The kernel wants the keys of its segments one after another, but
a sample's later keys lie between the segments. They become segments without queries, which cost
nothing, so that no key is copied:

    keys        sample 0: text frame 0 | frame 1   sample 1: text frame 0 | frame 1
    frame 0     ######################   (no q)    ######################   (no q)
    frame 1     ###############################    ###############################
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.models.attention import AttentionCall, block_causal_calls
from lumos_pl.spans import SequenceSpans


@dataclass(frozen=True)
class VarlenCall:
    """Segment i's queries see its keys and no others.

    Args:
        query_ends: where its queries end among those of the call, after a leading 0, int32.
        key_ends: where its keys end in the batch, after a leading 0, int32.
        most_queries, most_keys: of any segment.
        causal: within each segment, which then has as many queries as keys.
    """

    query_ends: Tensor
    key_ends: Tensor
    most_queries: int
    most_keys: int
    causal: bool

    def to(self, device: torch.device) -> VarlenCall:
        return replace(self, query_ends=self.query_ends.to(device), key_ends=self.key_ends.to(device))


def varlen_calls(spans: Sequence[SequenceSpans]) -> tuple[list[VarlenCall], Tensor]:
    """As many calls as the longest staircase has steps.

    Returns:
        the calls, and the queries of all of them in their order, as indices in the batch, [S].
    """
    *starts, length = accumulate((s.length for s in spans), initial=0)
    calls, queries = [], []
    for step in zip_longest(*map(block_causal_calls, spans)):
        there = [(start, call) for start, call in zip(starts, step, strict=True) if call is not None]
        calls.append(_one_call(there, length))
        queries += [torch.arange(start + call.start, start + call.end) for start, call in there]
    return calls, torch.cat(queries)


def _one_call(step: Sequence[tuple[int, AttentionCall]], length: int) -> VarlenCall:
    """One step of the samples that begin at the given indices of a batch."""
    query_ends, key_ends = [0], [0]
    for start, call in step:
        query_ends += [query_ends[-1], query_ends[-1] + call.end - call.start]
        key_ends += [start, start + call.end]
    query_ends.append(query_ends[-1])
    key_ends.append(length)  # every key is in a segment: only those get a gradient, be it zero
    return VarlenCall(
        query_ends=torch.tensor(query_ends, dtype=torch.int32),
        key_ends=torch.tensor(key_ends, dtype=torch.int32),
        most_queries=max(b - a for a, b in pairwise(query_ends)),
        most_keys=max(b - a for a, b in pairwise(key_ends)),
        causal=step[0][1].causal,
    )


class FlashAttention:
    """`BlockCausalAttention` with other calls: the same function of a packed batch, but for rounding.

    Args:
        varlen: `flash_attn.flash_attn_varlen_func`, or what does the same.
    """

    def __init__(self, spans: Sequence[SequenceSpans], device: torch.device, varlen: Callable[..., Tensor]) -> None:
        calls, order = varlen_calls(spans)
        self.calls = [call.to(device) for call in calls]
        self.sizes = [int(call.query_ends[-1]) for call in calls]
        self.order, self.back = order.to(device), order.argsort().to(device)
        self.varlen = varlen

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = [
            self.varlen(
                q, key, value, call.query_ends, call.key_ends, call.most_queries, call.most_keys, causal=call.causal
            )
            for call, q in zip(self.calls, query[self.order].split(self.sizes), strict=True)
        ]
        return torch.cat(outputs)[self.back]


def flash_attn_varlen() -> Callable[..., Any]:
    """The package's kernel.

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
    return flash_attn_varlen_func
