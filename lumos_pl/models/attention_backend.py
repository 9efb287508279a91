"""Which of the ways to compute block-causal attention is taken; they agree but for rounding.

| backend | what it does                                      | where it trains         |
|---------|---------------------------------------------------|-------------------------|
| sdpa    | torch's fused kernels, a call per text and frame  | anywhere                |
| padded  | scores written out, all samples side by side      | CPU, small clips        |
| flex    | one compiled kernel with a block mask             | CUDA                    |
| flash   | the flash-attn package, a call per step           | CUDA, in bf16 or fp16   |
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch

from lumos_pl.errors import ConfigError
from lumos_pl.models.attention import Attention, BlockCausalAttention
from lumos_pl.models.config import AttentionBackend
from lumos_pl.models.flash_attention import FlashAttention, flash_attn_varlen
from lumos_pl.models.flex_attention import FlexAttention
from lumos_pl.models.padded_attention import PaddedAttention, is_small
from lumos_pl.spans import SequenceSpans

HALF = (torch.bfloat16, torch.float16)  # all that flash-attn computes in
DEVICES: dict[AttentionBackend, str] = {"padded": "cpu", "flex": "cuda", "flash": "cuda"}


def check_backend(backend: AttentionBackend, device: torch.device) -> None:
    """Raise ConfigError if no decoder can be trained with this backend on this device."""
    needed = DEVICES.get(backend, device.type)
    if device.type != needed:
        raise ConfigError(
            f"attention of this kind needs the device {needed}",
            where="model.attention",
            got=f"{backend} on {device.type}",
            fix="model.attention=auto",
        )
    if backend == "flash":
        flash_attn_varlen()


def block_causal_attention(
    spans: Sequence[SequenceSpans], device: torch.device, dtype: torch.dtype, backend: AttentionBackend = "auto"
) -> Attention:
    """Attention over a packed batch.

    Args:
        dtype: of the queries, keys and values.
    Raises:
        ConfigError: the backend cannot serve them.
    """
    check_backend(backend, device)
    match _choose(spans, device, dtype) if backend == "auto" else backend:
        case "sdpa":
            return BlockCausalAttention(spans)
        case "padded":
            if not all(map(is_small, spans)):
                raise ConfigError("sample too large to be padded", where="model.attention", fix="model.attention=auto")
            return PaddedAttention(spans)
        case "flex":
            return FlexAttention(spans, device)
        case "flash":
            if dtype not in HALF:
                raise ConfigError(
                    "flash-attn computes in bf16 or fp16",
                    where="model.attention",
                    got=f"flash in {dtype}",
                    fix="trainer.precision=bf16-mixed, or model.attention=auto",
                )
            return FlashAttention(spans, device, flash_attn_varlen())
        case unknown:
            raise ConfigError("unknown attention", where="model.attention", got=unknown)


def _choose(spans: Sequence[SequenceSpans], device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Padded where calls cost more than sums; flash where it is there, for its few calls; else sdpa.

    Never flex: its kernel is compiled at the first step, and does no less work than sdpa's calls, which
    torch hands to the fused kernel it has for the GPU. It is worth a try where many small clips make many calls.
    """
    if device.type == "cpu":
        return "padded" if all(map(is_small, spans)) else "sdpa"
    return "flash" if device.type == "cuda" and dtype in HALF and find_spec("flash_attn") else "sdpa"
