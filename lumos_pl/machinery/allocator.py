"""What memory this process keeps for later."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MOST_MMAP_THRESHOLD = 32 << 20  # glibc takes no more
_KERNELS = 64  # of oneDNN; a training step of one length needs some 30


def set_up_memory() -> None:
    """What every process that computes does first.

    The C library, where it is glibc, uses freed memory again rather than give it back: a forward pass frees and takes
    the same megabytes many times, and pages that were given back have to be cleared by the kernel each time, on a CPU
    a fifth of a generation.

    oneDNN keeps few of the kernels it compiles. On a CPU in bf16 it compiles one for every matrix product of every
    batch length, and would keep 1,024 of several MiB: where lengths vary, a small training grows by gigabytes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))  # before its first use
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_MMAP_THRESHOLD, _MOST_MMAP_THRESHOLD)
