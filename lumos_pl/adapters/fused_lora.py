"""The layer of `lora` without dropout, made on PEFT's: at home in a module of its own, by whose name it is pickled."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lumos_pl.adapters.config import NAME


class FusedLora(Linear):
    """PEFT's layer, which in training has no passes of its own over what is as long as the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[S, in] -> [S, out]; without gradients as PEFT has it, to the bit."""
        if not torch.is_grad_enabled():
            computed: Tensor = super().forward(x)
            return computed
        weight, a, b = self.base_layer.weight, self.lora_A[NAME].weight, self.lora_B[NAME].weight
        device = x.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            x, a, b = x.to(dtype), a.to(dtype), b.to(dtype)
        added: Tensor = _LowRankSum.apply(x, weight, a, b, self.scaling[NAME])  # type: ignore[no-untyped-call]
        return added


class _LowRankSum(torch.autograd.Function):
    """x W' + scaling (x A') B', of which nothing but x is kept; W has no gradient, and may be of few bits.

    With more tokens than inputs, W + scaling B A is made first: then the product is one, as without an adapter, and
    reads and writes what is as long as the tokens once. In bf16 it would round the sum, so there they are two. Thin
    matrices lie along what they are multiplied by: on a CPU that is four times as fast.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scaling = scaling
        matrix, is_sum = _to_multiply_by(x, weight, a, b, scaling)
        product = x @ matrix.T
        return product if is_sum else torch.addmm(product, x @ a.T, b.T, alpha=scaling)  # kept where recomputed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad_low, grad_x = F.linear(grad, b.T.contiguous()) * ctx.scaling, None
        if ctx.needs_input_grad[0]:
            matrix, is_sum = _to_multiply_by(x, weight, a, b, ctx.scaling)
            grad_x = grad @ matrix
            if not is_sum:
                grad_x.addmm_(grad_low, a)
        low = F.linear(x, a) * ctx.scaling
        grad_b = (low.T.contiguous() @ grad).T
        return grad_x, None, grad_low.T.contiguous() @ x, grad_b.contiguous(), None


def _to_multiply_by(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> tuple[Tensor, bool]:
    """The matrix, and whether the adapter's product is in it."""
    matrix = dense(weight, x.dtype)
    if x.shape[0] < x.shape[1] or matrix.dtype in (torch.bfloat16, torch.float16):
        return matrix, False
    return torch.addmm(matrix, b, a, alpha=scaling), True


def dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A matrix to multiply by, of whatever it is kept in."""
    if hasattr(weight, "get_original_weight"):  # torchao's NF4Tensor
        original: Tensor = weight.get_original_weight()
        return original.to(dtype)
    return weight.dequantize().to(dtype) if is_traceable_wrapper_subclass(weight) else weight.to(dtype)
