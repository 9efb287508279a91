"""Which way of computing block-causal attention is used; all give the same result up to rounding.

| backend | what it does                                      | where it trains         |
|---------|---------------------------------------------------|-------------------------|
| sdpa    | torch's fused kernels, a call per text and frame  | anywhere                |
| padded  | scores written out, all samples side by side      | CPU, small clips        |
| varlen  | torch's kernel for ragged batches, a call a step  | CUDA, in bf16 or fp16   |
| flash   | the same by the flash-attn package                | CUDA, in bf16 or fp16   |
| flex    | one compiled kernel with a block mask             | CUDA                    |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.torch_versions import varlen_attention
from lumos_pl.models.attention import Attention, BlockCausalAttention
from lumos_pl.models.config import AttentionBackend, TransformerConfig
from lumos_pl.models.flex_attention import FlexAttention
from lumos_pl.models.padded_attention import PaddedAttention, is_small
from lumos_pl.models.varlen_attention import VarlenAttention, flash_attn_kernel, torch_kernel
from lumos_pl.spans import SequenceSpans

HALF = (torch.bfloat16, torch.float16)  # the dtypes of the kernels for ragged batches
DEVICES: dict[AttentionBackend, str] = {"padded": "cpu", "varlen": "cuda", "flex": "cuda", "flash": "cuda"}
KERNELS = {"varlen": torch_kernel, "flash": flash_attn_kernel}
CLEARLY_FASTER = 0.95  # in time: a smaller gain is noise, and a resumed run might then choose otherwise


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
    if backend in KERNELS:
        KERNELS[backend]()


def block_causal_attention(
    spans: Sequence[SequenceSpans], device: torch.device, dtype: torch.dtype, backend: AttentionBackend = "auto"
) -> Attention:
    """Attention over a packed batch.

    Args:
        dtype: of the queries, keys and values.
        backend: `auto` takes the first of `candidates`.
    Raises:
        ConfigError: the backend does not work for this batch, device or dtype.
    """
    check_backend(backend, device)
    match candidates(spans, device, dtype)[0] if backend == "auto" else backend:
        case "sdpa":
            return BlockCausalAttention(spans)
        case "padded":
            if not all(map(is_small, spans)):
                raise ConfigError("sample too large to be padded", where="model.attention", fix="model.attention=auto")
            return PaddedAttention(spans)
        case "flex":
            return FlexAttention(spans, device)
        case "varlen" | "flash" as kind:
            if dtype not in HALF:
                raise ConfigError(
                    "the kernels for ragged batches compute in bf16 or fp16",
                    where="model.attention",
                    got=f"{kind} in {dtype}",
                    fix="trainer.precision=bf16-mixed, or model.attention=auto",
                )
            return VarlenAttention(spans, device, KERNELS[kind]())
        case unknown:
            raise ConfigError("unknown attention", where="model.attention", got=unknown)


def candidates(
    spans: Sequence[SequenceSpans], device: torch.device, dtype: torch.dtype, *, compiled: bool = False
) -> list[AttentionBackend]:
    """The backends that `auto` may use for a batch, best guess first; on a GPU `measure_backends` decides.

    Args:
        compiled: whether kernels may be compiled too, which takes some ten seconds for flex.
    """
    if device.type == "cpu":  # padded where calls cost more than arithmetic
        return ["padded" if all(map(is_small, spans)) else "sdpa"]
    if device.type != "cuda" or dtype not in HALF:
        return ["sdpa"]
    found: list[AttentionBackend] = ["flash"] if has_flash_attn() else []
    found.append("sdpa")
    if varlen_attention() is not None:
        found.append("varlen")
    return [*found, "flex"] if compiled else found


@cache
def has_flash_attn() -> bool:
    """Whether the flash-attn package can be imported: one built for another torch cannot."""
    try:
        flash_attn_kernel()
    except ConfigError:
        return False
    return True


@dataclass(frozen=True)
class AttentionChoice:
    """What `auto` stands for, and the seconds of one layer's attention with each backend tried."""

    taken: AttentionBackend
    seconds: Mapping[AttentionBackend, float]

    def describe(self) -> str:
        tried = ", ".join(f"{backend} {1000 * seconds:.2f}" for backend, seconds in self.seconds.items())
        return f"{self.taken} (ms a layer: {tried})"


def measure_backends(
    backends: Sequence[AttentionBackend],
    time_of: Callable[[AttentionBackend], float],
) -> dict[AttentionBackend, float]:
    """Seconds of each backend, in the given order; one that fails is left out.

    Args:
        time_of: seconds of one layer's attention, see `attention_seconds`.
    """
    seconds: dict[AttentionBackend, float] = {}
    for backend in backends:
        try:
            seconds[backend] = time_of(backend)
        except (RuntimeError, ImportError, ConfigError):  # a kernel without an image for this GPU, a broken package
            continue
    return seconds


def fastest(seconds: Mapping[AttentionBackend, float]) -> AttentionBackend:
    """The first of the measured backends, unless another is clearly faster; `sdpa` if none was measured."""
    if not seconds:
        return "sdpa"
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < CLEARLY_FASTER * seconds[first] else first


def attention_seconds(
    backend: AttentionBackend,
    spans: Sequence[SequenceSpans],
    config: TransformerConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    repeats: int = 5,
) -> float:
    """Median time of one layer's attention over a batch on a CUDA device, forward and backward."""
    length = sum(s.length for s in spans)
    heads = config.n_heads, config.n_kv_heads, config.n_kv_heads
    qkv = [torch.randn(length, n, config.head_dim, device=device, dtype=dtype, requires_grad=True) for n in heads]
    attention = block_causal_attention(spans, device, dtype, backend)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats + 2)]
    for begin, end in events:
        begin.record()
        torch.autograd.grad(attention(0, *qkv).sum(), qkv)
        end.record()
    torch.cuda.synchronize(device)
    return median(begin.elapsed_time(end) for begin, end in events[2:]) / 1000  # of events in milliseconds
