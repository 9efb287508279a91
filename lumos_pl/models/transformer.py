"""The decoder of Lumos-1: a plain Llama over one sequence of text and video tokens.

    tokens [S] -> embed_tokens -> n_layers x { x + attention(norm(x)); x + mlp(norm(x)) } -> norm -> states [S, D]
   states [M, D] -> lm_head -> logits over the visual codes [M, K], only where they are needed

Parameters carry the names of the released checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.machinery.devices import to_device
from lumos_pl.models.attention import Attention
from lumos_pl.models.attention_backend import block_causal_attention
from lumos_pl.models.config import PLAIN, AttentionBackend, ComputeConfig, TransformerConfig
from lumos_pl.models.mm_rope import position_scale, rope_cos_sin, rotate
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans

WIDE = 16  # a product this many times wider than its factors is recomputed, not stored
INIT_STD = 0.02  # of Llama, for matrices and embeddings

Result = TypeVar("Result")


class RMSNorm(nn.RMSNorm):
    """torch's, in the input's precision: gathered weights of a sharded model may have less."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


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
            return F.layer_norm(x, (head_dim,), self.weight.squeeze(0), self.bias.squeeze(0), self.eps)
        grouped: Tensor = F.layer_norm(x, (head_dim,), eps=self.eps).unflatten(1, (rows, -1))
        return (grouped * self.weight[:, None] + self.bias[:, None]).flatten(1, 2)


class SelfAttention(nn.Module):
    """The matrices and norms around attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)
        self.q_norm = HeadNorm(config.qk_norm_rows, config.head_dim, config.norm_eps)
        self.k_norm = HeadNorm(config.qk_norm_rows, config.head_dim, config.norm_eps)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[S, D] -> query [S, n_heads, head_dim], key and value [S, n_kv_heads, head_dim], all of one dtype."""
        heads = (-1, self.head_dim)
        value = self.v_proj(x).unflatten(1, heads)
        query = rotate(self.q_norm(self.q_proj(x).unflatten(1, heads)), cos, sin)
        key = rotate(self.k_norm(self.k_proj(x).unflatten(1, heads)), cos, sin)
        return query.to(value.dtype), key.to(value.dtype), value


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
    """Attention, where alone tokens see each other, between two halves that treat each token by itself."""

    def __init__(self, config: TransformerConfig, index: int, compute: ComputeConfig = PLAIN) -> None:
        super().__init__()
        self.index, self.compute = index, compute
        self.draws = False  # whether an adapter's dropout draws, which recomputation has to repeat
        self.input_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        if self.compute.activation_checkpointing == "full" and torch.is_grad_enabled():
            draws = self.draws
            return checkpoint(self._forward, x, cos, sin, attention, use_reentrant=False, preserve_rng_state=draws)
        return self._forward(x, cos, sin, attention)

    def _forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        before, after = _halves(self.compute, training=torch.is_grad_enabled(), draws=self.draws)
        query, key, value = before(self, x, cos, sin)
        return after(self, x, attention(self.index, query, key, value))


def _before_attention(layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return layer.self_attn.project(_for_products(layer.input_layernorm(x)), cos, sin)


def _after_attention(layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
    x = x + layer.self_attn.o_proj(mixed.flatten(1))
    return x + layer.mlp(_for_products(layer.post_attention_layernorm(x)))


def _for_products(x: Tensor) -> Tensor:
    """Cast to autocast's precision once, instead of anew for every matrix that reads x."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _halves(compute: ComputeConfig, *, training: bool, draws: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two halves of a layer, with recomputation in the backward pass and compilation as configured."""
    halves = _before_attention, _after_attention
    if training and compute.activation_checkpointing == "selective":
        halves = _keep_products(_before_attention, draws), _keep_products(_after_attention, draws)
    return (compiled(halves[0]), compiled(halves[1])) if compute.compile else halves


@cache
def _keep_products(function: Callable[..., Any], draws: bool) -> Callable[..., Any]:
    """The same function, storing only matrix products for the backward pass and recomputing the rest."""
    kept = partial(create_selective_checkpoint_contexts, _what_is_kept)
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=draws, context_fn=kept)


def _what_is_kept(_: object, operation: object, *operands: Any, **__: object) -> CheckpointPolicy:
    """Store products, except large ones of small matrices such as an adapter's: recomputing them is cheaper."""
    if operation is torch.ops.aten.mm.default:
        inner, outer = operands[1].shape
        if outer < WIDE * inner:
            return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """One graph for all layers and any number of tokens; cached, so that all models share it."""
    return torch.compile(function, dynamic=True)


class Decoder(nn.Module):
    def __init__(self, config: TransformerConfig, compute: ComputeConfig = PLAIN) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config, i, compute) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """
        Args:
            tokens: [S] ids.
            positions: (t, h, w) of each, [S, 3].
            attention: how the tokens see each other and what came before.
        Returns:
            states: one per token, [S, D].
        """
        config = self.config
        cos, sin = rope_cos_sin(positions, kind=config.rope, head_dim=config.head_dim, theta=config.rope_theta)
        x = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stream is fp32, even if the weights are in bf16
        for layer in self.layers:
            x = layer(x, cos, sin, attention)
        states: Tensor = self.norm(x)
        return states


class VisualHead(nn.Linear):
    """The output matrix, [V, D]. Lumos-1 only ever predicts visual codes: the rows from `visual_offset` on."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.dim, config.vocab_size, bias=False)
        self.visual_offset = config.visual_offset

    def forward(  # type: ignore[override]  # a plain nn.Linear to others, such as PEFT
        self, states: Tensor, objective: Callable[[Tensor, Tensor, int], Result]
    ) -> Result:
        """Whatever `objective(states, weight, visual_offset)` returns, e.g. `visual_logits`.

        A loss that never holds all logits needs the matrix itself, and a sharded matrix is whole only during this
        module's forward pass: so the objective is passed in to the matrix.
        """
        return objective(states, self.weight, self.visual_offset)


def visual_logits(states: Tensor, weight: Tensor, offset: int) -> Tensor:
    """Logits over the visual codes: states [M, D] -> [M, K]."""
    return F.linear(states, weight[offset:])


def likeliest_codes(states: Tensor, weight: Tensor, offset: int, *, chunk_size: int) -> Tensor:
    """The code with the highest logit: [M, D] -> [M]; `chunk_size` rows of logits are held at a time."""
    return torch.cat([visual_logits(chunk, weight, offset).argmax(1) for chunk in states.split(chunk_size)])


class LumosTransformer(nn.Module):
    """Decoder and head of Lumos-1; weights are uninitialized until `init_weights` or a load.

    Attributes:
        adapter: settings of the adapter that is trained in it, see `lumos_pl.adapters.training.adapt`; None if there
            is none.
    """

    def __init__(self, config: TransformerConfig, compute: ComputeConfig = PLAIN) -> None:
        super().__init__()
        self.config, self.compute = config, compute
        self.adapter: AdapterConfig | None = None
        self.model = Decoder(config, compute)
        self.lm_head = VisualHead(config)

    def forward(
        self, tokens: Tensor, spans: Sequence[SequenceSpans], *, attention: AttentionBackend | None = None
    ) -> Tensor:
        """The states of packed samples; each sees only itself, block-causally.

        Args:
            tokens: [S] ids.
            spans: one per sample, in the order of the samples, their lengths adding up to S.
            attention: the backend; by default the model's own.
        Returns:
            [S, D].
        """
        device = tokens.device
        positions = to_device(torch.cat([self.positions(s) for s in spans]), device)
        backend = attention or self.compute.attention
        see_each_other = block_causal_attention(spans, device, self.compute_dtype(device), backend)
        states: Tensor = self.model(tokens, positions, see_each_other)
        return states

    def compute_dtype(self, device: torch.device) -> torch.dtype:
        """Dtype of the matrix products on this device; the weights may be stored on another."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.lm_head.weight.dtype

    def compute_as(self, compute: ComputeConfig) -> None:
        """Compute the same function in another way from now on."""
        self.compute = compute
        for module in self.modules():
            if isinstance(module, Layer):
                module.compute = compute

    def rotate_as(self, rope: str, theta: float) -> None:
        """Use the same weights with other positions than they were trained with, see `ModelConfig`."""
        self.config = self.model.config = replace(self.config, rope=rope, rope_theta=theta)

    def positions(self, spans: SequenceSpans) -> Tensor:
        """(t, h, w) of every token of one sample, [S, 3], as this model's RoPE counts them."""
        return spans.positions(position_scale(self.config.rope, self.config.strides))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every weight from (seed, its name), so that device, order and sharding do not matter."""
        for name, parameter in self.named_parameters():
            copy_weight(parameter, initial_weight(name, parameter, seed))


def initial_weight(name: str, parameter: Tensor, seed: int) -> Tensor:
    """A fresh weight, fp32 on the CPU: norms start as the identity, all else is normal with `INIT_STD`."""
    if "norm" in name:
        return torch.ones(parameter.shape) if name.endswith("weight") else torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=generator(seed, "init", name)) * INIT_STD


def copy_weight(parameter: Tensor, value: Tensor) -> None:
    """Write a full weight into a parameter; if it is sharded, into this rank's part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        # every rank has the full value already: slice it, send nothing
        value = distribute_tensor(value.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)
