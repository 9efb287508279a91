"""What may be in a checkpoint at all: plain values and tensors, in a tree of bounded size, as files give it back."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lumos_pl.errors import CheckpointError, LumosError

MOST_VALUES = 1_000_000
MOST_LEVELS = 64
MOST_BITS = 256  # of a whole number: Python refuses to write out those of more than some thousand digits
_NUMBERS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.uint8} | {
    *(torch.int8, torch.int16, torch.int32, torch.int64)
}
_DICTS, _LISTS = (dict, OrderedDict, Counter), (list, tuple, set, torch.Size)
_SCALARS = (type(None), bool, float, complex, bytes, bytearray, torch.dtype, torch.device)


def check_plain(
    content: dict[str, Any],
    *,
    file: Path | None = None,
    what: str = "not a value that a checkpoint holds",
    error: type[LumosError] = CheckpointError,
    fix: str | None = None,
) -> None:
    """Raise an error, which names the field, unless all of a checkpoint's content could be saved and read back.

    The values are counted as often as they are come across: lists that hold each other, or one list many times, are too
    many.
    """
    n_values = 0
    open_branches: list[Iterator[tuple[str, Any]]] = [iter([("", content)])]
    while open_branches:
        for where, value in open_branches[-1]:
            n_values += 1
            expected = _lacks(value)
            if n_values > MOST_VALUES:
                expected = f"at most {MOST_VALUES} values in all"
            if expected is None and (below := _parts(value, where)) is not None:
                if len(open_branches) < MOST_LEVELS:
                    open_branches.append(below)
                    break
                expected = f"at most {MOST_LEVELS} levels"
            if expected is not None:
                raise error(what, file=file, where=where[:200], got=_short(value), expected=expected, fix=fix)
        else:
            open_branches.pop()


def _parts(value: Any, where: str) -> Iterator[tuple[str, Any]] | None:
    """What a value holds, each with its dotted name; None: it is no dict or list."""
    if isinstance(value, dict):
        return ((f"{where}.{str(key)[:100]}" if where else str(key)[:100], item) for key, item in value.items())
    if type(value) in _LISTS:
        return ((f"{where}[{i}]", item) for i, item in enumerate(value))
    return None


def _lacks(value: Any) -> str | None:
    """What is expected instead of a value, parts aside; None: it is as it should be."""
    if isinstance(value, Tensor):
        return _lacks_as_tensor(value)
    if type(value) is int:
        return None if value.bit_length() <= MOST_BITS else f"a number of at most {MOST_BITS} bits"
    if type(value) is str:
        return None if _is_text(value) else "text that can be written as UTF-8"
    if type(value) in _DICTS:
        return next((f"names, not {_short(key)}" for key in value if not _is_name(key)), None)
    return None if type(value) in (*_LISTS, *_SCALARS) else "plain values or tensors"


def _lacks_as_tensor(tensor: Tensor) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter, DTensor):
        return "plain tensors"
    if tensor.layout is not torch.strided or tensor.dtype not in _NUMBERS or tensor.is_quantized:
        return "plain tensors of real numbers"
    if tensor.is_meta:
        return "tensors with their numbers"
    spread = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    # An optimizer that updates such a one in place may do anything, up to ending the process.
    return "tensors whose numbers have a place each" if tensor.numel() > max(spread, 1) else None


def _is_name(key: Any) -> bool:
    return (type(key) is str and _is_text(key)) or (type(key) is int and key.bit_length() <= MOST_BITS)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    return True


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype}, {value.layout}"
    kind = type(value).__name__
    return f"{kind} {ascii(value)[:80]}" if type(value) in (str, bool, float, bytes) else kind
