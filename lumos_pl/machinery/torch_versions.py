"""What differs between the versions of torch that the project runs on, 2.9 to 2.13: nothing else asks for a version."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
import torch._C._distributed_c10d as c10d
from torch import Tensor

_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])

# 2.11 and 2.12 close the copier of a checkpoint's tensors after its first copy (`DefaultStager.stage`), and a second
# one then fails; before and after, it keeps its memory for the next.
STAGER_SERVES_ONCE = (2, 11) <= _VERSION < (2, 13)

# 2.9 adds to fp32 no product of bf16 matrices (`addmm` with an `out_dtype`), though it makes one in fp32.
ADDS_TO_FP32 = _VERSION >= (2, 10)


_FLIGHT_RECORDS = "_dump_nccl_trace_json", "_dump_fr_trace_json"  # of CUDA's builds; of any, with gloo's too, later


def record_exchanges(folder: Path) -> None:
    """Have the backend remember its exchanges, and NCCL write them into a folder should it end a process by itself.

    Before there is a process group. What the user has set stays.
    """
    for variable, value in {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # what it was called before 2.10
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(folder.absolute() / "nccl-rank"),  # which it adds the rank to
        "TORCH_FR_DUMP_TEMP_FILE": str(folder.absolute() / "nccl-rank"),  # what it is called since
    }.items():
        os.environ.setdefault(variable, value)


def flight_record() -> bytes:
    """What the backend remembers of the exchanges between the ranks, as JSON; empty where it remembers none."""
    for name in _FLIGHT_RECORDS:
        dump = getattr(c10d, name, None)
        if dump is not None and (record := dump()):
            return record if isinstance(record, bytes) else str(record).encode()
    return b""


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
