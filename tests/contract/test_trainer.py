"""The Trainer's arguments do what they say, or one line says why not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from torch import Tensor
from torch.optim import SGD, Optimizer

from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.kind_loss import KindLoss
from callbacks.source_loss import SourceLoss
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.batch import MaskedBatch, PackedBatch
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig
from tests.contract.conftest import LAYOUT, MODEL, Appearances, MakeTrainer, make_data, make_module, same_weights
from tests.refusals import refused

Fit = Callable[..., tuple[LumosModule, Appearances]]
PROJECTION = "model.layers.0.self_attn.{}_proj.weight"
MOVES = OptimizerConfig(lr=1e-2, warmup_steps=2, ema_decay=0.9, schedule="cosine")


class Gradients(Callback):
    """The gradients that the optimizer was given last."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.largest = max(float(p.grad.abs().max()) for p in pl_module.parameters() if p.grad is not None)
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))


# -- interrupted and resumed -----------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_resumed_training_is_the_one_that_never_stopped(accumulate: int, fit: Fit) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "accumulate_grad_batches": accumulate}
    whole, all_appearances = fit(module=make_module(optimizer=MOVES), folder="whole", **settings)
    resumed, appearances = fit(module=make_module(optimizer=MOVES), folder="resumed", resume=("whole", 3), **settings)
    assert appearances.steps == [taken for taken in all_appearances.steps if taken[0] >= 3]
    assert same_weights(whole, resumed) and whole.ema is not None


class SaveAmidAStep(Callback):
    def __init__(self, batch: int, file: Path) -> None:
        self.batch, self.file = batch, file

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            trainer.save_checkpoint(self.file)


@pytest.mark.parametrize("epochs", [{"max_steps": 6}, {"max_epochs": 2, "limit_train_batches": 9}])
def test_a_step_that_was_saved_half_done_is_done_again(epochs: dict[str, int], fit: Fit, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 3, **epochs}
    amid = SaveAmidAStep(batch=10, file=tmp_path / "whole" / "step=0.ckpt")  # the second batch of step 3
    whole, all_appearances = fit(amid, folder="whole", **settings)
    resumed, appearances = fit(folder="resumed", resume=("whole", 0), **settings)
    assert appearances.steps == [taken for taken in all_appearances.steps if taken[0] >= 3]
    assert same_weights(whole, resumed)


@pytest.mark.seconds
@pytest.mark.parametrize("step", range(1, 6))
@pytest.mark.parametrize(("limit", "accumulate"), [(4, 1), (4, 2), (5, 2)])
def test_a_training_by_epochs_goes_on_from_any_step(step: int, limit: int, accumulate: int, fit: Fit) -> None:
    epochs = {"max_epochs": 3, "limit_train_batches": limit, "accumulate_grad_batches": accumulate}
    whole, all_taken = fit(folder="whole", **epochs)
    resumed, taken = fit(folder="resumed", resume=("whole", step), **epochs)
    assert taken.steps == [one for one in all_taken.steps if one[0] >= step]
    assert same_weights(whole, resumed)


class ByHand(LumosModule):
    """Takes its steps by itself.

    Args:
        optimizers: how many share the weights, each of which steps.
        batches: of a step.
    """

    def __init__(self, *, optimizers: int, batches: int) -> None:
        super().__init__(MODEL, LAYOUT, loss=LossConfig(mean_over="targets"), seed=3)
        self.automatic_optimization = False
        self.n_optimizers, self.batches = optimizers, batches

    def configure_optimizers(self) -> list[SGD]:  # type: ignore[override]
        weights = list(self.parameters())
        return [SGD(weights[place :: self.n_optimizers], lr=0.1) for place in range(self.n_optimizers)]

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> None:  # type: ignore[override]
        found = self.optimizers()
        optimizers = found if isinstance(found, list) else [found]
        self.manual_backward(super().training_step(batch, batch_idx)["loss"] / self.batches)
        if (batch_idx + 1) % self.batches == 0:
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()


@pytest.mark.parametrize("epochs", [{"max_steps": 6}, {"max_epochs": 2, "limit_train_batches": 6}])
@pytest.mark.parametrize(("optimizers", "batches"), [(2, 1), (1, 2)])
def test_a_module_that_steps_by_hand_sees_every_batch_once(
    optimizers: int, batches: int, epochs: dict[str, int], fit: Fit
) -> None:
    whole, all_taken = fit(module=ByHand(optimizers=optimizers, batches=batches), folder="whole", **epochs)
    names = [one for _, one in all_taken.steps]
    assert len(set(names)) == len(names) == (12 if "max_epochs" in epochs else 6 * batches // optimizers)
    resumed, taken = fit(
        module=ByHand(optimizers=optimizers, batches=batches), folder="resumed", resume=("whole", 2), **epochs
    )
    assert taken.steps == [one for one in all_taken.steps if one[0] >= 2]
    assert same_weights(whole, resumed)


def test_the_loss_of_a_module_that_steps_by_hand_is_the_mean(fit: Fit) -> None:
    losses: list[tuple[float, float]] = []

    class Noted(ByHand):
        def training_step(self, batch: MaskedBatch, batch_idx: int) -> None:  # type: ignore[override]
            with torch.no_grad():
                mean = float(self._step(batch)["loss"])
                losses.append((float(LumosModule.training_step(self, batch, batch_idx)["loss"]), mean))
            super().training_step(batch, batch_idx)

    fit(module=Noted(optimizers=1, batches=1), max_steps=2)
    assert [one for one, _ in losses] == pytest.approx([mean for _, mean in losses])


class Trouble(Callback):
    """Fails amid a batch, as anything may."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError("trouble")


def test_what_an_exception_saved_amid_a_batch_goes_on_with_whole_steps(fit: Fit, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"accumulate_grad_batches": 2, "max_steps": 5}
    whole, all_taken = fit(folder="whole", **settings)
    saves = OnExceptionCheckpoint(tmp_path / "trouble", filename="step=2")
    with pytest.raises(RuntimeError, match="trouble"):
        fit(Trouble(5), saves, folder="trouble", every=100, **settings)
    resumed, taken = fit(folder="resumed", resume=("trouble", 2), **settings)
    assert taken.steps == [one for one in all_taken.steps if one[0] >= 2]
    assert same_weights(whole, resumed)


def test_a_fit_that_ended_amid_a_step_leaves_nothing_to_the_next(fit: Fit) -> None:
    fresh, again = Gradients(), Gradients()
    loss = LossConfig(mean_over="targets")
    fit(fresh, module=make_module(loss=loss), max_steps=1, accumulate_grad_batches=3, folder="fresh")
    module = make_module(loss=loss)
    with pytest.raises(RuntimeError, match="trouble"):
        fit(Trouble(1), module=module, max_steps=1, accumulate_grad_batches=3, folder="trouble")
    fit(again, module=module, max_steps=1, accumulate_grad_batches=3, folder="again")
    assert again.norm == pytest.approx(fresh.norm, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"precision": "64-true"}, "Trainer(precision)"),
        ({"precision": "bf16-true"}, "Trainer(precision)"),
        ({"extra": StochasticWeightAveraging(1e-3)}, "Trainer(callbacks)"),
    ],
)
def test_what_would_train_wrongly_is_refused(arguments: dict[str, Any], where: str, fit: Fit) -> None:
    callbacks = [arguments.pop("extra")] if "extra" in arguments else []
    with pytest.raises(ConfigError) as refused:
        fit(*callbacks, max_epochs=2, limit_train_batches=2, **arguments)
    assert refused.value.where == where


class Unfreezes(BaseFinetuning):
    """The layers, with the second epoch."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module.get_submodule("net.model.layers"))

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.get_submodule("net.model.layers"), optimizer)


def test_parameters_that_the_schedule_knows_nothing_of_are_refused(fit: Fit) -> None:
    module = make_module()
    module.configure_model()
    with refused(ConfigError, where="Trainer(callbacks)"):
        fit(Unfreezes(), module=module, max_epochs=3, limit_train_batches=1)


def frozen(*parts: str) -> LumosModule:
    module = make_module()
    module.configure_model()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not any(part in name for part in parts))
    return module


def test_what_is_frozen_stays_so_in_a_resumed_training(fit: Fit) -> None:
    whole, _ = fit(module=frozen("q_proj"), folder="whole", max_steps=4)
    resumed, _ = fit(module=frozen("q_proj"), folder="resumed", resume=("whole", 2), max_steps=4)
    assert same_weights(whole, resumed)
    with refused(CheckpointError, where=f"net.{PROJECTION.format('k')}", got="frozen", expected="trained"):
        fit(module=frozen("k_proj"), folder="other", resume=("whole", 2), max_steps=4)  # as many, of the same shapes
    with refused(CheckpointError, where=f"net.{PROJECTION.format('q')}", got="trained", expected="frozen"):
        fit(folder="other", resume=("whole", 2), max_steps=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_weights_that_a_checkpoint_would_round_or_that_learn_less_are_refused(dtype: torch.dtype, fit: Fit) -> None:
    module = make_module()
    module.configure_model()
    with refused(ConfigError, got=dtype, expected=torch.float32):
        fit(module=module.to(dtype), max_steps=1)


def test_where_nothing_is_trained_it_is_said(fit: Fit) -> None:
    with refused(ConfigError, where="module"):
        fit(module=frozen(""), max_steps=1)


@pytest.mark.parametrize(
    ("other", "where"),
    [
        ({"model": replace(MODEL, rope_theta=50.0)}, "model.rope_theta"),  # which no tensor shows
        ({"model": replace(MODEL, ffn_dim=32)}, "model.ffn_dim"),
        ({"optimizer": OptimizerConfig(ema_decay=0.9)}, "ema"),
        ({"adapter": AdapterConfig(kind="lora")}, "adapter"),
    ],
)
def test_weights_of_another_module_are_not_measured(
    other: dict[str, Any], where: str, trainer: MakeTrainer, fit: Fit, tmp_path: Path
) -> None:
    fit(max_steps=1)
    file = tmp_path / "run" / "step=1.ckpt"
    settings = {"model": MODEL, "layout": LAYOUT, "init_from": file if "adapter" in other else None, **other}
    for measure in trainer().test, trainer().validate:
        with refused(CheckpointError, file=file, where=where):
            measure(LumosModule(**settings), datamodule=make_data(), ckpt_path=file, verbose=False)


def test_a_stream_without_its_data_module_is_refused(trainer: MakeTrainer) -> None:
    data = make_data()
    data.setup()
    with pytest.raises(ConfigError) as refused:
        trainer(max_steps=1).fit(make_module(), train_dataloaders=data.train_dataloader())
    assert refused.value.where == "fit"


def test_a_data_module_used_again_asks_the_new_module(fit: Fit) -> None:
    data = make_data(kind="video")
    fit(data=data, max_steps=1)
    other = LumosModule(MODEL, LayoutConfig(preset="compact", codebook_size=1200))
    with pytest.raises(ConfigError):
        fit(module=other, data=data, max_steps=1, folder="other")
    small = LumosModule({**MODEL.__dict__, "max_length": 20}, make_module().layout_config)
    with pytest.raises(ConfigError) as refused:
        fit(module=small, data=data, max_steps=1, folder="small")
    assert refused.value.where == "data.video.frames"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"data": make_data(caption_dropout=0.5)}, "data.caption_dropout"),
        ({"module": make_module(seed=4)}, "seed"),
        ({"module": make_module(optimizer=OptimizerConfig(kind="muon"))}, "optimizer.kind"),
        ({"accumulate_grad_batches": 2}, "batches_per_step"),
    ],
)
def test_what_would_go_on_otherwise_is_refused(changes: dict[str, Any], where: str, fit: Fit) -> None:
    fit(folder="one", max_steps=1)
    with pytest.raises(CheckpointError) as refused:
        fit(folder="two", max_steps=2, resume=("one", 1), **changes)
    assert refused.value.where == where


class OwnModule(LightningModule):
    """Somebody else's model on our data."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        return self.scale * batch.tokens.float().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def test_the_data_go_on_exactly_with_anybodys_module_and_with_no_others(fit: Fit) -> None:
    settings: dict[str, Any] = {"max_steps": 4, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    _, whole = fit(module=OwnModule(), folder="whole", **settings)
    _, resumed = fit(module=OwnModule(), folder="resumed", resume=("whole", 2), **settings)
    assert resumed.steps == [taken for taken in whole.steps if taken[0] >= 2]
    with pytest.raises(CheckpointError) as refused:
        fit(module=OwnModule(), data=make_data(prompt="x {caption}"), resume=("whole", 2), folder="other", **settings)
    assert refused.value.where == "data.prompt"


class LossAlone(LumosModule):
    """Its own loss, and nothing beside it."""

    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, batch_idx)["loss"]


@pytest.mark.parametrize("callback", [FrameLossBalance, KindLoss, partial(SourceLoss, ["video"])])
def test_a_callback_names_what_a_step_of_ones_own_does_not_give(callback: Callable[[], Callback], fit: Fit) -> None:
    plain = make_module()
    with refused(ConfigError, expected="token_loss, as in those of LumosModule"):
        fit(callback(), module=LossAlone(plain.model_config, plain.layout_config), max_steps=1, limit_val_batches=0)


def test_what_is_changed_on_purpose_goes_on(fit: Fit) -> None:
    fit(folder="one", max_steps=1)
    module = make_module(seed=4)
    module.allow_changes = True
    fit(folder="two", max_steps=2, resume=("one", 1), module=module)
    assert module.global_step == 0 or module.trainer.global_step == 2


# -- which batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_every_step_is_of_images_or_of_videos(accumulate: int, fit: Fit) -> None:
    _, appearances = fit(max_steps=6, accumulate_grad_batches=accumulate)
    kinds = [
        {name.split("/")[0] for _, names in taken for name in names}
        for _, taken in groupby(appearances.steps, key=lambda taken: taken[0])
    ]
    assert kinds == [{"video"}, {"image"}] * 3


@pytest.mark.seconds
def test_epochs_go_on_in_the_stream(fit: Fit) -> None:
    _, by_steps = fit(max_steps=6, accumulate_grad_batches=2, folder="steps")
    _, by_epochs = fit(max_epochs=3, limit_train_batches=4, accumulate_grad_batches=2, folder="epochs")
    assert by_epochs.steps == by_steps.steps


def test_overfitting_sees_the_same_batches_in_every_epoch(fit: Fit) -> None:
    _, appearances = fit(overfit_batches=2, max_epochs=3)
    names = [names for _, names in appearances.steps]
    assert names == names[:2] * 3 and names[0] != names[1]


@pytest.mark.seconds
def test_overfitting_learns_its_batch(fit: Fit) -> None:
    losses: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"].detach()))

    fit(Losses(), overfit_batches=1, max_epochs=20)
    assert losses[-1] < losses[0] - 1


def test_a_fast_run_touches_every_step(trainer: MakeTrainer) -> None:
    module, data = make_module(), make_data()
    fast = trainer(fast_dev_run=True)
    fast.fit(module, datamodule=data)
    assert fast.global_step == 1 and math.isfinite(fast.callback_metrics["loss/val"])


def test_validation_takes_as_many_batches_as_it_is_told(trainer: MakeTrainer) -> None:
    seen: list[int] = []

    class Count(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen.append(trainer.global_step)

    settings = {"max_steps": 2, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer(Count(), limit_val_batches=3, num_sanity_val_steps=1, **settings).fit(make_module(), datamodule=make_data())
    assert seen == [0, 2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({}, "Trainer"),
        ({"max_epochs": 2}, "Trainer"),
        ({"overfit_batches": 0.5, "max_epochs": 1}, "Trainer(overfit_batches)"),
        ({"limit_train_batches": 0.5, "max_epochs": 1}, "Trainer(limit_train_batches)"),
    ],
)
def test_what_has_no_meaning_on_an_endless_stream_is_refused(arguments: dict[str, Any], where: str, fit: Fit) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(**arguments)
    assert refused.value.where == where


def test_steps_of_changing_size_are_refused(fit: Fit) -> None:
    with pytest.raises(ConfigError) as refused:
        fit(GradientAccumulationScheduler({0: 1, 1: 2}), max_epochs=2, limit_train_batches=2)
    assert refused.value.where == "Trainer(callbacks)"


def test_data_of_another_vocabulary_are_refused(fit: Fit) -> None:
    module = LumosModule(MODEL, LayoutConfig(preset="compact", codebook_size=60))
    with pytest.raises(ConfigError):
        fit(module=module, max_steps=1)


# -- clipping and the mean of a step ---------------------------------------------------------------


def test_the_trainers_clipping_is_taken(fit: Fit) -> None:
    seen = Gradients()
    fit(seen, max_steps=1, gradient_clip_val=1e-3)
    assert seen.norm == pytest.approx(1e-3, rel=1e-3)
    fit(seen, max_steps=1, gradient_clip_val=1e-4, gradient_clip_algorithm="value", folder="value")
    assert seen.largest == pytest.approx(1e-4) and seen.norm > 1e-3
    fit(seen, max_steps=1, folder="own", module=make_module(optimizer=OptimizerConfig(grad_clip=2e-3)))
    assert seen.norm == pytest.approx(2e-3, rel=1e-3)


class FirstLosses(Callback):
    """Loss and number of targets of every batch, and what the first step logged."""

    def __init__(self) -> None:
        self.batches: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        self.batches.append(outputs["token_loss"])
        self.logged = float(trainer.callback_metrics.get("loss/train", math.nan))


@pytest.mark.parametrize("mean_over", ["batches", "targets"])
def test_the_loss_of_a_step_is_the_mean_it_says(mean_over: str, fit: Fit) -> None:
    """The micro-batches of a step differ in their hidden tokens: an upright clip and a lying one, by other ratios."""
    seen, gradients = FirstLosses(), Gradients()
    module = make_module(loss=LossConfig(mean_over=mean_over), optimizer=OptimizerConfig(grad_clip=1e9))  # type: ignore[arg-type]
    videos = make_data(kind="video")
    fit(seen, gradients, max_steps=1, accumulate_grad_batches=3, module=module, data=videos)
    sizes = [len(losses) for losses in seen.batches]
    assert len(set(sizes)) > 1
    means = torch.stack([losses.mean() for losses in seen.batches])
    expected = means.mean() if mean_over == "batches" else torch.cat(seen.batches).mean()
    assert seen.logged == pytest.approx(float(expected), rel=1e-6)
    # One pass over all of the batches, each weighed as the mean says.
    fresh = make_module()
    fresh.configure_model()
    data = make_data(kind="video")
    data.setup()
    shares = torch.tensor(sizes) / sum(sizes) if mean_over == "targets" else torch.full((3,), 1 / 3)
    for share, (batch, _) in zip(shares, zip(data.train_dataloader(), range(3), strict=False), strict=True):
        masked = fresh.on_before_batch_transfer(batch, 0)
        (fresh.training_step(masked, 0)["loss"] * share).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in fresh.parameters() if p.grad is not None])
    assert gradients.norm == pytest.approx(float(norm), rel=1e-5)


def test_the_validation_loss_is_the_mean_over_all_hidden_tokens(trainer: MakeTrainer) -> None:
    seen: list[Tensor] = []

    class Losses(Callback):
        def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
            seen.append(outputs["token_loss"])

    (logged,) = trainer(Losses()).validate(make_module(), datamodule=make_data(), verbose=False)
    assert len({len(losses) for losses in seen}) > 1
    assert logged["loss/val"] == pytest.approx(float(torch.cat(seen).mean()), rel=1e-6)


def test_the_learning_rate_ends_where_the_trainer_does(fit: Fit) -> None:
    schedule = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="linear", min_lr_ratio=0.0)
    for arguments in {"max_steps": 4}, {"max_epochs": 2, "limit_train_batches": 4, "accumulate_grad_batches": 2}:
        module, _ = fit(module=make_module(optimizer=schedule), **arguments)
        assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.0)  # type: ignore[union-attr]
    with pytest.raises(ConfigError) as refused:
        fit(module=make_module(optimizer=schedule), max_time={"seconds": 1})
    assert refused.value.where == "optimizer.schedule"


def test_of_two_ends_the_learning_rate_takes_the_nearer(fit: Fit) -> None:
    schedule = OptimizerConfig(lr=1.0, warmup_steps=0, schedule="linear", min_lr_ratio=0.0)
    module, _ = fit(module=make_module(optimizer=schedule), max_steps=100, max_epochs=2, limit_train_batches=2)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.0)  # type: ignore[union-attr]


def test_each_validation_loader_has_its_own_mean(trainer: MakeTrainer) -> None:
    module, data = make_module(), make_data()
    data.setup()
    alone = trainer().validate(module, dataloaders=data.test_dataloader(), verbose=False)[0]["loss/val"]
    _, second = trainer().validate(module, dataloaders=[data.val_dataloader(), data.test_dataloader()], verbose=False)
    assert second["loss/val/dataloader_idx_1"] == pytest.approx(alone, rel=1e-5)


class OwnOptimizer(LumosModule):
    """An optimizer and an `optimizer_step` of its own."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
            "monitor": "loss/val",
        }

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:  # type: ignore[override]
        optimizer.step(closure=optimizer_closure)


class NoSchedule(OwnOptimizer):
    def configure_optimizers(self) -> Any:
        return super().configure_optimizers()["optimizer"]


@pytest.mark.seconds
def test_what_an_optimizer_of_ones_own_trained_opens_and_goes_on(fit: Fit, tmp_path: Path) -> None:
    plain = make_module(optimizer=OptimizerConfig(ema_decay=0.5))
    for kind in OwnOptimizer, NoSchedule:
        folder, settings = kind.__name__, {"max_epochs": 2, "limit_train_batches": 2}
        modules = [kind(plain.model_config, plain.layout_config, optimizer=plain.optimizer_config) for _ in range(2)]
        whole, _ = fit(module=modules[0], folder=folder, **settings)
        assert same_weights(kind.load_from_checkpoint(tmp_path / folder / "step=4.ckpt"), whole)
        resumed, _ = fit(module=modules[1], folder="resumed", resume=(folder, 2), **settings)
        assert same_weights(whole, resumed)
        assert whole.ema is not None and whole.net is not None
        plain.configure_model()
        assert plain.net is not None
        first, last, average = (net.lm_head.weight for net in (plain.net, whole.net, whole.ema))
        assert not torch.equal(average, last) and not torch.equal(average, first)


def test_what_weight_averaging_of_lightnings_trained_opens(fit: Fit, tmp_path: Path) -> None:
    module = make_module()
    module.configure_model()
    averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=1)
    fit(averaging, module=module, max_epochs=3, limit_train_batches=2)
    assert LumosModule.load_from_checkpoint(tmp_path / "run" / "step=6.ckpt").net is not None


def test_clipping_by_nothing_is_none(fit: Fit) -> None:
    clipped, free = Gradients(), Gradients()
    fit(clipped, module=make_module(optimizer=OptimizerConfig(grad_clip=1e9)), max_steps=1, folder="one")
    fit(free, max_steps=1, gradient_clip_val=0, folder="two")
    assert free.norm == pytest.approx(clipped.norm) and free.norm > 0


class SkipsABatch(LumosModule):
    def training_step(self, batch: MaskedBatch, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


def test_a_batch_without_a_loss_is_skipped(fit: Fit) -> None:
    plain = make_module()
    module, _ = fit(module=SkipsABatch(plain.model_config, plain.layout_config), max_steps=3)
    assert module.trainer.global_step == 3 and module.trainer.callback_metrics["grad_norm"] > 0


@pytest.mark.seconds
def test_a_decoder_that_no_checkpoint_could_hold_is_refused_before_it_is_trained(fit: Fit) -> None:
    module = make_module()
    module.configure_model()
    module.net = torch.compile(module.net, backend="eager")  # type: ignore[assignment]
    with refused(ConfigError, where="module.net"):
        fit(module=module, max_steps=1)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_precisions_that_cast_ids_are_refused(stage: str, trainer: MakeTrainer) -> None:
    with refused(ConfigError, where="Trainer(precision)"):
        getattr(trainer(precision="bf16-true"), stage)(make_module(), datamodule=make_data())


# -- what callbacks wait for -----------------------------------------------------------------------


@pytest.mark.parametrize("waits", [EarlyStopping, partial(ModelCheckpoint, every_n_train_steps=1)])
def test_what_nobody_logs_is_told_before_the_first_step(waits: Callable[..., Callback], trainer: MakeTrainer) -> None:
    for name, fix in ("val_loss", None), ("loss/vall", "did you mean loss/val?"):
        own = trainer(waits(monitor=name), max_steps=2, val_check_interval=1)
        with refused(ConfigError, got=name, fix=fix):
            own.fit(make_module(), datamodule=make_data())
        assert own.global_step == 0
    for name in make_module().LOGS:
        trainer(waits(monitor=name), max_steps=2, val_check_interval=1).fit(make_module(), datamodule=make_data())


class LogsMore(LumosModule):
    def on_train_batch_start(self, *_: Any) -> None:
        self.log("more", 1.0)


def test_what_a_class_of_ones_own_logs_is_its_own_matter(fit: Fit) -> None:
    module = make_module()
    own = LogsMore(module.model_config, module.layout_config)
    fit(EarlyStopping("more"), module=own, max_steps=2, val_check_interval=1)
