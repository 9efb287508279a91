"""CUDA tensors on a machine without CUDA: what would raise there, and what would make the host wait.

    with FakeCuda() as gpu:
        x = torch.ones(3, device=gpu.device)  # x.device is cuda:0, x.is_cuda is True
        x[torch.tensor([0])]                  # gpu.waits: an index on the CPU
        x + torch.ones(3)                     # gpu.mixed: a CUDA build would raise

Memory is marked, not tensors: a storage that was made for the device is "on the GPU", and so are all views of it.
The numbers are computed on the CPU and are right, so that what depends on them (counts, `.item()`) goes its real way.
torch's own FakeTensorMode cannot serve here: a torch built without CUDA aborts the process when autograd meets a fake
CUDA tensor, and a fake tensor has no number to give.

Two modes see what is called: one the functions of Python, which name devices, the other torch's operators, those of
the backward pass and of the optimizer too. What they cannot see: kernels that torch's C++ takes for CUDA only, and
gradients that travel back through a copy between devices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Self
from unittest.mock import patch

import torch
import torch.utils.checkpoint as checkpoint
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PROJECT = Path(__file__).parents[1]
PARTS = "lumos_pl", "callbacks", "data_modules", "experiments"  # the tests themselves are not looked at

aten = torch.ops.aten
run_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]
group_tensors = torch._C._group_tensors_by_device_and_dtype
READS = {aten._local_scalar_dense: "item", aten.equal: "equal"}
# Operators whose output is as long as the values say: the host has to know before it can go on.
SIZED_BY_VALUES = {
    aten.nonzero, aten.masked_select, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive,
    aten.unique_dim_consecutive, aten.bincount,
}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# Operators besides the pointwise ones whose kernel takes a number from a 0-dim tensor of the CPU as an argument.
TAKES_NUMBER = {aten.fill_, aten.fill, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_}
# Operators that only CUDA has, written out: products of bf16 matrices in fp32.
CUDA_ONLY: dict[Any, Callable[..., Tensor]] = {
    aten.mm.dtype_out: lambda a, b, dtype, out: torch.mm(a.to(dtype), b.to(dtype), out=out),
    aten.addmm.dtype_out: lambda x, a, b, dtype, out: torch.addmm(x, a.to(dtype), b.to(dtype), out=out),
}

Memory = Literal["cuda", "pinned", "arriving"]  # the last: of the CPU, and what a copy from the GPU has yet to fill


class Fault(NamedTuple):
    """An operation that the host waits in, or that mixes devices.

    Args:
        where: the innermost function of the project on the stack, `lumos_pl/batch.py:_OnDevice.to`; "" for none.
        what: the operation.
    """

    where: str
    what: str


class FakeCuda:
    """While it is entered, tensors can be made on `device` and moved there.

    Attributes:
        waits: in their order, every operation in which the host waits for the device.
        mixed: every operation on tensors of both devices that a CUDA build refuses.
    """

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        self.waits: list[Fault] = []
        self.mixed: list[Fault] = []
        self.arriving: list[Tensor] = []
        # Of storages; those it does not know are pageable memory of the CPU. A weak reference keeps a storage's address
        # from being given to another, not its memory.
        self._memory: dict[StorageWeakRef, Memory] = {}
        self.operators, self.functions = _Operators(self), _Functions(self)
        self._patches: list[AbstractContextManager[Any]] = [
            patch.object(torch._C, "_group_tensors_by_device_and_dtype", self._grouped),
            patch.multiple(torch.cuda, **self._cuda_functions()),
            patch.multiple(
                torch, autocast=_Autocast, is_autocast_enabled=_autocast, get_autocast_dtype=_autocast_dtype
            ),
            patch.object(torch.amp, "autocast", _Autocast),
            patch.object(torch.autograd, "_engine_run_backward", self._run_backward),
            # Recomputed tensors are compared with what was saved inside of an operator, where their device is another.
            patch.dict(checkpoint._allowed_determinism_checks_to_fns, default=lambda x: (x.shape, x.dtype)),
        ]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for context in (*self._patches, self.operators, self.functions):
                stack.enter_context(context)
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.close()

    def _cuda_functions(self) -> dict[str, Any]:
        """Of `torch.cuda`."""
        return {
            "synchronize": lambda *_: self.wait("synchronize"),
            "Event": lambda **_: _Event(self),
            "get_device_name": lambda *_: "NVIDIA H100 80GB HBM3",
            "get_device_capability": lambda *_: (9, 0),
        }

    def _run_backward(self, *args: Any, **kwargs: Any) -> Any:
        """A mode is off in the call that it sees, `backward`; the Python code in this one asks for devices."""
        with self.functions:
            return run_backward(*args, **kwargs)

    def _grouped(self, lists: Any, with_indices: bool) -> Any:
        """What optimizers and clipping sort tensors with: C++, which knows of one device only."""
        groups: dict[Any, Any] = group_tensors(lists, with_indices)
        return {(found[0][0][0].device, dtype): (found, indices) for (_, dtype), (found, indices) in groups.items()}

    @contextmanager
    def watch(self) -> Iterator[Self]:
        """Forget what was noted before, such as of building a model."""
        self.waits.clear()
        self.mixed.clear()
        yield self

    def wait(self, what: str) -> None:
        self.waits.append(Fault(_where(), what))

    def mix(self, what: str) -> None:
        self.mixed.append(Fault(_where(), what))

    # -- memory --------------------------------------------------------------------------------

    def memory(self, tensor: Tensor) -> Memory | None:
        return None if tensor.is_meta else self._memory.get(_storage(tensor))

    def is_on(self, tensor: Tensor) -> bool:
        return self.memory(tensor) == "cuda"

    def mark(self, out: Any, memory: Memory | None) -> Any:
        """The same, with the memory of every tensor in it marked."""
        for tensor in _tensors(out):
            if not tensor.is_meta:
                if memory is None:
                    self._memory.pop(_storage(tensor), None)
                else:
                    self._memory[_storage(tensor)] = memory
        return out

    def move(self, tensor: Tensor, device: torch.device, *, non_blocking: bool, **options: Any) -> Tensor:
        """What `Tensor.to` does."""
        to_gpu = device.type == "cuda"
        if device.type not in ("cuda", "cpu") or to_gpu == self.is_on(tensor):
            same: Tensor = tensor.to(**options) if device.type in ("cuda", "cpu") else tensor.to(device, **options)
            return same
        self.note_copy(self.memory(tensor), "cuda" if to_gpu else None, non_blocking=non_blocking)
        copied: Tensor = tensor.to(**{**options, "copy": True})
        if not to_gpu and non_blocking:
            self.arriving.append(copied)
            self.mark(copied, "arriving")
        else:
            self.mark(copied, "cuda" if to_gpu else None)
        return copied

    def note_copy(self, source: Memory | None, target: Memory | None, *, non_blocking: bool) -> None:
        """A copy between devices makes the host wait unless it need not, and the CPU's side of it is pinned."""
        if source == "cuda" and target != "cuda" and not non_blocking:
            self.wait("copy to the CPU")
        if target == "cuda" and source != "cuda" and not (non_blocking and source == "pinned"):
            self.wait("copy from pageable memory" if source is None else "blocking copy from pinned memory")


class _Event:
    """`torch.cuda.Event`: what was on its way when it was recorded has arrived once the host waited for it."""

    def __init__(self, gpu: FakeCuda) -> None:
        self.gpu = gpu
        self._arriving: list[Tensor] = []

    def record(self, *_: Any) -> None:
        self._arriving, self.gpu.arriving = self.gpu.arriving, []

    def elapsed_time(self, later: _Event) -> float:
        return 1.0  # ms

    def synchronize(self) -> None:
        self.gpu.wait("event")
        self.gpu.mark(self._arriving, "pinned")


# -- autocast: its operators are the CPU's ---------------------------------------------------------


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _autocast(device_type: str = "cuda", *, of: Callable[[str], bool] = torch.is_autocast_enabled) -> bool:
    return of("cpu" if device_type == "cuda" else device_type)


def _autocast_dtype(device_type: str, *, of: Callable[[str], torch.dtype] = torch.get_autocast_dtype) -> torch.dtype:
    return of("cpu" if device_type == "cuda" else device_type)


# -- the two modes ---------------------------------------------------------------------------------


class _Functions(TorchFunctionMode):
    """What Python code says of devices."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _METHODS:
            return _METHODS[func](self.gpu, func, *args, **kwargs)
        device = kwargs.get("device")
        if device is None:
            out = func(*args, **kwargs)
            return out if _tensors((args, kwargs)) else self.gpu.mark(out, None)
        if torch.device(device).type not in ("cuda", "cpu"):
            return func(*args, **kwargs)
        on_gpu = torch.device(device).type == "cuda"
        kwargs["device"] = "cpu"
        if on_gpu and func in (torch.tensor, torch.as_tensor, torch.scalar_tensor, Tensor.new_tensor):
            self.gpu.wait("copy from pageable memory")  # Python's numbers pass through it
        return self.gpu.mark(func(*args, **kwargs), "cuda" if on_gpu else None)


class _Operators(TorchDispatchMode):
    """What torch's operators do, of whichever Python or C++ code."""

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [tensor for tensor in _tensors((args, kwargs)) if not tensor.is_meta]
        on_gpu = any(map(self.gpu.is_on, tensors))
        if on_gpu:
            self._note(func, args, kwargs, tensors)
        if any(self.gpu.memory(tensor) == "arriving" for tensor in tensors):
            self.gpu.mix(f"{func.overloadpacket.__name__} of what has not arrived")
        known = set(map(_storage, tensors))
        out = CUDA_ONLY.get(func, func)(*args, **kwargs)
        made = [tensor for tensor in _tensors(out) if not tensor.is_meta and _storage(tensor) not in known]
        # zeros that stand for a gradient nobody gave; what Python code makes there is marked afterwards
        in_backward = not tensors and torch._C._current_graph_task_id() != -1
        if in_backward or (on_gpu and func.overloadpacket not in READS):
            self.gpu.mark(made, "cuda")
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        gpu, packet = self.gpu, func.overloadpacket
        name = packet.__name__
        if packet in READS:
            return gpu.wait(READS[packet])
        if packet in SIZED_BY_VALUES or (packet is aten.repeat_interleave and "output_size" not in kwargs):
            return gpu.wait(name)
        if packet is aten.copy_:
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            return gpu.note_copy(gpu.memory(args[1]), gpu.memory(args[0]), non_blocking=non_blocking)
        if packet in INDEXING:
            tensors = self._note_indices(args)
        takes_number = packet in TAKES_NUMBER or torch.Tag.pointwise in func.tags
        strangers = [t for t in tensors if not gpu.is_on(t) and not (takes_number and t.dim() == 0)]
        if any(map(gpu.is_on, tensors)) and strangers:
            gpu.mix(name)
        return None

    def _note_indices(self, args: Any) -> list[Tensor]:
        """Note what waits in `x[indices]` or `x[indices] = value`; the tensors that have to be on one device."""
        gpu = self.gpu
        x, indices, *values = args
        value = values[0] if values and isinstance(values[0], Tensor) else None
        number = value is not None and value.dim() == 0 and not gpu.is_on(value)
        masks = [index for index in _tensors(indices) if index.dtype in (torch.bool, torch.uint8)]
        if number and len(masks) == len(indices) == 1 and gpu.is_on(masks[0]):
            return [x]  # torch fills by the mask, which needs no indices
        for index in _tensors(indices):
            if not gpu.is_on(index) and gpu.is_on(x):
                gpu.wait("index on the CPU")
            elif index.dtype in (torch.bool, torch.uint8):
                gpu.wait("index by a mask")
        if number and gpu.is_on(x):
            gpu.wait("write of a number on the CPU by an index")
        one_device = [x, *(index for index in _tensors(indices) if gpu.is_on(index))]
        return one_device if value is None or number else [*one_device, value]


# -- methods of a tensor that depend on where it is ------------------------------------------------


def _to(gpu: FakeCuda, _: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (gpu.device if gpu.is_on(args[0]) else args[0].device, args[0].dtype, *args[1:])
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, layout = torch._C._nn._parse_to(*args, **kwargs)
    options = {"dtype": dtype or tensor.dtype, "copy": copy}
    if layout is not None:
        options["memory_format"] = layout
    if device is None:
        return tensor.to(**options)
    return gpu.move(tensor, device, non_blocking=non_blocking, **options)


def _pin_memory(gpu: FakeCuda, _: Any, tensor: Tensor, *__: Any) -> Tensor:
    if gpu.is_on(tensor):
        raise RuntimeError("only tensors of the CPU can be pinned")
    return tensor if gpu.memory(tensor) == "pinned" else gpu.mark(tensor.clone(), "pinned")


def _tolist(gpu: FakeCuda, func: Any, tensor: Tensor) -> Any:
    if gpu.is_on(tensor):
        gpu.wait("tolist")
    return func(tensor)


def _numpy(gpu: FakeCuda, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    if gpu.is_on(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return func(tensor, *args, **kwargs)


_METHODS: dict[Any, Callable[..., Any]] = {
    Tensor.device.__get__: lambda gpu, func, x, *_: gpu.device if gpu.is_on(x) else func(x),
    Tensor.is_cuda.__get__: lambda gpu, _, x, *__: gpu.is_on(x),  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda gpu, func, x, *_: func(x) and not gpu.is_on(x),  # type: ignore[attr-defined]
    Tensor.get_device: lambda gpu, func, x: 0 if gpu.is_on(x) else func(x),
    Tensor.is_pinned: lambda gpu, _, x, *__: gpu.memory(x) == "pinned",
    Tensor.pin_memory: _pin_memory,
    Tensor.to: _to,
    Tensor.cuda: lambda gpu, _, x, *args, **kwargs: gpu.move(x, gpu.device, non_blocking=kwargs.get("non_blocking", 0)),
    Tensor.cpu: lambda gpu, _, x, **__: gpu.move(x, torch.device("cpu"), non_blocking=False),
    Tensor.tolist: _tolist,
    Tensor.numpy: _numpy,
    Tensor.__array__: _numpy,
}


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _tensors(tree: Any) -> list[Tensor]:
    """All in nested arguments of an operator."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for part in tree for tensor in _tensors(part)]


def _where() -> str:
    """The innermost function of the project on the stack; without one, of whoever called torch."""
    frame: FrameType | None = sys._getframe(1)
    caller = ""
    while frame is not None:
        part, file = _file(frame.f_code.co_filename)
        place = f"{file}:{frame.f_code.co_qualname.partition('.<locals>')[0]}"
        if part in PARTS:
            return place
        if part == "library" and not caller:
            caller = place
        frame = frame.f_back
    return caller


@cache
def _file(name: str) -> tuple[str, str]:
    """A source file's part of the project, or `library` if it is of one but torch, and its path from there."""
    path = Path(name)
    if "site-packages" in path.parts:
        inside = path.parts[path.parts.index("site-packages") + 1 :]
        return ("torch" if inside[0] == "torch" else "library"), "/".join(inside)
    if path.is_relative_to(PROJECT):
        return path.relative_to(PROJECT).parts[0], path.relative_to(PROJECT).as_posix()
    return "", name
