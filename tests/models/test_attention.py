from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.models.attention import BlockCausalAttention, attn_mask
from lumos_pl.models.padded_attention import PaddedAttention, is_small
from lumos_pl.models.transformer import block_causal_attention
from lumos_pl.spans import SequenceSpans
from tests.reference.plain import may_attend, plain_attention

SHAPES = [(3, 2, 3, 5), (1, 4, 2, 0), (2, 1, 1, None), (4, 2, 2, 12)]  # frames, rows, cols, text


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_staircase_is_what_the_rules_allow(
    shape: tuple[int, int, int, int | None],
    closed: bool,
    make_sequence: Callable[..., TokenSequence],
    layout: TokenLayout,
) -> None:
    sequence = make_sequence(*shape)
    tokens = layout.build(sequence, closed=closed)
    assert torch.equal(attn_mask(layout.spans(sequence, closed=closed)), may_attend(tokens.tolist(), layout))


@pytest.mark.parametrize(
    ("attention", "closed"), [(BlockCausalAttention, True), (BlockCausalAttention, False), (PaddedAttention, False)]
)
def test_ragged_batch_equals_plain_loops_in_values_and_gradients(
    attention: type[BlockCausalAttention] | type[PaddedAttention],
    closed: bool,
    make_sequence: Callable[..., TokenSequence],
    layout: TokenLayout,
) -> None:
    sequences = [
        make_sequence(*shape) for shape in [*SHAPES, (3, 2, 3, 9), (3, 2, 3, None)]
    ]  # three of one latent shape
    spans = [layout.spans(sequence, closed=closed) for sequence in sequences]
    length = sum(s.length for s in spans)
    generator = torch.Generator().manual_seed(0)
    shapes = [(length, 4, 8), (length, 2, 8), (length, 2, 8)]
    q, k, v = (torch.randn(*s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes)
    weight = torch.randn(length, 4, 8, generator=generator, dtype=torch.float64)

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((out * weight).sum(), (q, k, v))

    fast = attention(spans)(0, q, k, v)
    slow = torch.cat([
        plain_attention(*sample, may_attend(layout.build(sequence, closed=closed).tolist(), layout))
        for sequence, *sample in zip(sequences, *(x.split([s.length for s in spans]) for x in (q, k, v)), strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(fast, slow, atol=1e-10, rtol=0)
    for ours, theirs in zip(gradients(fast), gradients(slow), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_only_small_open_samples_are_padded() -> None:
    small = SequenceSpans(prefix=20, frames=5, rows=8, cols=8)
    assert is_small(small) and not is_small(replace(small, closing=2)) and not is_small(replace(small, rows=80))
    assert not is_small(replace(small, prefix=2000))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert isinstance(block_causal_attention([small], cpu), PaddedAttention)
    assert isinstance(block_causal_attention([small], gpu), BlockCausalAttention)
    assert isinstance(block_causal_attention([small, replace(small, rows=80)], cpu), BlockCausalAttention)
