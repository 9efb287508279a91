"""Cross-entropy at the hidden visual tokens, over the visual codes only, a chunk of logits at a time.

Full logits would be M x K: 20,000 hidden tokens by 64,000 codes take 5 GB in fp32. Here each chunk of
logits is turned into its loss and its gradients at once, in place, and then dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lumos_pl.machinery.torch_versions import ADDS_TO_FP32
from lumos_pl.settings.ranges import at_least, check_ranges, optional


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """
    Args:
        chunk_size: rows of logits held at a time; null: 2,048 on a GPU, where fewer chunks mean fewer additions to
            the head's gradient, and 256 on a CPU, where they fit into the cache.
        z_loss: weight of the mean of logsumexp squared, which keeps the logits' scale in bounds; 0: off.
        mean_over: what a step's loss is the mean over. `batches`: each micro-batch's own mean counts equally, as in
            the release, whose unit is a GPU's micro-batch. `targets`: all hidden tokens of the step, whatever
            micro-batch or rank they are in, so that it does not matter how a step is divided.
    """

    chunk_size: int | None = None
    z_loss: float = 0.0
    mean_over: Literal["batches", "targets"] = "batches"

    def __post_init__(self) -> None:
        check_ranges("loss", self, chunk_size=optional(at_least(1)), z_loss=at_least(0))


def chunk_rows(config: LossConfig, device_type: str) -> int:
    """Rows of logits held at a time on a device of this type."""
    if config.chunk_size is not None:
        return config.chunk_size
    return 2048 if device_type == "cuda" else 256


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes gradients in the forward pass, while a chunk's logits exist, and only scales them in the backward."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, weight: Tensor, offset: int, targets: Tensor, config: LossConfig
    ) -> tuple[Tensor, Tensor]:
        visual = weight[offset:]
        dtype = torch.get_autocast_dtype(states.device.type) if torch.is_autocast_enabled(states.device.type) else None
        if dtype is not None:
            visual = visual.to(dtype)  # once instead of in every chunk
        needs_states, needs_weight = ctx.needs_input_grad[:2]
        full = torch.promote_types(states.dtype, torch.float32)  # for the softmax: fp32, or fp64 if all is fp64
        grad_states = torch.empty_like(states) if needs_states else None
        grad_weight = torch.zeros_like(weight, dtype=full) if needs_weight else None  # summed in `full`
        token_loss = torch.empty(len(targets), dtype=full, device=states.device)
        z_sum = torch.zeros((), dtype=full, device=states.device)
        # The only tensor of this size, [chunk, K]; reused, since allocating it costs as much as filling it.
        n_rows = max(1, min(chunk_rows(config, states.device.type), len(targets)))
        buffer = torch.empty(n_rows, len(visual), dtype=full, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(targets), n_rows):
                rows = slice(start, start + n_rows)
                chunk, target = states[rows].to(visual.dtype), targets[rows, None]
                logits = _product(chunk, visual.T, buffer[: len(chunk)])
                target_logits = logits.gather(1, target)
                peak = logits.amax(1, keepdim=True)
                unscaled = logits.sub_(peak).exp_()  # softmax * total
                total = unscaled.sum(1, keepdim=True)
                log_z = total.log() + peak
                token_loss[rows] = (log_z - target_logits).squeeze(1)
                z_sum += log_z.square().sum()
                # d loss / d logits = softmax * (1 + 2 z log_z) - one_hot(target). Neither the scale of its rows nor
                # its ones are written out: both are applied to the smaller factor of each product.
                scale = (1 + 2 * config.z_loss * log_z) / total
                rounded = unscaled.to(visual.dtype)
                if grad_states is not None:
                    grad_states[rows] = (rounded @ visual) * scale - visual[target.squeeze(1)]
                if grad_weight is not None:
                    # On a CPU a product in bf16 is no faster than one in fp32, and would round the summands.
                    left = rounded if states.is_cuda else unscaled
                    visual_grad = grad_weight[offset:]
                    _add_product(visual_grad, left.T, chunk.to(left.dtype) * scale.to(left.dtype))
                    visual_grad.index_add_(0, target.squeeze(1), chunk.to(full), alpha=-1)
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        ctx.grads = grad_states, grad_weight
        ctx.count = max(1, len(targets))  # without any hidden visual token the loss is zero
        ctx.mark_non_differentiable(token_loss)
        return (token_loss.sum() + config.z_loss * z_sum) / ctx.count, token_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled in place, so there is no second backward pass
        states, weight = (None if grad is None else grad.mul_(grad_loss / ctx.count) for grad in grads)
        return states, weight, None, None, None


def _product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """left @ right in the precision of `out`, which is filled and returned; the factors' own may be lower."""
    if out.dtype == left.dtype:
        return torch.mm(left, right, out=out)
    if left.is_cuda:  # sums in fp32, and can return that without rounding
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the precision of `total`."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif not ADDS_TO_FP32:
        total.add_(_product(left, right, torch.empty_like(total)))
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def masked_cross_entropy(
    states: Tensor, weight: Tensor, offset: int, *, targets: Tensor, config: LossConfig
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the hidden visual tokens.

    Args:
        states: the decoder's states at those tokens, [M, D].
        weight: output matrix over the whole vocabulary, [V, D].
        offset: the vocabulary's first visual id; logits are computed only from there on.
        targets: the true codes, [M], below V - offset.
    Returns:
        the loss (z-loss included), a scalar; and each token's cross-entropy, [M], without gradient; both in
        fp32, or in fp64 if `states` is.
    """
    if not torch.is_grad_enabled():
        weight = weight.detach()  # the function cannot see grad mode, and would compute its gradient for nothing
    loss, token_loss = _ChunkedCrossEntropy.apply(states, weight, offset, targets, config)  # type: ignore[no-untyped-call]
    return loss, token_loss
