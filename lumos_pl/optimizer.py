"""AdamW as the release uses it, Muon for small models from scratch, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lumos_pl.errors import ConfigError
from lumos_pl.models.parallel import own_part
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import above, at_least, between, check_ranges

Named = Sequence[tuple[str, nn.Parameter]]
OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Named], Optimizer]] = {}
"""Called with the settings and all named parameters; returns their optimizer at its full learning rate."""

SETTINGS = ("lr", "betas", "eps", "weight_decay")  # of a parameter group, decided by the configuration
FUSED = ("cpu", "cuda")  # devices that have a fused AdamW


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights are updated; the defaults are the release's recipe.

    Args:
        kind: `adamw`; `adamw_8bit`: with 8-bit moments (extra `low-bit`), for training a whole model on one GPU;
            or `muon`: Muon on the matrices of the layers and AdamW on everything else, which learns faster per step
            from scratch; `muon_fp32`: the same without torch's rounding to bf16, which takes longer than the model
            itself on a CPU without bf16 units; see `OPTIMIZERS`.
        lr: of AdamW.
        muon_lr: of the matrices under Muon, before it is scaled by their shape.
        betas: of AdamW: how slowly its averages of the gradients and of their squares move.
        eps: of AdamW: keeps it from dividing by zero.
        weight_decay: on matrices only; embeddings, norms and biases, and under Muon the head, are left alone.
        grad_clip: largest norm of all gradients together.
        warmup_steps: steps of linear rise to `lr`.
        schedule: after the warm-up: `constant`, or down to `min_lr_ratio * lr` at the last step
            along a `cosine` or a `linear` slope; `trapezoid`: constant, then linear over the last fifth, so that a
            training may be resumed with a later end before that slope begins.
        min_lr_ratio: share of `lr` that a schedule ends at.
        ema_decay: decay of an exponential moving average of the weights; 0: no average.
    """

    kind: str = kind_field("adamw", OPTIMIZERS)
    lr: float = 5e-5
    muon_lr: float = 0.02
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    grad_clip: float = 4.0
    warmup_steps: int = 100
    schedule: Literal["constant", "cosine", "linear", "trapezoid"] = "constant"
    min_lr_ratio: float = 0.1
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        check_kind(self.kind, OPTIMIZERS, "optimizer.kind")
        check_ranges(
            "optimizer",
            self,
            lr=above(0),
            muon_lr=above(0),
            eps=above(0, below=1),
            grad_clip=above(0),
            weight_decay=between(0, 1),
            min_lr_ratio=between(0, 1),
            ema_decay=between(0, 1),
            warmup_steps=at_least(0),
        )
        for i, beta in enumerate(self.betas):
            above(0, below=1).check(f"optimizer.betas[{i}]", beta)
        if len(self.betas) != 2:
            raise ConfigError("must be two numbers", where="optimizer.betas", got=self.betas)

    def idle(self) -> dict[str, str]:
        """See settings/idle.py; a custom kind may read any setting."""
        of_kind = {"muon_lr": "kind"} if self.kind in ("adamw", "adamw_8bit") else {}
        return of_kind | ({"min_lr_ratio": "schedule"} if self.schedule == "constant" else {})


class MuonFp32(Muon):
    """torch's Muon, orthogonalizing in the matrices' own precision instead of bf16; its state is the same."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step as of torch's Muon with its defaults: Nesterov momentum, learning rate scaled by the shape."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if (grad := parameter.grad) is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(grad)
                average = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
                update = _orthogonalized(
                    grad.lerp(average, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))
        return loss


def _orthogonalized(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Approximately U V' of the matrix U S V', [rows, columns], by the quintic Newton-Schulz iteration."""
    if matrix.shape[0] > matrix.shape[1]:
        return _orthogonalized(matrix.t(), coefficients, steps).t()
    a, b, c = coefficients
    found: Tensor = matrix / matrix.norm().clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found


class MuonAdamW(Optimizer):
    """Muon and AdamW as one optimizer: one list of groups, one state, one schedule.

    Args:
        muon, adamw: over different parameters; from then on their settings live in the shared groups.
    """

    def __init__(self, muon: Muon, adamw: AdamW) -> None:
        self._parts: list[tuple[Optimizer, int]] = [(muon, len(muon.param_groups)), (adamw, len(adamw.param_groups))]
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let both parts work on this optimizer's own groups and state."""
        start = 0
        for part, n_groups in self._parts:
            part.param_groups = self.param_groups[start : start + n_groups]
            part.state = self.state
            start += n_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of each part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, _ in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # replaces the groups and the state
        self._share()


def _split(parameters: Named, *, head: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split into matrices, which decay, and the rest: embeddings, norms, biases and, without `head`, the head."""
    matrices: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in parameters:
        is_matrix = parameter.ndim == 2 and not any(part in name for part in ("norm", "embed"))
        (matrices if is_matrix and (head or "lm_head" not in name) else kept).append(parameter)
    return matrices, kept


def _adamw(config: OptimizerConfig, groups: list[dict[str, Any]]) -> AdamW:
    fused = all(p.device.type in FUSED for group in groups for p in group["params"])
    return AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=fused)


def adamw(config: OptimizerConfig, parameters: Named) -> Optimizer:
    """AdamW with weight decay on the matrices only, which are its first group."""
    matrices, kept = _split(parameters, head=True)
    decayed = {"params": matrices, "weight_decay": config.weight_decay}
    return _adamw(config, [decayed, {"params": kept, "weight_decay": 0.0}])


def muon(config: OptimizerConfig, parameters: Named, *, by: type[Muon] = Muon) -> Optimizer:
    """Muon on the matrices of the layers, AdamW without weight decay on everything else.

    The head's rows stand for codes and are not directions, so Muon does not update it; nor is it decayed.
    """
    matrices, kept = _split(parameters, head=False)
    rest = _adamw(config, [{"params": kept, "weight_decay": 0.0}])
    return MuonAdamW(by(matrices, lr=config.muon_lr, weight_decay=config.weight_decay), rest)


def adamw_8bit(config: OptimizerConfig, parameters: Named) -> Optimizer:
    """Like `adamw`, with 8-bit moments."""
    from lumos_pl.optimizer_8bit import AdamW8bit

    matrices, kept = _split(parameters, head=True)
    decayed: dict[str, Any] = {"params": matrices, "weight_decay": config.weight_decay}
    groups = [decayed, {"params": kept}]
    return AdamW8bit(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps)


OPTIMIZERS |= {"adamw": adamw, "adamw_8bit": adamw_8bit, "muon": muon, "muon_fp32": partial(muon, by=MuonFp32)}


def build_optimizer(
    config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]], *, max_steps: int
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer of the configured kind, and its per-step learning rate.

    Raises:
        ConfigError: a custom kind returned something that is not an optimizer of these parameters.
    """
    named = list(parameters)
    optimizer = OPTIMIZERS[config.kind](config, named)
    if not isinstance(optimizer, Optimizer):
        got = type(optimizer).__name__
        raise ConfigError("no optimizer", where=f"optimizer.kind {config.kind}", got=got, expected="a torch Optimizer")
    taken = sorted(id(p) for group in optimizer.param_groups for p in group["params"])
    if taken != sorted(id(p) for _, p in named):
        got, expected = f"{len(taken)} parameters", f"all {len(named)}, each once"
        raise ConfigError("other parameters", where=f"optimizer.kind {config.kind}", got=got, expected=expected)
    optimizer.configured = [  # type: ignore[attr-defined]  # what `apply_settings` restores
        {name: group[name] for name in SETTINGS if name in group} for group in optimizer.param_groups
    ]
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(config, step, max_steps))


def apply_settings(optimizer: Optimizer, schedule: LambdaLR) -> None:
    """Let the configuration decide again, after a checkpoint restored the settings that it was saved with."""
    configured: list[dict[str, Any]] = optimizer.configured  # type: ignore[attr-defined]
    for place, (group, own, factor) in enumerate(
        zip(optimizer.param_groups, configured, schedule.lr_lambdas, strict=True)
    ):
        group.update(own)
        schedule.base_lrs[place] = group["initial_lr"] = own["lr"]
        group["lr"] = own["lr"] * factor(schedule.last_epoch)


def lr_factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """Share of the full learning rate at `step`, counted from 0."""
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
        case "trapezoid":
            slope = min(1.0, (1 - done) * 5)
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * slope


def skip_unless_finite(optimizer: Optimizer, norm: Tensor) -> bool:
    """Make a GPU skip the next update if the gradients' norm is not finite; returns whether it can.

    This sets the flag that GradScaler would pass to a fused optimizer, so the host need not wait for the norm.
    """
    fused = isinstance(optimizer, AdamW) and all(group["fused"] for group in optimizer.param_groups)
    if not (fused and norm.is_cuda):
        return False
    optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
    return True


def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema += (1 - decay) * (model - ema), for all parameters in one kernel; of sharded ones each rank's own part."""
    trained = dict(model.named_parameters())
    pairs = [(own_part(average.detach()), own_part(trained[name].detach())) for name, average in ema.named_parameters()]
    get_ema_multi_avg_fn(decay)([average for average, _ in pairs], [parameter for _, parameter in pairs], 0)
