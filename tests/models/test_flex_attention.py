"""What the flex kernel is told; what it computes is in test_attention.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lumos_pl.models.flex_attention import BLOCK, TABLES, block_mask
from lumos_pl.spans import SequenceSpans

RAGGED = [SequenceSpans(150, 3, 9, 9), SequenceSpans(20, 2, 15, 30), SequenceSpans(5, 1, 4, 4)]


@pytest.mark.parametrize("spans", [RAGGED, RAGGED[2:], [SequenceSpans(3, 2, 7, 17)] * 2])
def test_the_queries_of_each_block_of_keys_are_those_that_torch_finds(spans: list[SequenceSpans]) -> None:
    ours = block_mask(spans, torch.device("cpu"))
    given = [getattr(ours, name) for name in TABLES[:4]]
    torchs = BlockMask.from_kv_blocks(*given, BLOCK_SIZE=BLOCK, mask_mod=ours.mask_mod, seq_lengths=ours.seq_lengths)
    for name in TABLES:
        table: Tensor = getattr(ours, name)
        assert table.dtype == torch.int32 and table.is_contiguous() and table.storage_offset() == 0
        assert torch.equal(table, getattr(torchs, name)), name
    assert ours.shape == torchs.shape and ours.BLOCK_SIZE == torchs.BLOCK_SIZE
