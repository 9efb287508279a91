"""A data module with a Trainer, without one, and at any place of its stream."""

from __future__ import annotations

import math
from itertools import islice

import pytest

from data_modules.pixel_data import PixelDataConfig, PixelDataModule
from data_modules.stream.position import StreamPosition
from lumos_pl.errors import ConfigError
from tests.contract.conftest import MakeTrainer, make_data, make_module
from tests.refusals import refused


def test_in_a_notebook() -> None:
    data = make_data()
    data.prepare_data()
    data.setup()
    first = next(iter(data.train_dataloader()))
    assert first.appearances and next(iter(data.train_dataloader())).appearances == first.appearances
    for loader in data.val_dataloader(), data.test_dataloader():
        assert sum(1 for _ in loader) > 0


def test_all_of_the_validation_data_are_tested_once() -> None:
    data = make_data()
    data.setup("test")
    names = [name for batch in data.test_dataloader() for name in batch.appearances]
    assert len(names) == len(set(names)) == 2 * 20


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_what_is_only_measured_needs_no_training_data(stage: str, trainer: MakeTrainer) -> None:
    data = make_data(root=None)
    (measured,) = getattr(trainer(), stage)(make_module(), datamodule=data, verbose=False)
    assert all(math.isfinite(value) for value in measured.values())
    with refused(ConfigError, where="data.root"):
        make_data(root=None, val_root=None, val_share=0.5).setup(stage)
    with refused(ConfigError, where="data.root"):
        data.setup("fit")


def test_clips_that_are_only_validated_need_no_others() -> None:
    data = PixelDataModule(
        PixelDataConfig(val_root="moving_pictures", size="16x16", frames=5, batch_size=2, num_workers=0), (4, 8, 8)
    )
    data.setup("validate")
    assert next(iter(data.val_dataloader())).frames.shape == (2, 5, 16, 16, 3)
    with refused(ConfigError, where="data.root"):
        data.setup("fit")


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_without_setup_one_line_says_so(loader: str) -> None:
    with pytest.raises(ConfigError):
        getattr(make_data(), loader)()
    with pytest.raises(ConfigError):
        PixelDataModule(PixelDataConfig(root="videos"), (4, 8, 8)).train_dataloader()


def test_an_iteration_begins_where_the_stream_is_then() -> None:
    data = make_data()
    data.setup()
    whole = [batch.appearances for batch in islice(data.train_dataloader(), 8)]
    place = StreamPosition()
    loader = data.stream(lambda: place)
    assert [batch.appearances for batch in islice(loader, 2)] == whole[:2]
    place = StreamPosition(start=6)
    assert [batch.appearances for batch in islice(loader, 2)] == whole[6:8]
