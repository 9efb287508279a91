"""What a user holds is copied, pickled and sent to processes that are started anew: an average, Ray, `ddp_spawn`."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import FrameLossBalance, KindLoss, SampleGrid, Throughput
from data_modules.config import SourceConfig
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.pipeline import LumosPipeline
from tests.contract.conftest import Appearances, make_data, make_module, same_weights

Fit = Callable[..., tuple[LumosModule, Appearances]]


def pickled(held: Any) -> Any:
    return pickle.loads(pickle.dumps(held))


def saved(held: Any) -> Any:
    torch.save(held, content := io.BytesIO())
    content.seek(0)
    return torch.load(content, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])


@pytest.fixture
def base(fit: Fit, tmp_path: Path) -> Path:
    fit(max_steps=1, folder="base")
    return tmp_path / "base" / "step=1.ckpt"


@COPIES
@pytest.mark.parametrize("adapter", [None, {"kind": "lora"}, {"kind": "lora", "dropout": 0.1}, {"kind": "dora"}])
def test_a_trained_module_is(
    copied: Callable[[Any], Any], adapter: dict[str, Any] | None, base: Path, fit: Fit
) -> None:
    averaged = OptimizerConfig(lr=1e-2, ema_decay=0.5)
    module = LumosModule.load_from_checkpoint(base, adapter=adapter, optimizer=averaged)
    fit(module=module, max_steps=1)
    again = copied(module)
    assert same_weights(again, module) and again.hparams == module.hparams
    data = make_data()
    data.setup()
    batch = next(iter(data.train_dataloader()))
    one, other = (each.eval()(batch.tokens, batch.spans) for each in (again, module))
    assert torch.equal(one, other)
    before = copy.deepcopy(module)
    fit(module=again, max_steps=1, folder="again")
    assert same_weights(before, module) and not same_weights(again, module), "it is one of its own"


@COPIES
def test_data_that_were_trained_on_and_their_loaders_are(copied: Callable[[Any], Any], fit: Fit) -> None:
    data = make_data()
    fit(data=data, max_steps=2)
    again = copied(data)
    again.setup()
    for name in "train_dataloader", "val_dataloader":
        loaders = [getattr(again, name)(), copied(getattr(again, name)())]
        one, other = ([batch.appearances for batch in islice(loader, 3)] for loader in loaders)
        assert one == other and one


@COPIES
def test_callbacks_are(copied: Callable[[Any], Any], fit: Fit) -> None:
    callbacks: list[Callback] = [FrameLossBalance(1), KindLoss(1), SampleGrid(1, 1), Throughput(1)]
    given = copied(callbacks)
    fit(*given, module=make_module(visual_tokenizer="embedded"), max_steps=2)
    assert [type(one) for one in copied(given)] == [type(one) for one in callbacks]


@COPIES
def test_a_pipeline_is(copied: Callable[[Any], Any]) -> None:
    lumos = LumosPipeline.load(device="cpu")
    image = replace(lumos.clip, frames=1)
    (one,), (other,) = (each.generate(["a red circle"], clip=image) for each in (lumos, copied(lumos)))
    assert torch.equal(one.codes, other.codes)


def test_weights_come_into_a_module_that_has_none_yet(base: Path, fit: Fit) -> None:
    settings: dict[str, Any] = {"adapter": AdapterConfig(kind="lora"), "init_from": base}
    for module in make_module(), make_module(**settings):
        fit(module=module, max_steps=1)
        fresh = LumosModule(**module.hparams)
        fresh.load_state_dict(module.state_dict(), strict=fresh.strict_loading)
        assert same_weights(fresh, module)


@pytest.fixture(params=["spawn", "forkserver"])
def started_by(request: pytest.FixtureRequest) -> Iterator[str]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.slow
def test_workers_that_are_no_forks_read_the_same(started_by: str) -> None:
    read = []
    for num_workers in 0, 1:
        data = make_data(num_workers=num_workers, video=SourceConfig(batch_size=1, frames=5, streams=2))
        data.setup()
        read.append([batch.appearances for batch in islice(data.train_dataloader(), 3)])
    assert read[0] == read[1]


@pytest.mark.slow
def test_what_spawned_processes_trained_is_there_afterwards(base: Path, tmp_path: Path) -> None:
    module = make_module(adapter=AdapterConfig(kind="lora"), init_from=base)
    last = ModelCheckpoint(tmp_path / "run", "{step}", every_n_train_steps=2)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    ranks: dict[str, Any] = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn"}
    Trainer(callbacks=[last, Throughput(1)], max_steps=2, **ranks, **quiet).fit(module, datamodule=make_data())
    assert same_weights(module, LumosModule.load_from_checkpoint(tmp_path / "run" / "step=2.ckpt"))
