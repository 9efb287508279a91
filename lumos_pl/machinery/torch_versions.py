"""What differs between the versions of torch that the project runs on, 2.9 to 2.13: nothing else asks for a version."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# 2.11 and 2.12 close the copier of a checkpoint's tensors after its first copy (`DefaultStager.stage`), and a second
# one then fails; before and after, it keeps its memory for the next.
STAGER_SERVES_ONCE = (2, 11) <= _VERSION < (2, 13)

# 2.9 adds to fp32 no product of bf16 matrices (`addmm` with an `out_dtype`), though it makes one in fp32.
ADDS_TO_FP32 = _VERSION >= (2, 10)


def varlen_attention() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, bool], Tensor] | None:
    """torch's own grouped-query attention over ragged segments, see `varlen_attention.Kernel`; None before 2.10."""
    if find_spec("torch.nn.attention.varlen") is None:
        return None
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    # Later versions ask to be told of groups, which the kernel has always served; 2.10 has no windows yet.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in known else {}
    masks: tuple[dict[str, Any], dict[str, Any]] = {"window_size": (-1, -1)}, {"window_size": (-1, 0)}
    if "window_size" not in known:
        masks = {"is_causal": False}, {"is_causal": True}

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, query_ends: Tensor, key_ends: Tensor, most_q: int, most_k: int, causal: bool
    ) -> Tensor:
        options = masks[causal] | grouped
        return cast(Tensor, varlen_attn(q, k, v, query_ends, key_ends, most_q, most_k, **options))

    return kernel
