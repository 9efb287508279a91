"""The loss and the samples of each data set of a mixture, against sums token by token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from callbacks.source_loss import SourceLoss
from lumos_pl.batch import MaskedBatch
from tests.callbacks.tiny_run import TinyModule, loader, make_batch, make_trainer, planted_loss, scalars

# Three steps of two batches: films twice, then art, of which each has ever more samples.
TRAIN = [make_batch(f"{'art' if i >= 4 else 'films'}/{i}", [(1 + i, 4, 4)] * (1 + i)) for i in range(6)]
VAL = [make_batch(f"val/{name}/0", [(2, 4, 4)]) for name in ("films", "other")]


def mean_loss(batches: Sequence[MaskedBatch]) -> float:
    losses = [loss for batch in batches for loss in planted_loss(batch).tolist()]
    return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("sources")
    callback = SourceLoss(["films", "art", "never"], every_n_steps=2)
    trainer = make_trainer(found, [callback], steps=3, accumulate_grad_batches=2, val_check_interval=6)
    trainer.fit(TinyModule(), loader(TRAIN), loader(VAL))
    return found


def test_each_logging_covers_a_sources_batches_since_the_last(folder: Path) -> None:
    losses = {name: scalars(folder, f"loss_source/train/{name}") for name in ("films", "art")}
    assert losses["films"] == pytest.approx({1: mean_loss(TRAIN[:4])})
    assert losses["art"] == pytest.approx({2: mean_loss(TRAIN[4:])})
    assert scalars(folder, "samples/films") == {1: 1 + 2 + 3 + 4}
    assert scalars(folder, "samples/art") == {2: 5 + 6}


def test_a_validation_has_a_loss_of_each_source_that_came(folder: Path) -> None:
    assert scalars(folder, "loss_source/val/films") == pytest.approx({2: mean_loss(VAL[:1])})
    with pytest.raises(KeyError):
        scalars(folder, "loss_source/val/other")  # of which the callback was not told
