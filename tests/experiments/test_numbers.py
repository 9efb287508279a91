"""Losses that are not finite, in a run."""

from __future__ import annotations

from typing import Any

import pytest

from lumos_pl.module import LumosModule
from tests.experiments.circumstances import broken_loss
from tests.experiments.conftest import Train, result

QUICK = ["data.num_workers=0", "trainer.max_steps=2", "trainer.val_every_n_steps=1"]


def test_a_validation_loss_that_is_not_finite_is_said_and_the_training_goes_on(
    train: Train, trained: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = result(trained("whole", *QUICK))
    step_of = LumosModule.validation_step

    def broken(module: LumosModule, *batch: Any) -> object:
        with broken_loss():
            return step_of(module, *batch)

    monkeypatch.setattr(LumosModule, "validation_step", broken)
    with pytest.warns(RuntimeWarning):
        run = train("one", *QUICK)
    assert result(run)["weights_sha256"] == expected["weights_sha256"]
    assert "loss/train" in result(run)["loss"] and "loss/val" not in result(run)["loss"]
