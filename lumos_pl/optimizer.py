"""AdamW as the release uses it, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Defaults are the release's recipe.

    Args:
        weight_decay: on matrices only: embeddings, norms and biases are left alone.
        grad_clip: largest norm of all gradients together.
        warmup_steps: linear rise from 0 to `lr`.
        schedule: after the warm-up: `constant`, or down to `min_lr_ratio * lr` at the last step
            along a `cosine` or a `linear` slope.
        ema_decay: keep an exponential moving average of the weights; 0 is off.
    """

    lr: float = 5e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 4.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    min_lr_ratio: float = 0.1
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        ranges: list[tuple[str, float, float, float, str]] = [
            ("lr", self.lr, 0, math.inf, "above 0"),
            ("eps", self.eps, 0, 1, "above 0 and below 1"),
            ("grad_clip", self.grad_clip, 0, math.inf, "above 0"),
            *((f"betas[{i}]", beta, 0, 1, "above 0 and below 1") for i, beta in enumerate(self.betas)),
        ]
        for name, value, low, high, expected in ranges:
            if not low < value < high:
                raise ConfigError("out of range", where=f"optimizer.{name}", got=value, expected=expected)
        closed = [
            ("weight_decay", self.weight_decay, 1),
            ("min_lr_ratio", self.min_lr_ratio, 1),
            ("ema_decay", self.ema_decay, 1),
            ("warmup_steps", self.warmup_steps, math.inf),
        ]
        for name, value, high in closed:
            if not 0 <= value <= high:
                raise ConfigError("out of range", where=f"optimizer.{name}", got=value, expected=f"0 to {high}")
        if len(self.betas) != 2:
            raise ConfigError("must be two numbers", where="optimizer.betas", got=self.betas)


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, max_steps: int
) -> tuple[AdamW, LambdaLR]:
    """AdamW with decay on matrices only, and its per-step learning rate."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim == 2 and "norm" not in name and "embed" not in name
        (decayed if is_matrix else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    fused = all(p.is_cuda for p in decayed + kept)
    betas = (config.betas[0], config.betas[1])
    optimizer = AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=fused)
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(config, step, max_steps))


def apply_settings(optimizer: Optimizer, schedule: LambdaLR, config: OptimizerConfig) -> None:
    """Let the configuration decide again after a checkpoint restored the settings it was saved with."""
    schedule.base_lrs = [config.lr] * len(optimizer.param_groups)
    for group, factor in zip(optimizer.param_groups, schedule.lr_lambdas, strict=True):
        group["initial_lr"] = config.lr
        group["lr"] = config.lr * factor(schedule.last_epoch)
        group["betas"], group["eps"] = (config.betas[0], config.betas[1]), config.eps
    optimizer.param_groups[0]["weight_decay"] = config.weight_decay  # the matrices


def lr_factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Share of the full learning rate at `step` (from 0)."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps))
    match config.schedule:
        case "constant":
            return 1.0
        case "cosine":
            slope = (1 + math.cos(math.pi * done)) / 2
        case "linear":
            slope = 1 - done
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * slope


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema += (1 - decay) * (model - ema), parameter by parameter; sharded ones stay sharded."""
    for average, parameter in zip(ema.parameters(), model.parameters(), strict=True):
        average.lerp_(parameter, 1 - decay)
