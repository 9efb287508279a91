"""Training from a web server and an object store that refuse, break off and garble, through a cache that is too small.

What a run reads must be what it reads of a folder, from any step on; what is only trouble is never taken for damage,
the cache stays within its limit at any moment, and nothing of a killed process stays in it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.places import CacheConfig
from data_modules.shards.writer import write_by_kind
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.campaign import Campaign, Draw, Judge, Verdict, attempt
from faults.experiment import CODEBOOK, samples
from faults.object_store import BUCKET, ObjectStore, object_store
from faults.web_server import FAULTS, Fault, WebServer, web_server
from lumos_pl.errors import DataError, LumosError, TemporaryError
from lumos_pl.layout import compact_layout
from lumos_pl.machinery.content_cache import SUBFOLDER
from lumos_pl.machinery.retrying import RetryConfig

RIGHT = "same batches"
SIDE, SAMPLES, PER_SHARD = 64, 40, 4
LIMIT = 1 << 20  # of the cache; the shards have half as much again
BATCHES, PER_STEP = 40, 2
ATTEMPTS = 5

Read = list[tuple[list[str], str]]


def _read(root: str, cache: Path, *, start: int, workers: int) -> Read:
    config = DataConfig(
        kind="joint",
        root=root,
        image=SourceConfig(batch_size=2, shuffle_shards=1),
        video=SourceConfig(batch_size=1, frames=9, shuffle_shards=1),
        num_workers=workers,
        prompt="{caption}",
        retry=RetryConfig(attempts=ATTEMPTS, wait_s=0.002, longest_wait_s=0.01),
        cache=CacheConfig(dir=str(cache), max_bytes=LIMIT),
    )
    data = TokenDataModule(config, compact_layout(codebook_size=CODEBOOK), seed=3)
    data.setup("fit")
    stream = iter(data.stream(partial(StreamPosition, start=start, per_step=PER_STEP)))
    return [(one.names, hashlib.sha256(one.tokens.numpy().tobytes()).hexdigest()) for one in islice(stream, BATCHES)]


class _Watch:
    """The most bytes that the cache's files ever had together, as far as a look every few milliseconds tells."""

    def __init__(self, cache: Path) -> None:
        self._files, self.most = cache / SUBFOLDER, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.003):
            sizes = self._sizes()
            if sizes == self._sizes():  # else one may have gone before another came, and both been counted
                self.most = max(self.most, sum(sizes.values()))

    def _sizes(self) -> dict[str, int]:
        sizes = {}
        with suppress(FileNotFoundError):
            for file in self._files.iterdir():
                with suppress(FileNotFoundError):
                    sizes[file.name] = file.stat().st_size
        return sizes


def _trouble(draw: Draw) -> dict[str, Fault | None]:
    """Faults of a web server by the number of the request: never so many in a row that a read is given up."""
    rate, kinds = draw.choice([0.1, 0.3, 0.5]), draw.sample(FAULTS, draw.randint(1, len(FAULTS)))
    return {str(number): draw.choice(kinds) if draw.random() < rate else None for number in range(4096)}


@dataclass
class _Faulty:
    """Gives each name at most so many faults in a row."""

    faults: dict[str, Fault | None]
    most: int
    number: int = 0

    def __post_init__(self) -> None:
        self.in_a_row: Counter[str] = Counter()

    def __call__(self, name: str) -> Fault | None:
        self.number += 1
        fault = self.faults[str(self.number % len(self.faults))]
        self.in_a_row[name] = self.in_a_row[name] + 1 if fault is not None else 0
        if self.in_a_row[name] > self.most:
            self.in_a_row[name] = 0
            return None
        return fault


def _left_by_a_killed_one(draw: Draw, cache: Path) -> Path | None:
    """A file that a process was fetching when it was killed."""
    files = cache / SUBFOLDER
    if draw.random() < 0.7:
        return None
    files.mkdir(parents=True, exist_ok=True)
    left = files / f"{draw.randbytes(32).hex()}.{200_000}.partial"
    left.write_bytes(bytes(draw.randrange(200_000)))
    return left


def _garbled_on_the_disk(draw: Draw, cache: Path) -> None:
    files = sorted(file for file in (cache / SUBFOLDER).glob("*") if len(file.name) == 64)
    if files and draw.random() < 0.3:
        file = draw.choice(files)
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1
        file.write_bytes(data)


@contextmanager
def _remote(folder: Path) -> Iterator[Judge]:
    data, cache = folder / "data", folder / "cache"
    write_by_kind(
        data,
        samples(SAMPLES, sizes=[(SIDE, SIDE)]),
        tokenizer="toy",
        codebook_size=CODEBOOK,
        strides=(4, 8, 8),
        samples_per_shard=PER_SHARD,
    )
    starts = (0, 2, 14, 30)
    expected = {start: _read(str(data), cache, start=start, workers=0) for start in starts}
    with ExitStack() as stack:
        server = stack.enter_context(web_server(data))
        store = stack.enter_context(object_store())
        stack.enter_context(patch.dict(os.environ, store.environment))
        _put(data)

        def judge(draw: Draw) -> Verdict:
            if draw.random() < 0.5:
                shutil.rmtree(cache, ignore_errors=True)
            start, workers = draw.choice(starts), draw.choice([0, 0, 0, 1, 2])
            left, of_store = _left_by_a_killed_one(draw, cache), draw.random() < 0.25
            _garbled_on_the_disk(draw, cache)
            outage = not of_store and draw.random() < 0.1
            root = _prepared(draw, server, store, of_store=of_store, outage=outage)
            with _Watch(cache) as watch:
                got = attempt(lambda: _read(root, cache, start=start, workers=workers))
                if outage and isinstance(got, TemporaryError):
                    server.fault = lambda name: None
                    got = attempt(lambda: _read(root, cache, start=start, workers=workers))
            injected = store.refused.value if of_store else sum(server.injected.values())
            done = f"{root} from {start}, {workers} workers, {injected} injected, outage {outage}"
            if watch.most > LIMIT:
                return Verdict("limit broken", f"{done}: {watch.most} of {LIMIT}")
            if left is not None and left.exists():
                return Verdict("left over", f"{done}: {left}")
            return _compared(got, expected[start], done)

        yield judge


def _put(data: Path) -> None:
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.filesystem("s3").put(f"{data}/", f"{BUCKET}/data", recursive=True)


def _prepared(draw: Draw, server: WebServer, store: ObjectStore, *, of_store: bool, outage: bool) -> str:
    """The root to read from, once it is faulty."""
    server.injected.clear()
    store.refused.value = 0
    if of_store:
        store.refuse(draw.choice([0, 1, 3]))
        store.garble(draw.choice([1, 2, 3]))
        return f"s3://{BUCKET}/data"
    if outage:
        after = draw.randrange(8)
        server.fault = lambda name: "503" if server.requests.total() > begun + after else None
        begun = server.requests.total()
    else:
        server.fault = _Faulty(_trouble(draw), ATTEMPTS - 2)
    return server.url


def _compared(got: Read | LumosError, expected: Read, done: str) -> Verdict:
    if isinstance(got, DataError):
        return Verdict("taken for damage", f"{done}: {got}")
    if isinstance(got, LumosError):
        return Verdict("not read", f"{done}: {got}")
    if [names for names, _ in got] != [names for names, _ in expected]:
        return Verdict("lost", done)
    return Verdict(RIGHT if got == expected else "wrong", done)


REMOTE = Campaign(
    name="remote",
    title="trainings from afar",
    instances=200,
    held=(RIGHT,),
    broken=("wrong", "lost", "taken for damage", "not read", "limit broken", "left over"),
    open=_remote,
)
