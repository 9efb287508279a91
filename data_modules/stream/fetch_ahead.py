"""Shards that lie elsewhere come to this machine before they are needed: the plan knows which are next.

    planned batches    a1 b1 a2 b2 ... | a9 b9 ...        waits here until what it needs has begun to come
                                       ^ looked at: its shards are fetched in the background, in the order of their use

It only spares waiting: what fails here is read again, and told, where the shard is needed.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING

from torch.utils.data import get_worker_info

from data_modules.readers import Shards, bring_ahead
from data_modules.shards.places import RemotePath

if TYPE_CHECKING:
    from data_modules.stream.plan import PlannedBatch
    from data_modules.stream.source import Source

THREADS = 8
MOST_BATCHES = 4096  # that are looked at ahead
MOST_SHARDS = 256
CACHE_SHARE = 0.5  # of the cache, for what all loading processes of a machine fetch ahead
JOIN_S = 5.0

log = logging.getLogger(__name__)

_Shard = tuple[str, int]  # of a kind, by its number


def fetch_ahead(stream: Iterable[PlannedBatch], *, sources: Mapping[str, Source]) -> Iterator[PlannedBatch]:
    """The same batches, whose shards come to this machine while the batches before are loaded."""
    remote = {kind: cache for kind, source in sources.items() if (cache := _cache_bytes(source.shards)) is not None}
    if not remote:
        yield from stream
        return
    room = CACHE_SHARE * min(remote.values()) / _loaders()

    def size(shard: _Shard) -> int:
        kind, number = shard
        return int(sources[kind].shards.manifest.table.n_bytes[number])

    with closing(_Fetching({kind: sources[kind].shards for kind in remote})) as fetching:
        ahead: deque[PlannedBatch] = deque()
        needed: Counter[_Shard] = Counter()  # by how many of these batches
        unread: dict[_Shard, int] = {}  # and by none before: their bytes

        def is_full() -> bool:
            return len(ahead) >= MOST_BATCHES or len(unread) >= MOST_SHARDS or sum(unread.values()) >= room

        batches = iter(stream)
        while True:
            while not (ahead and is_full()) and (batch := next(batches, None)) is not None:
                ahead.append(batch)
                for shard in _shards_of(batch) if batch.kind in remote else ():
                    if not needed[shard]:
                        unread[shard] = size(shard)
                        fetching.ask(shard)
                    needed[shard] += 1
            if not ahead:
                return
            given = ahead.popleft()
            yield given
            for shard in _shards_of(given) if given.kind in remote else ():
                unread.pop(shard, None)
                needed[shard] -= 1
                if not needed[shard]:
                    del needed[shard]


def _shards_of(batch: PlannedBatch) -> Iterator[_Shard]:
    """Those of a batch, each once, in the order of their use."""
    return ((batch.kind, number) for number in dict.fromkeys(sample.shard for sample in batch.samples))


def _cache_bytes(shards: Shards) -> int | None:
    """The room of the cache that shards come into; None: they lie on this machine."""
    file = shards.file(0)
    cache = file.access.cache if isinstance(file, RemotePath) else None
    return None if cache is None else cache.max_bytes


def _loaders() -> int:
    """Processes of this machine that load, as far as this one can tell."""
    info = get_worker_info()
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return (int(ranks) if ranks.isdecimal() else 1) * (1 if info is None else info.num_workers)


class _Fetching:
    """Threads that fetch what is asked for, first come, first served."""

    def __init__(self, shards: Mapping[str, Shards]) -> None:
        self._shards = shards
        self._asked: queue.SimpleQueue[_Shard | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._fetch, daemon=True, name="fetch-ahead") for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def ask(self, shard: _Shard) -> None:
        self._asked.put(shard)

    def close(self) -> None:
        self._closed.set()
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)

    def _fetch(self) -> None:
        while (shard := self._asked.get()) is not None and not self._closed.is_set():
            kind, number = shard
            try:
                bring_ahead(self._shards[kind], number)
            except Exception as error:  # told by who needs it
                log.debug("not fetched ahead: %s | %s", self._shards[kind].file(number), error)
