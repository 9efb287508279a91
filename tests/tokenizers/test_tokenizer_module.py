from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lumos_pl.errors import CheckpointError, ConfigError, NumericError
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.reconstruction import CodebookUse, PixelBatch, mean_psnr, reconstruct
from lumos_pl.tokenizers.reconstruction_loss import ReconstructionConfig
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from lumos_pl.tokenizers.trained import Levels, Reconstruction, TokenizerConfig
from tests.driven import driven
from tests.refusals import refused

SMALL = TokenizerConfig(levels=[5, 5], width=16, patch_width=8, blocks=1)
FAST = OptimizerConfig(lr=1e-2, weight_decay=0.0, grad_clip=1.0, warmup_steps=5)


def make_module(seed: int = 0, optimizer: OptimizerConfig = FAST, **loss: float) -> TokenizerModule:
    module = TokenizerModule(SMALL, ReconstructionConfig(**loss), optimizer, seed=seed)
    driven(module)
    return module


def tiny_clips(n: int = 8, frames: int = 5, side: int = 16) -> PixelBatch:
    """Each of one colour."""
    colors = torch.randint(40, 216, (n, 1, 1, 1, 3), generator=generator(0, "colors"), dtype=torch.uint8)
    return PixelBatch(colors.expand(n, frames, side, side, 3), [f"{i}.mp4" for i in range(n)])


def psnr(module: TokenizerModule, batch: PixelBatch) -> float:
    return float(mean_psnr(reconstruct(module.net, batch.frames)[0], batch.frames)[0])


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a module logs."""
    values: dict[str, Any] = {}
    monkeypatch.setattr(TokenizerModule, "log", lambda self, name, value, **_: values.update({name: value}))
    monkeypatch.setattr(TokenizerModule, "log_dict", lambda self, content: values.update(content))
    return values


def test_a_run_from_before_a_setting_goes_on() -> None:
    """What its checkpoint says of the tokenizer holds nothing of the settings that came later."""
    before = {"levels": [5, 5], "strides": [4, 8, 8], "width": 16, "patch_width": 8, "blocks": 1, "patch_blocks": 1}
    assert make_module().identity()["tokenizer"] == before
    other = TokenizerModule(replace(SMALL, padding="replicate"), ReconstructionConfig(), FAST)
    assert other.identity()["tokenizer"] == before | {"padding": "replicate"}
    no_dictionary = TokenizerModule(replace(SMALL, entries=7), ReconstructionConfig(), FAST)
    assert no_dictionary.identity()["tokenizer"] == before


def test_a_training_goes_on_with_the_weights_frozen_that_were_frozen_then(tmp_path: Path) -> None:
    """The optimizer's state would be given to other parameters, by their order alone."""
    names = [name for name, _ in make_module().named_parameters()]

    def fit(frozen: str, *, resume: bool = False) -> None:
        module, quiet = make_module(), {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        module.get_parameter(frozen).requires_grad_(False)
        saved = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        trainer = Trainer(accelerator="cpu", devices=1, max_steps=1 + resume, callbacks=[saved], **quiet)
        checkpoint = tmp_path / "step=1.ckpt" if resume else None
        clips = DataLoader([tiny_clips(n=2)] * 2, batch_size=None)
        trainer.fit(module, clips, ckpt_path=checkpoint, weights_only=True)

    fit(names[0])
    fit(names[0], resume=True)
    with refused(CheckpointError, where=min(names[:2])):
        fit(names[1], resume=True)


def test_twenty_steps_improve_the_reconstruction(logged: dict[str, Any]) -> None:
    module, batch = make_module(), tiny_clips()
    setup: Any = module.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    before = psnr(module, batch)
    for index in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.training_step(batch, index)
        assert loss.dtype == torch.float32
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        schedule.step()
    assert psnr(module, batch) > before + 3
    assert float(logged["loss/train"]) == loss.item()


def test_weights_are_drawn_from_the_seed_alone() -> None:
    state = torch.get_rng_state()
    first = make_module(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = make_module(seed=1), make_module(seed=2)
    torch.set_rng_state(state)
    weights = [module.net.cell_in.weight for module in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


class _Shifted(nn.Module):
    """Gives its pictures back, brighter, and with a frame too many, as of a group that was filled."""

    def forward(self, pictures: Tensor) -> Reconstruction:
        off_level = torch.tensor([0.1, 0.3])
        brighter = torch.cat([pictures + 0.5, torch.full_like(pictures[:, :, :1], 9)], dim=2)
        return Reconstruction(brighter, Levels(1 + off_level, off_level, torch.tensor([5, 5])))


def test_the_loss_is_squared_and_absolute_error_of_the_given_frames_and_the_margin() -> None:
    module = make_module(l1_weight=0.1, margin_weight=0.2)
    module.net = _Shifted()  # type: ignore[assignment]
    assert module.training_step(tiny_clips(), 0).item() == pytest.approx(0.25 + 0.1 * 0.5 + 0.2 * 0.05)


def test_numbers_that_are_not_finite_name_the_clips(logged: dict[str, Any]) -> None:
    module, batch = make_module(), tiny_clips(2)
    with torch.no_grad():
        next(module.parameters()).fill_(math.nan)
    module.training_step(batch, 0).backward()
    with refused(NumericError, where="step 0, samples 0.mp4, 1.mp4"):
        module.configure_gradient_clipping(None)  # type: ignore[arg-type]


def test_validation_is_of_the_pictures_that_come_out_of_the_codes(logged: dict[str, Any]) -> None:
    module, batch = make_module(l1_weight=0.0), tiny_clips(frames=7)
    with torch.no_grad():
        module.net.code_in.weight.mul_(20)  # so that the clips take different codes
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        module.validation_step(batch, 0)
    codes = module.net.encode(batch.frames)
    difference = module.net.decode(codes)[:, :7].float() - batch.frames.float()
    squared = difference.square().flatten(1).mean(1)
    assert float(logged["psnr/val"].compute()) == pytest.approx((10 * torch.log10(255**2 / squared)).mean().item())
    assert float(logged["loss/val"].compute()) == pytest.approx((difference / 127.5).square().mean().item(), rel=1e-4)
    module.on_validation_epoch_end()
    assert len(codes.unique()) > len(codes[:1].unique())
    assert float(logged["codebook/used"]) == pytest.approx(len(codes.unique()) / 25)
    module.validation_step(PixelBatch(batch.frames[:1], batch.names[:1]), 0)
    module.on_validation_epoch_end()
    assert float(logged["codebook/used"]) == pytest.approx(len(codes[:1].unique()) / 25)  # nothing of before


def test_codebook_use_over_several_updates() -> None:
    metric = CodebookUse(8)
    metric.update(torch.tensor([[0, 0], [1, 1]]))
    metric.update(torch.tensor([[2, 3], [3, 2]]))
    assert {name: float(value) for name, value in metric.compute().items()} == pytest.approx(
        {"used": 0.5, "perplexity": 4}
    )
    metric.update(torch.zeros(1000, dtype=torch.long))
    assert 1 < metric.compute()["perplexity"] < 1.1


@pytest.mark.parametrize("wrong", [{"kind": "muon"}, {"ema_decay": 0.9}])
def test_optimizers_that_do_not_fit_are_refused(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with refused(ConfigError, where=f"optimizer.{name}", got=wrong[name]):
        make_module(optimizer=OptimizerConfig(**wrong))


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with refused(ConfigError, where="loss.l1_weight"):
        ReconstructionConfig(l1_weight=weight)
