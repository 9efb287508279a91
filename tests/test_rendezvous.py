"""Ranks that meet in a store where earlier ranks have met before."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from lumos_pl.errors import LumosError, TemporaryError
from lumos_pl.machinery.rendezvous import LOOPBACK, Meeting
from tests.refusals import refused

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

    def begin(rank: int, seconds: int, team: str) -> None:
        place: dict[str, Any] = {"address": LOOPBACK, "port": server.port, "timeout": timedelta(seconds=60)}
        meeting = Meeting(rank=rank, world_size=2, patience=timedelta(seconds=seconds), **place)
        board = meeting.begin("gloo", None)
        found[rank] |= not set(board.read().values()) <= {team}
        board.put_up(rank, team)

    def met(*ranks: int, seconds: int = 60) -> dict[int, bool]:
        found.clear()
        team = os.urandom(4).hex()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda rank: begin(rank, seconds, team), ranks))
        return dict(found)

    return met


@pytest.mark.seconds
def test_a_rank_that_fails_before_all_have_met_is_heard_by_the_others_of_its_attempt_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two that fail one tells it; the others leave with its line and status; the next attempt hears nothing."""
    server = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: None)
    seconds = timedelta(seconds=60)
    lines: list[str] = []

    def come(rank: int, failing: tuple[int, ...], attempt: str) -> tuple[str, int]:
        meeting = Meeting(
            rank=rank, world_size=4, address=LOOPBACK, port=server.port, patience=seconds, timeout=seconds
        )
        if rank in failing:
            failure = TemporaryError(f"rank {rank} fails", where=attempt)
            other = meeting.tell_failure(failure, lambda: lines.append(str(failure)), within=seconds)
            return "told by another" if other else "told", 0
        try:
            meeting.begin("gloo", None)
        except LumosError as error:
            return str(error), error.exit_status
        return "met", 0

    def ended(*failing: int, attempt: str) -> list[tuple[str, int]]:
        lines.clear()
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda rank: come(rank, failing, attempt), range(4)))

    for attempt in "first", "second":
        ends = ended(1, 3, attempt=attempt)
        (line,) = lines
        assert attempt in line
        assert sorted(end for rank in (1, 3) for end in ends[rank][:1]) == ["told", "told by another"]
        assert ends[0] == ends[2] == (line, TemporaryError.exit_status)
    assert ended(attempt="third") == [("met", 0)] * 4
    assert ended(0, attempt="fourth")[1:] == [(lines[0], TemporaryError.exit_status)] * 3


@pytest.mark.seconds
def test_ranks_that_are_started_again_meet_each_other_and_nobody_who_was_there(meet: Meet) -> None:
    assert meet(0, 1) == {0: False, 1: False}
    for alone in 0, 1:
        with pytest.raises(LumosError) as absent:
            meet(alone, seconds=1)
        assert absent.value.what.startswith(f"rank {1 - alone} ")
    assert meet(1, 0) == {0: False, 1: False}


def test_where_rank_0_cannot_listen_it_says_so_and_blames_no_other() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        place: dict[str, Any] = {"address": LOOPBACK, "port": taken.getsockname()[1]}
        second = timedelta(seconds=1)
        with refused(TemporaryError, where="MASTER_ADDR, MASTER_PORT"):
            Meeting(rank=0, world_size=2, patience=second, timeout=second, **place).begin("gloo", None)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_name_that_nobody_knows_is_waited_for_and_told(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While torch waits for it, in C++, no signal is heard."""
    asked: list[str] = []

    def unknown(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    place: dict[str, Any] = {"address": "nowhere", "port": 29500, "timeout": timedelta(seconds=1)}
    with refused(TemporaryError, where="MASTER_ADDR, MASTER_PORT"):
        Meeting(rank=rank, world_size=2, patience=timedelta(seconds=0.2), **place).begin("gloo", None)
    assert len(asked) > 1 and set(asked) == {"nowhere"}
