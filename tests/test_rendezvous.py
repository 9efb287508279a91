"""Ranks that meet in a store where earlier ranks have met before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from lumos_pl.errors import LumosError
from lumos_pl.machinery.rendezvous import LOOPBACK, Meeting

Meet = Callable[..., dict[int, bool]]


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Meet:
    """Have ranks of a world of two meet in one store; returns whether each finds what earlier ones left for theirs."""
    server = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    found: dict[int, bool] = {}

    def init_process_group(backend: str, *, store: Any, rank: int, **_: Any) -> None:
        found[rank] = store.check([f"left by {rank}"])
        store.set(f"left by {rank}", "")

    monkeypatch.setattr(dist, "init_process_group", init_process_group)

    def begin(rank: int, seconds: int) -> None:
        place = {"address": LOOPBACK, "port": server.port}
        meeting = Meeting(rank=rank, world_size=2, timeout=timedelta(seconds=seconds), **place)
        meeting.begin("gloo", None)

    def met(*ranks: int, seconds: int = 60) -> dict[int, bool]:
        found.clear()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda rank: begin(rank, seconds), ranks))
        return dict(found)

    return met


def test_ranks_that_are_started_again_meet_each_other_and_nobody_who_was_there(meet: Meet) -> None:
    assert meet(0, 1) == {0: False, 1: False}
    for alone in 0, 1:
        with pytest.raises(LumosError) as absent:
            meet(alone, seconds=1)
        assert absent.value.what.startswith(f"rank {1 - alone} ")
    assert meet(1, 0) == {0: False, 1: False}
