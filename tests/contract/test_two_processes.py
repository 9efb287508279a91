"""The same in a Trainer of two processes: the order of the data, a resume by another number of them, the mean."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from lumos_pl.errors import ConfigError
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig
from tests.contract.conftest import Appearances, make_data, make_module
from tests.processes import ranks

STEPS = 4
QUIET: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def train(folder: str, world: int, mean_over: str, resume: str | None) -> None:
    """Two micro-batches a step, on one process or shared by two; leaves each rank's batches, and the weights."""
    torch.manual_seed(0)
    module = make_module(loss=LossConfig(mean_over=mean_over))  # type: ignore[arg-type]
    seen = Appearances()
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        accumulate_grad_batches=2 // world,
        max_steps=STEPS,
        callbacks=[seen, ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)],
        default_root_dir=folder,
        **QUIET,
    )
    trainer.fit(module, datamodule=make_data(), ckpt_path=resume)
    loss = float(trainer.callback_metrics["loss/train"])
    found = {"steps": seen.steps, "weights": dict(module.state_dict()), "loss": loss}
    torch.save(found, Path(folder, f"rank{trainer.global_rank}.pt"))


def run(folder: Path, world: int, mean_over: str = "batches", resume: Path | None = None) -> list[dict[str, Any]]:
    folder.mkdir()
    ranks(world, train, str(folder), world, mean_over, None if resume is None else str(resume))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


def steps(found: list[dict[str, Any]]) -> dict[int, set[tuple[str, ...]]]:
    """The batches of each step, over all ranks."""
    taken = defaultdict(set)
    for of_rank in found:
        for step, names in of_rank["steps"]:
            taken[step].add(names)
    return dict(taken)


def close(one: dict[str, Any], other: dict[str, Any]) -> bool:
    weights = zip(one["weights"].values(), other["weights"].values(), strict=True)
    return all(torch.allclose(a, b, atol=1e-5) for a, b in weights)


@pytest.mark.seconds
@pytest.mark.parametrize("mean_over", ["batches", "targets"])
def test_two_processes_train_as_one_does_and_go_on_from_each_other(mean_over: str, tmp_path: Path) -> None:
    one, two = (run(tmp_path / str(world), world, mean_over) for world in (1, 2))
    assert steps(one) == steps(two) and len(steps(one)) == STEPS
    assert close(one[0], two[0]) and one[0]["loss"] == pytest.approx(two[0]["loss"], rel=1e-5)
    moved = run(tmp_path / "moved", 1, mean_over, resume=tmp_path / "2" / "step=2.ckpt")
    assert steps(moved) == {step: taken for step, taken in steps(one).items() if step >= 2}
    assert close(moved[0], one[0])


def train_sharded(folder: str) -> None:
    """In Lightning's own strategy for sharded weights, where it saves one file of the whole."""
    saved = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    given: dict[str, Any] = {"max_steps": 2, "default_root_dir": folder, **QUIET}
    Trainer(accelerator="cpu", devices=2, strategy=strategy, callbacks=[saved], **given).fit(
        make_module(), datamodule=make_data()
    )


@pytest.mark.seconds
def test_one_file_of_sharded_weights_opens_and_goes_on(tmp_path: Path) -> None:
    """Its optimizer numbers the parameters in the module's order, and not in its own."""
    whole = run(tmp_path / "one", 1)
    (tmp_path / "sharded").mkdir()
    ranks(2, train_sharded, str(tmp_path / "sharded"))
    file = tmp_path / "sharded" / "step=2.ckpt"
    assert LumosModule.load_from_checkpoint(file).net is not None
    moved = run(tmp_path / "moved", 1, resume=file)
    assert steps(moved) == {step: taken for step, taken in steps(whole).items() if step >= 2}
    assert close(moved[0], whole[0])


def differ(folder: str, at: str) -> None:
    """Train with a setting of rank 1's own; leaves where the rank was told so."""
    own = int(os.environ["LOCAL_RANK"])
    module = make_module(
        optimizer=OptimizerConfig(lr=2e-2 if own and at == "lr" else 1e-2),
        mask=MaskConfig(kind="random" if own and at == "mask" else "tube"),
    )
    data = make_data(caption_dropout=0.5 if own and at == "data" else 0.0)
    steps = 5 if own and at == "steps" else 4
    where = "nobody"
    try:
        trainer = Trainer(
            accelerator="cpu", devices=2, strategy="ddp", max_steps=steps, default_root_dir=folder, **QUIET
        )
        trainer.fit(module, datamodule=data)
    except ConfigError as error:
        where = str(error.where)
    Path(folder, f"rank{own}").write_text(where)


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("at", "where"),
    [
        ("lr", "optimizer.lr"),
        ("mask", "mask.kind"),
        ("data", "data.caption_dropout"),
        ("steps", "Trainer.max_steps"),
    ],
)
def test_ranks_of_different_settings_do_not_train(at: str, where: str, tmp_path: Path) -> None:
    """Each would update its weights in its own way, without a word."""
    ranks(2, differ, str(tmp_path), at)
    assert {(tmp_path / f"rank{rank}").read_text() for rank in range(2)} == {f"rank 1, {where}"}
