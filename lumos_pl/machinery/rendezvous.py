"""How the ranks of a run meet: each waits for all others within a limit, and listens to signals meanwhile.

Torch's own rendezvous waits inside C++, where no signal and no end of another rank is heard, and listens on all
addresses of the machine.

A launcher that starts ranks again may keep the store in which they meet, and so what earlier ranks said there. Each
rank has a word of its own that nobody has said before, and only those who know each other's words have met:

    rank r   here/r = its word     ack/r = the round that has its word        waits for go = that round
    rank 0   round = all words     waits until all have acknowledged it       go = the round

A rank that fails before they have met comes all the same, and says so until the others have heard it:

    it       failed = its word, a number that grows, its line and its exit status
    rank r   heard/WORD/r          once it saw this change: what does not is of an earlier attempt
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from lumos_pl.errors import LumosError, TemporaryError

LOOPBACK = "127.0.0.1"
_ATTEMPT = timedelta(seconds=2)  # of a connection, between which signals are heard
_PAUSE_S = 0.05
_REPEATED_WITHIN_S = 1.0  # what a rank that failed says
_PLACE = "lumos"  # beginning of the names in the store


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where and between whom.

    Args:
        address, port: where rank 0 listens, and on no other address of its machine.
        listener: what rank 0 listens by already.
        patience: how long a rank waits for the others to come.
        timeout: how long it waits for them in every exchange of the training.
        ended: called again and again while this rank waits; raises for one of whose end it knows.
    """

    rank: int
    world_size: int
    address: str
    port: int
    patience: timedelta
    timeout: timedelta
    listener: socket.socket | None = None
    ended: Callable[[], None] = lambda: None

    def begin(self, backend: str, device: torch.device | None) -> NoticeBoard:
        """Wait until all are here, then make the process group.

        Raises:
            TemporaryError: naming those who did not come.
        """
        deadline = time.monotonic() + self.patience.total_seconds()
        store = self._store(deadline)
        try:
            met = self._meet(store, deadline)
        except dist.DistError as error:
            raise self._absent([0], str(error)) from error
        store.set_timeout(self.timeout)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"training/{met}", store),  # type: ignore[attr-defined]
            rank=self.rank,
            world_size=self.world_size,
            timeout=self.timeout,
            device_id=device,
        )
        board = dist.PrefixStore(f"notices/{met}", self._tcp_store(timeout=_ATTEMPT))  # type: ignore[attr-defined]
        return NoticeBoard(board, self.world_size)

    def _meet(self, store: Any, deadline: float) -> str:
        """A word for the round in which all ranks know each other, which no other round has."""
        word, acknowledged, silence = secrets.token_hex(8), None, _failure(_said(store, "failed"))
        store.set(f"{_PLACE}/here/{self.rank}", word)
        while True:
            if (failure := _failure(_said(store, "failed"))) is not None and failure != silence:
                self._have_heard(store, failure, deadline)
                raise failure.error
            if self.rank == 0:
                self._open_round(store)
            met = _said(store, "round")
            if met is not None and met.split(",")[self.rank :][:1] == [word]:
                if met != acknowledged:
                    store.set(f"{_PLACE}/ack/{self.rank}", met)
                    acknowledged = met
                if self.rank == 0 and not self._missing(store, met):
                    store.set(f"{_PLACE}/go", met)
                if _said(store, "go") == met:
                    return hashlib.sha256(met.encode()).hexdigest()[:16]
            self.ended()
            if time.monotonic() > deadline:
                known = met if acknowledged is not None else None
                raise self._absent([0] if self.rank and known is None else self._missing(store, known) or [0])
            time.sleep(_PAUSE_S)

    def tell_failure(self, error: LumosError, told: Callable[[], None], *, within: timedelta) -> bool:
        """Come, though this rank has failed, and say so until all have heard it, at most so long.

        Args:
            told: called as soon as it is this rank's to tell.
        Returns:
            whether another rank told that it failed.
        """
        deadline = time.monotonic() + min(within, self.patience).total_seconds()
        mine = _Failure(word=secrets.token_hex(8), line=str(error), status=error.exit_status)
        if self.rank == 0:
            told()
        try:
            store = self._store(deadline)
            earlier = _said(store, "failed")
            until = time.monotonic() + _REPEATED_WITHIN_S if earlier is not None else 0.0
            while (said := _said(store, "failed")) == earlier and time.monotonic() < until:
                time.sleep(_PAUSE_S)
            if said == earlier:
                said = store.compare_set(f"{_PLACE}/failed", earlier or "", mine.said()).decode()
            other = _failure(said)
            if other is not None and other.word != mine.word:
                self._have_heard(store, other, deadline)
                return True
            told()
            self._have_heard(store, mine, deadline, repeat=True)
        except (TemporaryError, dist.DistError):
            pass  # nobody is there to be told
        return False

    def _have_heard(self, store: Any, failure: _Failure, deadline: float, *, repeat: bool = False) -> None:
        """Note that this rank knows, and wait for the others where it tells them, or keeps the store."""
        keys = [f"{_PLACE}/heard/{failure.word}/{rank}" for rank in range(self.world_size)]
        store.set(keys[self.rank], "")
        if not repeat and (self.rank or _is_torchruns()):
            return
        while not store.check(keys) and time.monotonic() < deadline:
            if repeat:
                failure.n += 1
                store.set(f"{_PLACE}/failed", failure.said())
            time.sleep(_PAUSE_S)

    def _open_round(self, store: Any) -> None:
        """Say who is here, as soon as all are, and again when one of them is another."""
        words = [_said(store, f"here/{rank}") for rank in range(self.world_size)]
        if all(words) and (now := ",".join(filter(None, words))) != _said(store, "round"):
            store.set(f"{_PLACE}/round", now)

    def _missing(self, store: Any, met: str | None) -> list[int]:
        """Who has not acknowledged a round; of none, who is not here."""
        key = "here" if met is None else "ack"
        said = [_said(store, f"{key}/{rank}") for rank in range(self.world_size)]
        return [rank for rank, one in enumerate(said) if (one is None if met is None else one != met)]

    def _store(self, deadline: float) -> Any:
        """Rank 0's, or one that is connected to it; torchrun has one of its own."""
        serves = self.rank == 0 and not _is_torchruns()
        self._wait_for_name(deadline)
        if serves:
            listener = self.listener or _listener(self.address, self.port)
            descriptor = None if listener is None else listener.detach()
            try:
                return self._tcp_store(timeout=self.patience, is_master=True, master_listen_fd=descriptor)
            except dist.DistError as error:
                raise self._unheard(str(error)) from error
        while True:
            try:
                return self._tcp_store(timeout=_ATTEMPT)
            except dist.DistError as error:
                self.ended()
                if time.monotonic() > deadline:
                    raise self._absent([0], str(error)) from error
                time.sleep(_PAUSE_S)

    def _wait_for_name(self, deadline: float) -> None:
        """Until the address means something: a pod's name is known a while after it has begun, or never."""
        while True:
            try:
                socket.getaddrinfo(self.address, self.port, type=socket.SOCK_STREAM)
                return
            except OSError as error:
                self.ended()
                if time.monotonic() > deadline:
                    raise self._unheard(str(error)) from error
                time.sleep(_PAUSE_S)

    def _tcp_store(self, **how: Any) -> Any:
        place = self.address, self.port, self.world_size
        return dist.TCPStore(*place, wait_for_workers=False, **how)  # type: ignore[attr-defined]

    def _unheard(self, said: str) -> TemporaryError:
        return TemporaryError(
            "there is no place where the ranks could meet",
            where="MASTER_ADDR, MASTER_PORT",
            got=f"{self.address}:{self.port}, {' '.join(said.split())[:200]}",
            expected="the name of rank 0's machine, and a port that no other program has there",
            fix="give all ranks another address, or end what has the port",
        )

    def _absent(self, ranks: list[int], said: str | None = None) -> TemporaryError:
        seconds = f"{self.patience.total_seconds():g} s"
        return TemporaryError(
            f"rank {', '.join(map(str, ranks))} did not come, or went",
            where=f"rank {self.rank}, before the training",
            got=None if said is None else " ".join(said.split())[:200],
            expected=f"{self.world_size} ranks at {self.address}:{self.port} within {seconds}",
            fix="see what the others say; where they take longer to come, raise trainer.start_timeout_s",
        )


@dataclass(kw_only=True)
class _Failure:
    """What a rank says that failed before all had met."""

    word: str
    line: str
    status: int
    n: int = 0

    def said(self) -> str:
        return json.dumps(vars(self))

    @property
    def error(self) -> LumosError:
        """For the others: it is the failed rank's to tell."""
        return LumosError.told_elsewhere(self.line, self.status)


def _failure(said: str | None) -> _Failure | None:
    return None if said is None else _Failure(**json.loads(said))


class NoticeBoard:
    """Where each rank has a notice for the others: in rank 0's store, or torchrun's, by a connection of its own.

    Attributes:
        keeper: whose process has it.
    """

    def __init__(self, store: Any, world_size: int) -> None:
        self._store, self._world_size = store, world_size
        self.keeper = "torchrun" if _is_torchruns() else "rank 0"

    def put_up(self, rank: int, text: str) -> None:
        """Raises RuntimeError once the store's process has ended."""
        self._store.set(str(rank), text)

    def read(self) -> dict[int, str]:
        """By rank, of those that have one; waits for ever while the store's process is stopped."""
        own = filter(lambda rank: self._store.check([str(rank)]), range(self._world_size))
        return {rank: self._store.get(str(rank)).decode() for rank in own}


def listen() -> socket.socket:
    """On a free port of this machine, which no other machine reaches."""
    listener = _listener(LOOPBACK, 0)
    assert listener is not None
    return listener


def use_loopback() -> None:
    """Have gloo listen there too, unless the user chose an interface."""
    if sys.platform == "linux" and "lo" in (name for _, name in socket.if_nameindex()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _listener(address: str, port: int) -> socket.socket | None:
    """None: the address is not this machine's own, as behind a translation; then torch listens everywhere."""
    try:
        family, *_, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(4096)
    except OSError:
        return None
    return listener


def _said(store: Any, key: str) -> str | None:
    """What stands under a key; None: nothing."""
    key = f"{_PLACE}/{key}"
    return store.get(key).decode() if store.check([key]) else None


def _is_torchruns() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
