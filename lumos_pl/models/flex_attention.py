"""Block-causal attention as one FlexAttention kernel over the whole packed batch; trains on CUDA only.

Every query sees one interval of keys, and along the batch neither end of it ever moves back:

    keys      text  | frame 0 | frame 1 | next sample
    text      \\
    frame 0   ###### #########
    frame 1   ###### ######### #########
    next                                 \\

So the first and the last query of a block of queries tell which blocks of keys it sees wholly, in
part or not at all: two [S] vectors and a table of blocks replace the S x S mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lumos_pl.machinery.devices import to_device
from lumos_pl.models.attention import block_causal_calls
from lumos_pl.spans import SequenceSpans

BLOCK = 128  # queries and keys of a block: the size that the kernels are made for
# What a `BlockMask` holds: for each block of queries the key blocks seen in part and wholly; then for each key block.
TABLES = [
    f"{full}{side}_{table}" for side in ("kv", "q") for full in ("", "full_") for table in ("num_blocks", "indices")
]
# With head_dim 64 the forward kernel for an H100 does not fit the registers of 4 warps, torch's default, and spills 482
# of them to memory. 8 warps do not. (torch 2.11, triton 3.6; compiled for sm_90, not timed.)
WARPS_AT_64 = {"fwd_num_warps": 8}


def visible_keys(spans: Sequence[SequenceSpans]) -> tuple[Tensor, Tensor]:
    """The keys [first, end) that each query of a packed batch sees: two rising [S] vectors."""
    firsts, ends = [], []
    start = 0
    for sample in spans:
        firsts.append(torch.full((sample.length,), start))
        for call in block_causal_calls(sample):
            end = torch.arange(call.start + 1, call.end + 1) if call.causal else torch.tensor(call.end)
            ends.append((start + end).expand(call.end - call.start))
        start += sample.length
    return torch.cat(firsts), torch.cat(ends)


def block_mask(spans: Sequence[SequenceSpans], device: torch.device) -> BlockMask:
    """The staircases of a packed batch for `flex_attention`, in S + (S / BLOCK)^2 numbers."""
    first, end = visible_keys(spans)
    length = len(first)
    blocks = torch.arange(0, length, BLOCK)
    top, bottom = blocks[:, None], (blocks[:, None] + BLOCK).clamp(max=length) - 1  # the first and last query
    left, right = blocks, blocks + BLOCK  # the first key, and the one after the last
    seen = (left < end[bottom]) & (right > first[top])
    # For torch a block that extends beyond the end of the batch is never full.
    full = (left >= first[bottom]) & (right <= end[top]) & (top + BLOCK <= length)
    part = seen & ~full
    tables = [listed for table in (part, full, part.T, full.T) for listed in _listed(table)]
    first, end, *sent = _sent([first, end, *tables], device)

    def may_attend(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first[query] <= key) & (key < end[query])

    # Not `from_kv_blocks`, which computes the queries of each block of keys on the device, in dozens of small kernels.
    listed: dict[str, Any] = {name: table[None, None] for name, table in zip(TABLES, sent, strict=True)}
    return BlockMask(seq_lengths=(length, length), BLOCK_SIZE=(BLOCK, BLOCK), mask_mod=may_attend, **listed)


def _listed(table: Tensor) -> tuple[Tensor, Tensor]:
    """Per row, how many entries are True, and all columns with those of the True entries first."""
    return table.sum(1), table.int().argsort(dim=1, descending=True, stable=True)


def _sent(tables: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy integers to a device as int32, all at once; each then gets memory of its own, as the kernel expects."""
    flat = to_device(torch.cat([table.flatten() for table in tables]).to(torch.int32), device)
    parts = flat.split([table.numel() for table in tables])
    return [part.clone().view_as(table) for part, table in zip(parts, tables, strict=True)]


class FlexAttention:
    """`BlockCausalAttention` as one kernel: the same function of a packed batch, up to rounding.

    On a CPU it has no backward pass and writes out all scores, which is enough to test it.
    """

    def __init__(self, spans: Sequence[SequenceSpans], device: torch.device) -> None:
        self.block_mask = block_mask(spans, device)
        self.attend = kernel(device.type)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Indexing by [None] and [0] would write out their gradients at full size.
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
        options = WARPS_AT_64 if q.is_cuda and q.shape[-1] == 64 else None
        out: Tensor = self.attend(q, k, v, block_mask=self.block_mask, enable_gqa=True, kernel_options=options)
        return out.squeeze(0).transpose(0, 1)


@cache
def kernel(device_type: str) -> Callable[..., Any]:
    """Compiled where it trains; uncompiled, flex_attention writes out S x S scores."""
    if device_type == "cuda":
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention
