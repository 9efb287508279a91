"""A stop that would take longer than the grace is said before it is needed, once."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning import LightningModule, Trainer

from lumos_pl.checkpoints import grace
from lumos_pl.checkpoints.grace import GraceCheck
from lumos_pl.checkpoints.saving import Checkpointing

MODULE = cast(LightningModule, None)


def said(monkeypatch: pytest.MonkeyPatch, *, step_s: float, world_size: int = 1, **known: Any) -> list[str]:
    """What is said in a training of five steps."""
    clock = iter(range(100))
    monkeypatch.setattr(grace, "time", SimpleNamespace(monotonic=lambda: next(clock) * step_s))
    monkeypatch.setattr(grace, "accumulates", lambda trainer: False)
    saves = SimpleNamespace(save_seconds=SimpleNamespace(longest=known.pop("measured", 0.0)))
    trainer = cast(Trainer, SimpleNamespace(world_size=world_size))
    check = GraceCheck(cast(Checkpointing, saves), **known)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        check.on_train_start(trainer, MODULE)
        for number in range(5):
            check.on_train_batch_start(trainer, MODULE, None, number)
            check.on_train_batch_end(trainer, MODULE, None, None, number)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("known", "seconds"),
    [
        ({"grace_s": 30, "measured": 20.0}, None),
        ({"grace_s": 30, "measured": 41.0}, 41),
        ({"grace_s": 30, "save_s": 50.0}, 50),  # in an earlier attempt: said at the start
        ({"grace_s": 30, "measured": 20.0, "save_s": 50.0}, None),  # which is over
        ({"grace_s": 30, "measured": 20.0, "world_size": 2, "step_s": 12.0}, 32),  # of several, the step is finished
        ({"grace_s": 30, "measured": 14.0, "step_s": 100.0}, None),  # one drops it after half of the grace
        ({"grace_s": None, "measured": 1000.0}, None),
        ({"grace_s": 30}, None),  # no save yet
    ],
)
def test_a_stop_that_does_not_fit_is_said_once(
    known: dict[str, Any], seconds: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = said(monkeypatch, **{"step_s": 1.0} | known)
    assert len(lines) == (seconds is not None)
    assert all(f"about {seconds} s" in line and "grace_s is 30" in line for line in lines)
