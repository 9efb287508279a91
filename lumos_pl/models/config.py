"""Shapes of the decoder: the named sizes, and what can be changed about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout
from lumos_pl.models.mm_rope import ROPE_KINDS, check_rope
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import above, between, check_ranges, optional

Size = Literal["debug", "tiny", "small", "0.5b", "1b", "3b"]
AttentionBackend = Literal["auto", "sdpa", "varlen", "padded", "flex", "flash"]
Recomputed = Literal["none", "selective", "full"]
Recompute = Literal["auto", "none", "selective", "full", True, False]  # as written in a configuration


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Everything that determines the decoder's parameters and what they compute.

    Args:
        dim: width of the residual stream, D.
        ffn_dim: inner width of the SwiGLU.
        qk_norm_rows: rows of the QK-norm's weight and bias, each shared by n_heads / rows heads
            (`model_parallel_size` in a released config).
        visual_offset: first id of the codes; the head is only ever used for ids from there on.
        strides: how far one latent step in t, h, w moves the scaled positions.
    """

    vocab_size: int
    visual_offset: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    qk_norm_rows: int = 1
    norm_eps: float = 1e-5
    rope: str = kind_field("mm", ROPE_KINDS)
    rope_theta: float = 10_000.0
    strides: tuple[int, int, int] = (4, 8, 8)
    max_length: int = 16_384

    def __post_init__(self) -> None:
        sizes = self.dim, self.n_layers, self.n_heads, self.n_kv_heads, self.head_dim, self.ffn_dim, self.max_length
        if min(sizes) < 1:
            raise ConfigError(
                "model shape does not fit", where="model", got=f"a size of {min(sizes)}", expected="1 or more"
            )
        checks = [
            (self.n_heads % self.n_kv_heads == 0, "model.n_heads", self.n_heads, "a multiple of n_kv_heads"),
            (self.n_kv_heads % self.qk_norm_rows == 0, "model.qk_norm_rows", self.qk_norm_rows, "divides n_kv_heads"),
            (self.head_dim % 32 == 0, "model.head_dim", self.head_dim, "a multiple of 32"),
            (0 < self.rope_theta < math.inf, "model.rope_theta", self.rope_theta, "above 0"),
        ]
        for good, where, got, expected in checks:
            if not good:
                raise ConfigError("model shape does not fit", where=where, got=got, expected=expected)
        check_kind(self.rope, ROPE_KINDS, "model.rope")
        check_rope(self.rope, self.head_dim // 2, self.strides)


@dataclass(frozen=True, kw_only=True)
class _Shape:
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int


# 1b and 3b have the shapes of Llama 3.2, which with the released vocabulary give the paper's 1.5 B
# and 3.6 B parameters; 0.5b and the smaller sizes are ours.
SIZES: dict[Size, _Shape] = {
    "debug": _Shape(dim=64, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=128),
    "tiny": _Shape(dim=128, n_layers=4, n_heads=2, n_kv_heads=1, ffn_dim=512),
    "small": _Shape(dim=256, n_layers=4, n_heads=4, n_kv_heads=2, ffn_dim=1024),
    "0.5b": _Shape(dim=1024, n_layers=16, n_heads=16, n_kv_heads=8, ffn_dim=4096),
    "1b": _Shape(dim=2048, n_layers=16, n_heads=32, n_kv_heads=8, ffn_dim=8192),
    "3b": _Shape(dim=3072, n_layers=28, n_heads=24, n_kv_heads=8, ffn_dim=8192),
}


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a decoder is computed. Every choice gives the same function, up to rounding.

    Args:
        attention: `sdpa`, `padded`, `varlen`, `flash` or `flex`, see lumos_pl/models/attention_backend.py; `auto`
            uses what suits the device.
        compile: use torch.compile; the first step takes a minute longer, the others are faster.
        activation_checkpointing: what the backward pass recomputes instead of storing it: `none`,
            `selective` (all but attention and the matrix products), `full` (each layer, from its input);
            `auto`: the least with which a step fits into memory, which `lumos train` finds out. A decoder by itself
            knows no batch and treats `auto` as `none`. False and True, of earlier configurations, are `none` and
            `full`.
    """

    attention: AttentionBackend = "auto"
    compile: bool = False
    activation_checkpointing: Recompute = "none"

    def __post_init__(self) -> None:
        check_ranges("model", self)
        if isinstance(self.activation_checkpointing, bool):
            named = "full" if self.activation_checkpointing else "none"
            object.__setattr__(self, "activation_checkpointing", named)


PLAIN = ComputeConfig()  # nothing compiled, nothing computed twice


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Choices that fit a training to the GPUs at hand: they save memory or time and change nothing but rounding.

    Args:
        recompute: in the backward pass, see `ComputeConfig`.
        shard_size: of fsdp2: how many neighbouring processes share one copy of the weights.
        reshard_after_forward: of fsdp2: free a layer's gathered weights after its forward pass and gather them again
            for its backward pass; otherwise they are kept.
        reduce_once: of fsdp2, with several batches per step: sum gradients unsharded, in fp32, and exchange them
            after the last batch; otherwise after each.
    """

    recompute: Recomputed = "none"
    shard_size: int = 1
    reshard_after_forward: bool = True
    reduce_once: bool = False


UNPLACED = Placement()  # nothing recomputed, nothing shared


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ComputeConfig):
    """The decoder of a run: a named size, any of whose numbers may be changed, and how it is computed.

    Args:
        size: one of `SIZES`; fields left at null are taken from it.
        dim: width of the residual stream, D.
        n_layers: number of layers.
        n_heads, n_kv_heads, head_dim: number of attention heads, number of key and value heads, and width of a head.
        ffn_dim: inner width of the SwiGLU.
        rope: `mm` (MM-RoPE: distributed and scaled), or an ablation: `1d`, `3d_block`,
            `3d_block_scaled`, `3d_distributed` (MM-RoPE without scaled positions); see `ROPE_KINDS`.
        rope_theta: base of the rotary frequencies.
        max_length: the longest sequence, in tokens.
        qk_norm_rows, norm_eps: see `TransformerConfig`.
    """

    activation_checkpointing: Recompute = "auto"
    size: Size = "small"
    dim: int | None = None
    n_layers: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    ffn_dim: int | None = None
    rope: str = kind_field("mm", ROPE_KINDS)
    rope_theta: float = 10_000.0
    max_length: int = 16_384
    qk_norm_rows: int = 1
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kind(self.rope, ROPE_KINDS, "model.rope")
        size = between(1, 1 << 20)
        widths = dict.fromkeys(("dim", "n_heads", "n_kv_heads", "head_dim", "ffn_dim"), optional(size))
        layers = optional(between(1, 1024))
        check_ranges("model", self, n_layers=layers, max_length=size, qk_norm_rows=size, rope_theta=above(0), **widths)
        check_ranges("model", self, norm_eps=above(0, below=1))

    def build(self, layout: TokenLayout) -> TransformerConfig:
        """The decoder's full shape with this vocabulary."""
        shape = SIZES[self.size]

        def pick(own: int | None, named: int) -> int:
            return named if own is None else own

        dim, n_heads = pick(self.dim, shape.dim), pick(self.n_heads, shape.n_heads)
        return TransformerConfig(
            vocab_size=layout.vocab_size,
            visual_offset=layout.visual_offset,
            dim=dim,
            n_layers=pick(self.n_layers, shape.n_layers),
            n_heads=n_heads,
            n_kv_heads=pick(self.n_kv_heads, shape.n_kv_heads),
            head_dim=pick(self.head_dim, dim // n_heads),
            ffn_dim=pick(self.ffn_dim, shape.ffn_dim),
            qk_norm_rows=self.qk_norm_rows,
            norm_eps=self.norm_eps,
            rope=self.rope,
            rope_theta=self.rope_theta,
            strides=layout.strides,
            max_length=self.max_length,
        )
