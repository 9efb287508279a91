"""What of Lightning is private and used all the same: in one folder, and each still there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lumos_pl.machinery.lightning_private.loops import (
    BATCH_PROGRESS,
    COUNTS,
    EPOCH_PROGRESS,
    ResumableFitLoop,
    accumulates,
    begin_at_a_step,
)
from lumos_pl.machinery.lightning_private.ranks import MeshStrategy, SteadyBuckets
from tests.processes import on_ranks

ROOT = Path(__file__).parents[1]
OWN = ROOT / "lumos_pl" / "machinery" / "lightning_private"
PACKAGES = ("lumos_pl", "data_modules", "callbacks", "experiments", "bench", "faults")
OWNERS = {
    "trainer",
    "fit_loop",
    "epoch_loop",
    "strategy",
    "lightning_module",
    "datamodule",
}  # Lightning's, by our names
OF_A_MODULE = {"_trainer"}  # the Trainer of a module that may have none: `trainer` raises


def private_uses(file: Path) -> Iterator[str]:
    """Private names that a file takes from Lightning: imported, or of an object that is called as Lightning's are."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            if name in OWNERS and node.attr not in OF_A_MODULE:
                yield f"{name}.{node.attr}"


def test_lightnings_private_parts_are_used_in_one_folder() -> None:
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py") if file.parent != OWN)
    assert {str(file.relative_to(ROOT)): names for file in files if (names := sorted(private_uses(file)))} == {}
    own = {name for file in OWN.glob("*.py") for name in private_uses(file)}
    assert own > {"_FitLoop", "trainer._logger_connector", "_get_rank"}  # so the search finds what is there


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[str, Any]]:
    """A Trainer after two batches, and what it saved."""
    folder = tmp_path_factory.mktemp("trained")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, default_root_dir=folder, **quiet)
    trainer.fit(BoringModel())
    trainer.save_checkpoint(folder / "x.ckpt")
    return trainer, torch.load(folder / "x.ckpt", weights_only=True)


MOVED = "Lightning moved {}: mend lumos_pl/machinery/lightning_private/"


@pytest.mark.parametrize(
    "path",
    [
        "fit_loop.epoch_loop._should_check_val_fx",
        "fit_loop.epoch_loop.val_loop.restarting",
        "fit_loop.epoch_loop._on_before_fetch",
        "fit_loop.restarting",
        "fit_loop._data_fetcher",
        "_logger_connector.update_train_step_metrics",
        "_accelerator_connector.cluster_environment",
    ],
)
def test_what_a_trainer_has(path: str, trained: tuple[Trainer, dict[str, Any]]) -> None:
    found: Any = trained[0]
    for name in path.split("."):
        assert hasattr(found, name), MOVED.format(f"Trainer.{path}")
        found = getattr(found, name)


def test_whether_a_step_is_open(trained: tuple[Trainer, dict[str, Any]]) -> None:
    assert accumulates(trained[0]) is False, MOVED.format("FitLoop._should_accumulate")


def test_where_a_checkpoint_counts_batches(trained: tuple[Trainer, dict[str, Any]]) -> None:
    loops = trained[1]["loops"]["fit_loop"]
    for place in BATCH_PROGRESS, EPOCH_PROGRESS:
        assert place in loops, MOVED.format(f"the checkpoint's fit_loop.{place}")
    batches = loops[BATCH_PROGRESS]
    assert {"total", "current", "is_last_batch"} <= batches.keys(), MOVED.format(BATCH_PROGRESS)
    assert all(batches["total"][name] == 2 for name in COUNTS if name != "completed"), MOVED.format(BATCH_PROGRESS)


@pytest.mark.parametrize("name", ["_get_process_group_backend", "_device_mesh"])
def test_what_a_strategy_has(name: str) -> None:
    made = MeshStrategy(data_parallel_size=1, tensor_parallel_size=1)
    assert hasattr(made, name), MOVED.format(f"ModelParallelStrategy.{name}")
    assert hasattr(BoringModel(), "_device_mesh"), MOVED.format("LightningModule._device_mesh")


def test_the_loop_is_still_the_trainers(trained: tuple[Trainer, dict[str, Any]]) -> None:
    trainer = Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    ResumableFitLoop.put_into(trainer)
    assert isinstance(trainer.fit_loop, ResumableFitLoop), MOVED.format("Trainer.fit_loop")


@pytest.mark.parametrize(
    ("saved", "accumulate", "expected"),
    [
        ({"epochs": 0, "ready": 5, "done": 5, "last": False}, 2, 6),  # of 3 steps: the fifth was of the step in hand
        ({"epochs": 0, "ready": 7, "done": 7, "last": False}, 1, 3),  # now one batch a step
        ({"epochs": 0, "ready": 9, "done": 9, "last": True}, 3, 9),  # of an epoch that is over; nine was all of it
        ({"epochs": 0, "ready": 6, "done": 6, "last": True}, 2, 6),  # of a training that is longer now
        ({"epochs": 2, "ready": 5, "done": 5, "last": False}, 2, 4),  # of a later epoch: the open step is done again
        ({"epochs": 2, "ready": 6, "done": 5, "last": False}, 2, 4),  # an error amid the sixth batch
        ({"epochs": 2, "ready": 9, "done": 9, "last": True}, 2, 9),  # whose last step was smaller
        ({"epochs": 0, "ready": 5, "done": 5, "last": False}, None, 5),  # of a module that steps by hand
        ({"epochs": 2, "ready": 6, "done": 5, "last": False}, None, 5),
    ],
)
def test_a_resumed_training_begins_with_a_step(saved: dict[str, Any], accumulate: int | None, expected: int) -> None:
    counts = {"ready": saved["ready"], "started": saved["ready"], "processed": saved["done"]}
    counts["completed"] = saved["done"]
    loops = {
        EPOCH_PROGRESS: {"current": {"processed": saved["epochs"]}},
        BATCH_PROGRESS: {"total": dict(counts), "current": dict(counts), "is_last_batch": saved["last"]},
    }
    begin_at_a_step(loops, step=3, accumulate=accumulate, limit=9)
    assert loops[BATCH_PROGRESS]["current"] == dict.fromkeys(COUNTS, expected)


def test_ranks_add_gradients_in_the_same_order_in_every_step_of_a_process(tmp_path: Path) -> None:
    """Three ranks round otherwise in another order; torch's own buckets change after the first step."""
    first, second = on_ranks(3, _gradients_of_two_steps, tmp_path)
    assert all(map(torch.equal, first, second))


class _UsedInAnotherOrder(torch.nn.Module):
    """Its gradients come neither in the order of its layers nor in the opposite one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(13, 13) for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for place in 2, 0, 4, 1, 3:
            x = self.layers[place](x).tanh()
        return x


def _gradients_of_two_steps(rank: int, world: int) -> list[list[torch.Tensor]]:
    torch.manual_seed(0)
    wrapped = SteadyBuckets(_UsedInAnotherOrder())
    x = torch.randn(4, 13, generator=torch.Generator().manual_seed(rank))
    found = []
    for _ in range(2):
        wrapped.zero_grad()
        wrapped(x).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in wrapped.parameters() if parameter.grad is not None])
    return found
