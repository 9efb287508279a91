from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lumos_pl.errors import ConfigError
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.loss.masked_cross_entropy import LossConfig, chunk_rows, masked_cross_entropy
from tests.fake_cuda import FakeCuda
from tests.refusals import refused

OFFSET, CODES, WIDTH, TOKENS = 7, 33, 16, 50


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(OFFSET + CODES, WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    return states, weight, torch.randint(CODES, (TOKENS,), generator=generator)


@pytest.mark.parametrize("chunk_size", [1, 16, 50, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_equals_the_full_computation(inputs: tuple[Tensor, Tensor, Tensor], chunk_size: int, z_loss: float) -> None:
    states, weight, targets = (x.float().detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    logits = states @ weight[OFFSET:].T
    expected = F.cross_entropy(logits, targets) + z_loss * logits.logsumexp(1).square().mean()
    config = LossConfig(chunk_size=chunk_size, z_loss=z_loss)
    loss, token_loss = masked_cross_entropy(states, weight, OFFSET, targets=targets, config=config)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(token_loss, F.cross_entropy(logits, targets, reduction="none"), atol=1e-5, rtol=0)
    assert not token_loss.requires_grad
    ours = torch.autograd.grad(3 * loss, (states, weight))
    theirs = torch.autograd.grad(3 * expected, (states, weight))
    for own, full in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, full, atol=1e-6, rtol=1e-5)
    assert ours[1][:OFFSET].abs().max() == 0


def test_a_device_has_its_own_chunks_and_the_sums_are_the_same() -> None:
    """Over ranks and frames the token losses and gradients are added up: they do not tell the chunks apart."""
    assert chunk_rows(LossConfig(), "cpu") < chunk_rows(LossConfig(), "cuda")
    assert chunk_rows(LossConfig(chunk_size=7), "cpu") == chunk_rows(LossConfig(chunk_size=7), "cuda") == 7
    draws = torch.Generator().manual_seed(1)
    states, weight = (torch.randn(n, WIDTH, generator=draws) for n in (5000, OFFSET + CODES))
    targets, frames = (torch.randint(n, (5000,), generator=draws) for n in (CODES, 4))
    found = []
    for device in "cpu", "cuda":
        ours = [x.clone().requires_grad_() for x in (states, weight)]
        config = LossConfig(chunk_size=chunk_rows(LossConfig(), device))
        loss, token_loss = masked_cross_entropy(*ours, OFFSET, targets=targets, config=config)
        sums, counts = frame_loss_sums(token_loss, frames, 4)
        found.append([loss.detach(), sums / counts, *torch.autograd.grad(loss, ours)])
    for few, many in zip(*found, strict=True):
        torch.testing.assert_close(few, many, atol=1e-6, rtol=1e-6)


def test_the_gradient_of_a_bf16_matrix_is_summed_up_in_fp32_and_rounded_once() -> None:
    """A thousand chunks whose sum bf16 would soon no longer move."""
    states = torch.ones(1000, WIDTH)
    weight = torch.zeros(2, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(1000, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = masked_cross_entropy(states, weight, 0, targets=targets, config=LossConfig(chunk_size=1))
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    assert weight.grad[:, 0].tolist() == [-0.5, 0.5]


def test_one_gradient_alone(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weight, targets = inputs
    loss, _ = masked_cross_entropy(states, weight.detach(), OFFSET, targets=targets, config=LossConfig())
    loss.backward()
    assert states.grad is not None and weight.grad is None


def test_no_hidden_token_is_a_loss_of_zero(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weight, targets = inputs
    loss, token_loss = masked_cross_entropy(states[:0], weight, OFFSET, targets=targets[:0], config=LossConfig())
    loss.backward()
    assert loss.item() == 0 and token_loss.numel() == 0
    assert weight.grad is not None and weight.grad.abs().max() == 0


def test_autocast_keeps_loss_and_gradients_in_fp32(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    states, weight = (x.detach().float().requires_grad_() for x in inputs[:2])
    exact, _ = masked_cross_entropy(states, weight, OFFSET, targets=inputs[2], config=LossConfig())
    with torch.autocast("cpu", torch.bfloat16):
        loss, token_loss = masked_cross_entropy(states, weight, OFFSET, targets=inputs[2], config=LossConfig())
    loss.backward()
    assert loss.dtype == token_loss.dtype == torch.float32
    assert states.grad is not None and states.grad.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_settings_out_of_range_are_refused() -> None:
    with refused(ConfigError, where="loss.chunk_size"):
        LossConfig(chunk_size=0)
    with refused(ConfigError, where="loss.z_loss"):
        LossConfig(z_loss=float("nan"))


def test_large_logits_do_not_overflow() -> None:
    states = torch.tensor([[1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    loss, _ = masked_cross_entropy(states, weight, 0, targets=torch.tensor([1]), config=LossConfig())
    loss.backward()
    assert loss.item() == 2e4
    assert states.grad is not None and states.grad.item() == 2


class Products(TorchDispatchMode):
    """Notes the shape of every matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        made = operation(*arguments, **(named or {}))
        if "mm" in str(operation):
            self.shapes.add(tuple(made.shape))
        return made


@pytest.mark.parametrize("training", [True, False])
def test_without_gradients_none_is_made(training: bool, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """A validation at real sizes would allocate a gigabyte for it."""
    states, weight, targets = inputs
    with torch.set_grad_enabled(training), Products() as products:
        loss, _ = masked_cross_entropy(states, weight, OFFSET, targets=targets, config=LossConfig())
    assert ((CODES, WIDTH) in products.shapes) is training
    assert loss.item() == pytest.approx(F.cross_entropy(states @ weight[OFFSET:].T, targets).item())


def test_on_a_gpu_sums_are_the_same_where_torch_cannot_add_a_product_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(1)
    numbers = [torch.randn(n, WIDTH, generator=draws) for n in (TOKENS, OFFSET + CODES)]
    codes = torch.randint(CODES, (TOKENS,), generator=draws)
    found = []
    for adds in True, False:
        monkeypatch.setattr("lumos_pl.loss.masked_cross_entropy.ADDS_TO_FP32", adds)
        with FakeCuda() as gpu:
            states, weight = (x.to(gpu.device).requires_grad_() for x in numbers)
            with torch.autocast("cuda", torch.bfloat16):
                config = LossConfig(chunk_size=16)
                loss, _ = masked_cross_entropy(states, weight, OFFSET, targets=codes.to(gpu.device), config=config)
            loss.backward()
            assert weight.grad is not None and gpu.mixed == []
            found.append(weight.grad.cpu())
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=1e-5)
    assert found[0].abs().sum() > 0
