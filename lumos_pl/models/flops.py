"""Floating-point operations of one forward pass, and of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lumos_pl.models.attention import block_causal_calls
from lumos_pl.models.config import TransformerConfig
from lumos_pl.spans import SequenceSpans


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by part; a multiply-add counts as two."""

    body: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.body + self.attention + self.head


def forward_flops(config: TransformerConfig, spans: Sequence[SequenceSpans], n_targets: int) -> Flops:
    """Operations of the matrices, of attention over the staircase alone, and of the head at `n_targets` tokens."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    per_token = config.dim * (2 * queries + 2 * keys) + 3 * config.dim * config.ffn_dim
    pairs = 0
    for sample in spans:
        for call in block_causal_calls(sample):
            length = call.end - call.start
            pairs += length * (length + 1) // 2 if call.causal else length * call.end
    n_tokens = sum(sample.length for sample in spans)
    return Flops(
        body=2 * config.n_layers * per_token * n_tokens,
        attention=4 * config.n_layers * queries * pairs,
        head=2 * config.dim * (config.vocab_size - config.visual_offset) * n_targets,
    )


def training_flops(
    forward: Flops, *, n_tokens: int, n_adapter: int | None = None, head_gradient: bool = False
) -> Flops:
    """Operations of the forward and backward pass, without recomputation: three times those of the forward pass.

    Args:
        n_adapter: parameters of an adapter whose decoder is frozen: for the decoder's matrices the backward pass then
            computes only the gradient of their inputs. None: everything is trained.
        head_gradient: whether the adapter trains rows of codes, so that the head's gradient is computed all the same.
    """
    if n_adapter is None:
        return Flops(3 * forward.body, 3 * forward.attention, 3 * forward.head)
    of_head = (3 if head_gradient else 2) * forward.head
    return Flops(2 * forward.body + 6 * n_adapter * n_tokens, 3 * forward.attention, of_head)
