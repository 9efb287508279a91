from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lumos_pl.errors import ConfigError
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.optimizer import (
    OPTIMIZERS,
    OptimizerConfig,
    apply_settings,
    build_optimizer,
    lr_factor,
    skip_unless_finite,
    update_ema,
)
from lumos_pl.seeding import generator
from tests.fake_cuda import FakeCuda
from tests.refusals import refused


def test_decay_on_matrices_only(make_decoder: Callable[..., LumosTransformer]) -> None:
    net = make_decoder()
    optimizer, _ = build_optimizer(OptimizerConfig(weight_decay=0.1), net.named_parameters(), max_steps=10)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay[id(parameter)] for name, parameter in net.named_parameters()}
    assert names["lm_head.weight"] == names["model.layers.0.mlp.up_proj.weight"] == 0.1
    plain = [name for name, value in names.items() if value == 0]
    assert len(plain) == 1 + 1 + 2 * 2 + 4 * 2  # embedding, last norm, two norms and four QK-norm tensors a layer
    assert all("norm" in name or "embed" in name for name in plain)


def test_learning_rate_by_hand() -> None:
    constant = OptimizerConfig(warmup_steps=4)
    assert [lr_factor(constant, step, 100) for step in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    cosine = OptimizerConfig(warmup_steps=0, schedule="cosine", min_lr_ratio=0.1)
    assert [lr_factor(cosine, step, 10) for step in (0, 5, 10)] == pytest.approx([1, 0.55, 0.1])
    linear = OptimizerConfig(warmup_steps=2, schedule="linear", min_lr_ratio=0)
    assert [lr_factor(linear, step, 10) for step in (2, 6, 10, 50)] == pytest.approx([1, 0.5, 0, 0])
    assert lr_factor(linear, 2, 2) == 1  # the warm-up takes all steps


def test_the_configuration_decides_after_a_restore() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    old, new = OptimizerConfig(lr=1.0, warmup_steps=2), OptimizerConfig(lr=0.5, warmup_steps=0, betas=[0.8, 0.9])
    saved, saved_schedule = build_optimizer(old, [("w", weight)], max_steps=10)
    for _ in range(3):
        saved.step()
        saved_schedule.step()
    optimizer, schedule = build_optimizer(new, [("w", weight)], max_steps=10)
    optimizer.load_state_dict(saved.state_dict())
    schedule.load_state_dict(saved_schedule.state_dict())
    apply_settings(optimizer, schedule)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (0.5, (0.8, 0.9))
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_every_group_is_set_anew_amid_the_warmup(weight_decay: float) -> None:
    named = [("w", torch.nn.Parameter(torch.ones(2, 2))), ("b", torch.nn.Parameter(torch.ones(2)))]
    new = OptimizerConfig(lr=1.0, warmup_steps=8, eps=1e-6, weight_decay=weight_decay)
    saved, saved_schedule = build_optimizer(OptimizerConfig(warmup_steps=0), named, max_steps=10)
    for _ in range(3):
        saved.step()
        saved_schedule.step()
    optimizer, schedule = build_optimizer(new, named, max_steps=10)
    optimizer.load_state_dict(saved.state_dict())
    schedule.load_state_dict(saved_schedule.state_dict())
    apply_settings(optimizer, schedule)
    decayed, kept = optimizer.param_groups
    assert decayed["lr"] == kept["lr"] == 0.5  # the fourth of eight warm-up steps
    assert decayed["eps"] == kept["eps"] == 1e-6
    assert decayed["initial_lr"] == kept["initial_lr"] == 1.0
    assert (decayed["weight_decay"], kept["weight_decay"]) == (weight_decay, 0)


def test_average_by_hand(make_decoder: Callable[..., LumosTransformer]) -> None:
    average, net = make_decoder(seed=1), make_decoder(seed=2)
    before = average.lm_head.weight.clone()
    update_ema(average, net, decay=0.9)
    torch.testing.assert_close(average.lm_head.weight, 0.9 * before + 0.1 * net.lm_head.weight)


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"lr": 0.0}, "lr"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas[1]"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"ema_decay": 1.5}, "ema_decay"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio"),
        ({"grad_clip": 0.0}, "grad_clip"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object], where: str) -> None:
    with refused(ConfigError, where=f"optimizer.{where}"):
        OptimizerConfig(**wrong)  # type: ignore[arg-type]


MUON = OptimizerConfig(kind="muon", lr=0.01, muon_lr=0.02, weight_decay=0.1, warmup_steps=2)


def test_muon_takes_the_layers_matrices_and_nothing_else(make_decoder: Callable[..., LumosTransformer]) -> None:
    net = make_decoder()
    optimizer, _ = build_optimizer(MUON, net.named_parameters(), max_steps=10)
    matrices, rest = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    by_muon = {name for name, parameter in net.named_parameters() if id(parameter) in matrices}
    assert by_muon == {name for name, p in net.named_parameters() if "_proj" in name and p.ndim == 2}
    assert len(matrices) + len(rest) == len(list(net.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def _train(net: LumosTransformer, optimizer: Optimizer, schedule: LambdaLR, steps: int) -> None:
    for step in range(steps):
        for number, parameter in enumerate(net.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
        optimizer.step()
        schedule.step()


def test_muon_and_adamw_are_each_what_torch_makes_of_them(make_decoder: Callable[..., LumosTransformer]) -> None:
    ours, theirs = make_decoder(), make_decoder()
    _train(ours, *build_optimizer(MUON, ours.named_parameters(), max_steps=10), steps=3)
    named = dict(theirs.named_parameters())
    matrices = [p for name, p in named.items() if "_proj" in name and p.ndim == 2]
    rest = [p for name, p in named.items() if not ("_proj" in name and p.ndim == 2)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for step in range(3):
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = (0.02 if "momentum" in group else 0.01) * lr_factor(MUON, step, 10)
        for number, parameter in enumerate(theirs.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(100 * step + number))
        muon.step()
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_muon_in_fp32_does_what_torchs_does_but_for_its_rounding(make_decoder: Callable[..., LumosTransformer]) -> None:
    before, rounded, exact = make_decoder(), make_decoder(), make_decoder()
    for net, kind in (rounded, "muon"), (exact, "muon_fp32"):
        config = replace(MUON, kind=kind)
        _train(net, *build_optimizer(config, net.named_parameters(), max_steps=10), steps=3)
    for (name, start), a, b in zip(before.named_parameters(), rounded.parameters(), exact.parameters(), strict=True):
        assert (a - b).norm() < 0.03 * (a - start).norm(), name
    assert any(not torch.equal(a, b) for a, b in zip(rounded.parameters(), exact.parameters(), strict=True))


def test_muon_goes_on_from_a_saved_state_as_if_never_stopped(make_decoder: Callable[..., LumosTransformer]) -> None:
    straight, resumed = make_decoder(), make_decoder()
    optimizer, schedule = build_optimizer(MUON, straight.named_parameters(), max_steps=10)
    _train(straight, optimizer, schedule, steps=2)
    resumed.load_state_dict(straight.state_dict())
    restored, restored_schedule = build_optimizer(MUON, resumed.named_parameters(), max_steps=10)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    restored_schedule.load_state_dict(schedule.state_dict())
    apply_settings(restored, restored_schedule)
    for net, pair in (straight, (optimizer, schedule)), (resumed, (restored, restored_schedule)):
        _train(net, *pair, steps=2)
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_settings_of_muon_are_set_anew(make_decoder: Callable[..., LumosTransformer]) -> None:
    saved, saved_schedule = build_optimizer(MUON, make_decoder().named_parameters(), max_steps=10)
    new = replace(MUON, lr=0.5, muon_lr=0.25, weight_decay=0.0, warmup_steps=1)
    optimizer, schedule = build_optimizer(new, make_decoder().named_parameters(), max_steps=10)
    optimizer.load_state_dict(saved.state_dict())
    schedule.load_state_dict(saved_schedule.state_dict())
    apply_settings(optimizer, schedule)
    assert [group["initial_lr"] for group in optimizer.param_groups] == schedule.base_lrs == [0.25, 0.5]
    assert optimizer.param_groups[0]["weight_decay"] == 0


def test_a_gpu_skips_an_update_by_itself_only_where_one_kernel_makes_it(
    make_decoder: Callable[..., LumosTransformer],
) -> None:
    weights = make_decoder().named_parameters
    adamw, muon = (build_optimizer(config, weights(), max_steps=10)[0] for config in (OptimizerConfig(), MUON))
    with FakeCuda() as gpu:
        norm = torch.ones((), device=gpu.device)
        assert skip_unless_finite(adamw, norm) and not skip_unless_finite(muon, norm)
        adamw.param_groups[0]["fused"] = False  # as a checkpoint of before has it
        assert not skip_unless_finite(adamw, norm)
    assert not skip_unless_finite(adamw, torch.tensor(1.0))


@pytest.mark.parametrize(("norm", "moves"), [(1.0, True), (math.nan, False), (math.inf, False)])
def test_torchs_fused_update_does_what_it_is_told(norm: float, moves: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, _ = build_optimizer(OptimizerConfig(lr=1.0, warmup_steps=0), [("w", weight)], max_steps=10)
    optimizer.found_inf = (~torch.isfinite(torch.tensor(norm))).float()  # as `skip_unless_finite` sets it
    weight.grad = torch.full_like(weight, norm)
    optimizer.step()
    assert bool((weight != 1).all()) is moves and (weight.isfinite().all())
    assert optimizer.state[weight]["step"] == moves


# -- of 8 bits ---------------------------------------------------------------------------------------

OF_8_BITS = OptimizerConfig(kind="adamw_8bit", lr=0.01, warmup_steps=2, weight_decay=0.1)


def _taught(optimizer: Optimizer, schedule: LambdaLR, steps: range) -> None:
    """Steps whose gradients are a function of their numbers, towards zero and noisy."""
    for step in steps:
        noise = generator(0, "gradients", step)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=noise)
        optimizer.step()
        schedule.step()


def _two_weights() -> list[tuple[str, nn.Parameter]]:
    shapes = {"matrix": (64, 128), "norm": (8,)}  # moments of the latter are too small to be worth it
    return [(n, nn.Parameter(torch.randn(s, generator=generator(1, n)))) for n, s in shapes.items()]


def test_moments_of_8_bits_learn_as_others_and_go_on_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    exact, whole, half, later = (_two_weights() for _ in range(4))
    _taught(*build_optimizer(replace(OF_8_BITS, kind="adamw"), exact, max_steps=40), range(12))
    _taught(*build_optimizer(OF_8_BITS, whole, max_steps=40), range(12))
    moved = (exact[0][1] - _two_weights()[0][1]).norm()
    assert (whole[0][1] - exact[0][1]).norm() < 0.1 * moved

    optimizer, schedule = build_optimizer(OF_8_BITS, half, max_steps=40)
    _taught(optimizer, schedule, range(5))
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "half.pt")
    saved, of_schedule = torch.load(tmp_path / "half.pt", weights_only=True)
    assert sum(t.nbytes for t in saved["state"][0].values()) < 2.1 * 64 * 128
    assert {type(tensor) for state in saved["state"].values() for tensor in state.values()} == {torch.Tensor}
    for (_, parameter), (_, other) in zip(later, half, strict=True):
        parameter.data = other.detach().clone()
    optimizer, schedule = build_optimizer(OF_8_BITS, later, max_steps=40)
    optimizer.load_state_dict(saved)
    schedule.load_state_dict(of_schedule)
    apply_settings(optimizer, schedule)
    _taught(optimizer, schedule, range(5, 12))
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(later, whole, strict=True))

    saved["state"][0]["exp_avg_scale"] = saved["state"][0]["exp_avg_scale"][:5]
    with pytest.raises(ValueError, match="5"):
        optimizer.load_state_dict(saved)


def test_without_torchao_moments_of_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim.subclass_8bit", None)
    with refused(ConfigError, where="optimizer.kind") as caught:
        build_optimizer(OF_8_BITS, _two_weights(), max_steps=40)
    assert "low-bit" in str(caught.value.fix)


# -- of one's own ----------------------------------------------------------------------------------


@pytest.fixture
def own_kind() -> Iterator[str]:
    """SGD on everything, as a user would register it."""
    OPTIMIZERS["own.sgd"] = lambda config, named: torch.optim.SGD([p for _, p in named], lr=config.lr)
    yield "own.sgd"
    del OPTIMIZERS["own.sgd"]


def test_an_optimizer_of_ones_own_has_the_schedule_and_is_set_anew(own_kind: str) -> None:
    weight = nn.Parameter(torch.zeros(3))
    old = OptimizerConfig(kind=own_kind, lr=0.5, warmup_steps=2)
    saved, saved_schedule = build_optimizer(old, [("w", weight)], max_steps=10)
    assert saved.param_groups[0]["lr"] == 0.25
    optimizer, schedule = build_optimizer(replace(old, lr=0.1), [("w", weight)], max_steps=10)
    optimizer.load_state_dict(saved.state_dict())
    schedule.load_state_dict(saved_schedule.state_dict())
    apply_settings(optimizer, schedule)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    "returned",
    [
        lambda config, named: None,
        lambda config, named: torch.optim.SGD([named[0][1]], lr=config.lr),
        lambda config, named: torch.optim.SGD([nn.Parameter(torch.zeros(1)) for _ in named], lr=config.lr),
    ],
)
def test_what_is_no_optimizer_of_all_parameters_is_refused(returned: Callable[..., object], own_kind: str) -> None:
    OPTIMIZERS[own_kind] = returned  # type: ignore[assignment]
    named = [(name, nn.Parameter(torch.zeros(2))) for name in "ab"]
    with refused(ConfigError, where="optimizer.kind own.sgd"):
        build_optimizer(OptimizerConfig(kind=own_kind), named, max_steps=10)
