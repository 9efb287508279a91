"""AdamW with moments of a byte a number, by torchao; what it saves are plain tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lumos_pl.errors import ConfigError

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # and whether it has a sign
_SCALE = "_scale"  # after the name of a moment: what the codes of each block are multiplied by


class AdamW8bit(Optimizer):
    """
    torchao keeps a moment as a tensor of a class of its own, which no checkpoint is to name: it is saved as its codes
    (uint8, of the parameter's shape) and their scales, and is the same to the bit when it is read again. Moments of
    small parameters stay in fp32, as torchao has it.

    Source: arXiv:2110.02861.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "amsgrad": False})
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if any(hasattr(parameter, "full_tensor") for parameter in parameters):
            fix = "take trainer.strategy=ddp, or optimizer.kind=adamw"
            raise ConfigError("8-bit moments of sharded weights", where="optimizer.kind", got="adamw_8bit", fix=fix)
        self._by_torchao = _torchao().optim.AdamW8bit(parameters, lr=lr)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of AdamW; on a GPU its kernels are compiled, elsewhere they need no compiler."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        part = self._by_torchao
        part.param_groups = [group | {"lr": torch.tensor(group["lr"])} for group in self.param_groups]
        part.state = self.state
        on_gpu = any(p.is_cuda for group in self.param_groups for p in group["params"])
        with torch.compiler.set_stance("default" if on_gpu else "force_eager"):
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        saved["state"] = {number: _plain(state) for number, state in saved["state"].items()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # codes are given the parameter's type, which holds 0 to 255 exactly
        for parameter, state in self.state.items():
            for name, is_signed in MOMENTS.items():
                if (scale := state.pop(name + _SCALE, None)) is not None:
                    state[name] = _moment(parameter, state[name], scale, is_signed)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in state.items():
        is_coded = name in MOMENTS and hasattr(value, "codes")
        plain |= {name: value.codes, name + _SCALE: value.scale} if is_coded else {name: value}
    return plain


def _moment(parameter: Tensor, codes: Tensor, scale: Tensor, is_signed: bool) -> Tensor:
    """torchao's tensor of these codes.

    Raises:
        ValueError: they are not those of the parameter.
    """
    block = parameter.numel() // max(1, scale.numel())
    if codes.shape != parameter.shape or scale.ndim != 1 or block * scale.numel() != parameter.numel():
        raise ValueError(f"8-bit moments of {list(codes.shape)} with {list(scale.shape)} scales")
    kind = _torchao().optim.subclass_8bit.OptimState8bit
    moment: Any = kind.zeros(parameter.shape, is_signed, block, parameter.device, dtype=parameter.dtype)
    moment.codes.copy_(codes)
    moment.scale.copy_(scale)
    return moment  # type: ignore[no-any-return]


def _torchao() -> Any:
    try:
        import torchao.optim.subclass_8bit
    except ImportError as error:
        fix = "pip install 'lumos_pl[low-bit]'"
        raise ConfigError("8-bit moments are torchao's", where="optimizer.kind", got=str(error), fix=fix) from None
    return torchao
