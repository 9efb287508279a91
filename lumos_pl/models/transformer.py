"""The decoder of Lumos-1: a plain Llama over one sequence of text and video tokens.

    tokens [S] -> embed_tokens -> n_layers x { x + attention(norm(x)); x + mlp(norm(x)) } -> norm -> hidden [S, D]
    hidden [M, D] -> lm_head -> logits over the visual codes [M, K], only where they are asked for

Parameters carry the names of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lumos_pl.models.attention import Attention, BlockCausalAttention
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.mm_rope import position_scale, rope_cos_sin, rotate
from lumos_pl.models.padded_attention import PaddedAttention, is_small
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans

INIT_STD = 0.02  # of Llama, for matrices and embeddings

Result = TypeVar("Result")


class HeadNorm(nn.Module):
    """QK-norm: LayerNorm over head_dim; each row of weight and bias serves its part of the heads."""

    def __init__(self, rows: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[S, n_heads, head_dim] -> the same."""
        rows, head_dim = self.weight.shape
        if rows == 1:  # one fused call; the released sizes are all of this kind
            return F.layer_norm(x, (head_dim,), self.weight[0], self.bias[0], self.eps)
        grouped: Tensor = F.layer_norm(x, (head_dim,), eps=self.eps).unflatten(1, (rows, -1))
        return (grouped * self.weight[:, None] + self.bias[:, None]).flatten(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = HeadNorm(config.qk_norm_rows, config.head_dim, config.norm_eps)
        self.k_norm = HeadNorm(config.qk_norm_rows, config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        """[S, D] -> [S, D]."""
        heads = (-1, self.head_dim)
        query = rotate(self.q_norm(self.q_proj(x).unflatten(1, heads)), cos, sin)  # [S, n_heads, head_dim]
        key = rotate(self.k_norm(self.k_proj(x).unflatten(1, heads)), cos, sin)  # [S, n_kv_heads, head_dim]
        value = self.v_proj(x).unflatten(1, heads)
        mixed: Tensor = self.o_proj(attention(self.layer, query, key, value).flatten(1))
        return mixed


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.up_proj = nn.Linear(config.dim, config.ffn_dim, bias=False)
        self.down_proj = nn.Linear(config.ffn_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attention)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class Decoder(nn.Module):
    def __init__(self, config: TransformerConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = activation_checkpointing
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.n_layers))
        self.norm = nn.RMSNorm(config.dim, config.norm_eps)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """
        Args:
            tokens: [S] ids.
            positions: (t, h, w) of each, [S, 3].
            attention: how they see each other, and what came before.
        Returns:
            hidden states, [S, D].
        """
        config = self.config
        cos, sin = rope_cos_sin(positions, kind=config.rope, head_dim=config.head_dim, theta=config.rope_theta)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, attention, use_reentrant=False)
            else:
                x = layer(x, cos, sin, attention)
        hidden: Tensor = self.norm(x)
        return hidden


class VisualHead(nn.Module):
    """The output matrix, [V, D]. Lumos-1 only ever predicts visual codes: the rows from `visual_offset` on."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.visual_offset = config.visual_offset
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.dim))

    def forward(self, hidden: Tensor, objective: Callable[[Tensor, Tensor, int], Result]) -> Result:
        """Whatever `objective(hidden, weight, visual_offset)` makes of it, e.g. `visual_logits`.

        A loss that never holds all logits needs the matrix itself, and a sharded matrix is whole
        only during this module's forward pass: so the objective comes to the matrix.
        """
        return objective(hidden, self.weight, self.visual_offset)


def block_causal_attention(spans: Sequence[SequenceSpans], device: torch.device) -> Attention:
    """The faster of the two for a packed batch; they agree but for rounding."""
    if device.type == "cpu" and all(map(is_small, spans)):
        return PaddedAttention(spans)
    return BlockCausalAttention(spans)


def visual_logits(hidden: Tensor, weight: Tensor, offset: int) -> Tensor:
    """Logits over the visual codes: [M, D] -> [M, K]."""
    return F.linear(hidden, weight[offset:])


class LumosTransformer(nn.Module):
    """Decoder and head of Lumos-1; weights are uninitialized until `init_weights` or a load."""

    def __init__(self, config: TransformerConfig, *, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, activation_checkpointing=activation_checkpointing)
        self.lm_head = VisualHead(config)

    def forward(self, tokens: Tensor, spans: Sequence[SequenceSpans]) -> Tensor:
        """Hidden states of packed samples, each seeing only itself, block-causally.

        Args:
            tokens: [S] ids, the samples one after another.
            spans: one per sample, their lengths adding up to S.
        Returns:
            [S, D].
        """
        positions = torch.cat([self.positions(s) for s in spans]).to(tokens.device, non_blocking=True)
        hidden: Tensor = self.model(tokens, positions, block_causal_attention(spans, tokens.device))
        return hidden

    def positions(self, spans: SequenceSpans) -> Tensor:
        """(t, h, w) of every token of one sample, [S, 3], as this model's RoPE counts them."""
        return spans.positions(position_scale(self.config.rope, self.config.strides))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every weight from (seed, its name): the same for any device, order or sharding."""
        for name, parameter in self.named_parameters():
            copy_weight(parameter, initial_weight(name, parameter, seed))


def initial_weight(name: str, parameter: Tensor, seed: int) -> Tensor:
    """Norms start as the identity, everything else normal with `INIT_STD`; on the CPU, fp32."""
    if "norm" in name:
        return torch.ones(parameter.shape) if name.endswith("weight") else torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=generator(seed, "init", name)) * INIT_STD


def copy_weight(parameter: Tensor, value: Tensor) -> None:
    """Write a whole weight into a parameter, into this rank's part of it if it is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        # every rank has the whole value already: cut, do not send
        value = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)
