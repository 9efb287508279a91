"""The harness itself: what it takes for a wait and for a mix of devices, and what it lets pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.fake_cuda import FakeCuda


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with FakeCuda() as gpu:
        yield gpu


def put(value: object, *index: object) -> Callable[[Tensor], None]:
    def write(x: Tensor) -> None:
        x[index if len(index) > 1 else index[0]] = value  # type: ignore[index,assignment]

    return write


def on_gpu(*numbers: int) -> Tensor:
    return torch.arange(10, device="cuda").index_select(0, torch.arange(10, device="cuda")[: len(numbers)])


WAITS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "item": (lambda x: x.sum().item(), "item"),
    "if": (lambda x: bool(torch.isfinite(x.sum())), "item"),
    "float": (lambda x: float(x[0, 0]), "item"),
    "tolist": (lambda x: x.tolist(), "tolist"),
    "to the CPU": (lambda x: x.cpu(), "copy to the CPU"),
    "from Python": (lambda x: torch.tensor([0], device=x.device), "copy from pageable memory"),
    "from pageable memory": (
        lambda x: torch.arange(3).to(x.device, non_blocking=True),
        "copy from pageable memory",
    ),
    "blocking": (lambda x: torch.arange(3).pin_memory().to("cuda"), "blocking copy from pinned memory"),
    "copied into": (lambda x: x.copy_(torch.ones(4, 3)), "copy from pageable memory"),
    "CPU index": (lambda x: x[torch.tensor([0, 1])], "index on the CPU"),
    "index of a list": (lambda x: x[[0, 1]], "index on the CPU"),
    "mask": (lambda x: x[x > 0], "index by a mask"),
    "number by index": (lambda x: put(5, on_gpu(0, 1))(x), "write of a number on the CPU by an index"),
    "tensor by mask": (lambda x: put(x[0] + 1, x.sum(1) > 0)(x), "index by a mask"),
    "nonzero": (lambda x: torch.where(x > 0), "nonzero"),
    "unique": (lambda x: x.unique_consecutive(), "unique_consecutive"),
    "bincount": (lambda x: torch.bincount(x.long().flatten()), "bincount"),
    "repeat": (lambda x: torch.repeat_interleave(on_gpu(1, 2)), "repeat_interleave"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "synchronize"),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_seen(name: str, gpu: FakeCuda) -> None:
    x = torch.ones(4, 3, device=gpu.device)
    with gpu.watch():
        WAITS[name][0](x)
    assert [fault.what for fault in gpu.waits] == [WAITS[name][1]]
    assert gpu.mixed == []


@pytest.mark.parametrize(
    ("mix", "what"),
    [
        (lambda x: x + torch.ones(3), "add"),
        (lambda x: x @ torch.ones(3, 2), "mm"),
        (lambda x: torch.cat([x, torch.ones(1, 3)]), "cat"),
        (lambda x: torch.ones(3) * x.sum(), "mul"),
        (lambda x: torch.ones(4)[on_gpu(0)], "index"),
        (lambda x: put(torch.ones(1, 3), on_gpu(0))(x), "index_put_"),
        (lambda x: torch.nn.functional.embedding(torch.tensor([0]), x), "embedding"),
        (lambda x: x.exp().backward(torch.ones(4, 3)), "mul"),
    ],
)
def test_a_mix_of_devices_is_seen(mix: Callable[[Tensor], object], what: str, gpu: FakeCuda) -> None:
    x = torch.ones(4, 3, device=gpu.device).requires_grad_(what == "mul")
    with gpu.watch():
        mix(x)
    assert [fault.what for fault in gpu.mixed] == [what]


def test_what_a_gpu_does_without_waiting_passes(gpu: FakeCuda) -> None:
    x = torch.ones(4, 3, device="cuda", requires_grad=True)
    with gpu.watch():
        sent = torch.arange(2).pin_memory().to(gpu.device, non_blocking=True)
        y = x.index_select(0, sent) * torch.tensor(2.0)  # a number of the CPU is an argument of the kernel
        y = y.masked_fill(y > 3, 0.0).index_fill(0, sent, 1.0)
        put(5.0, y > 3)(y.detach())
        put(5.0, slice(0, 1), 1)(y.detach())
        checkpoint(lambda y: y.exp() * torch.ones_like(y), y, use_reentrant=False).sum().backward()
        assert torch.randn(3).sum().item() != 0 and torch.ones(3)[torch.tensor([0])].tolist() == [1]  # all on the CPU
    assert gpu.waits == [] and gpu.mixed == []
    assert x.grad is not None and x.grad.is_cuda and x.grad.device == gpu.device
    assert x[1:].is_cuda and x.detach().to(torch.bfloat16).is_cuda and not torch.ones(3).is_cuda


def test_a_number_read_before_it_arrived_is_seen(gpu: FakeCuda) -> None:
    x = torch.ones(3, device=gpu.device)
    early, late = (x.sum().to("cpu", non_blocking=True) for _ in range(2))
    event = torch.cuda.Event()
    event.record()
    with gpu.watch():
        early.item()
        event.synchronize()
        assert late.item() == 3
    assert [fault.what for fault in gpu.mixed] == ["_local_scalar_dense of what has not arrived"]
    assert [fault.what for fault in gpu.waits] == ["event"]


def test_numpy_is_refused(gpu: FakeCuda) -> None:
    with pytest.raises(TypeError, match="can't convert cuda"):
        torch.ones(3, device=gpu.device).numpy()


def test_afterwards_all_is_as_it_was() -> None:
    with FakeCuda() as gpu:
        x = torch.ones(3, device=gpu.device)
    assert x.device.type == "cpu" and x.sum().item() == 3 and gpu.waits == []
    assert torch.autocast.__module__ == "torch.amp.autocast_mode"
