"""Reads of data that fail, for less or for longer than they are tried, beside samples that are damaged in earnest."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path

from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.manifest import Manifest
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.experiment import CODEBOOK, PER_STEP, STEPS, write_data
from faults.job import AGAIN
from faults.processes import ended, forked
from faults.storage import CHANGED, LONG, SHORT, Storage, Trouble
from lumos_pl.layout import compact_layout
from lumos_pl.machinery.retrying import RetryConfig

RIGHT = "same batches"
ATTEMPTS = 4
MOST_S = 60.0
KINDS = "images", "videos"
ERRORS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT, SHORT, CHANGED)
ALL = 10**6  # samples that may be left out: more than there are

Sample = tuple[str, str]  # its appearance, and a digest of its tokens
Place = tuple[str, str, int]  # of a sample: kind, shard and number


def read(
    root: Path, *, workers: int, most_bad: int, once_set_up: Callable[[], None] = lambda: None
) -> tuple[list[list[Sample]], list[Place]]:
    """The samples of every micro-batch of a training, and those that were left out."""
    config = DataConfig(
        kind="joint",
        root=str(root),
        image=SourceConfig(batch_size=2),
        video=SourceConfig(batch_size=1, frames=9),
        num_workers=workers,
        prompt="{caption}",
        given_prob=0.3,
        retry=RetryConfig(attempts=ATTEMPTS, wait_s=0.002, longest_wait_s=0.01),
        max_bad_samples=most_bad,
    )
    data = TokenDataModule(config, compact_layout(codebook_size=CODEBOOK), seed=3)
    data.setup("fit")
    once_set_up()
    stream = data.stream(partial(StreamPosition, per_step=PER_STEP))
    batches: list[list[Sample]] = []
    left_out: list[Place] = []
    for batch in islice(stream, STEPS * PER_STEP):
        starts = [0]
        for spans in batch.spans:
            starts.append(starts[-1] + spans.length)
        parts = [batch.tokens[a:b].numpy().tobytes() for a, b in pairwise(starts)]
        digests = [hashlib.sha256(part).hexdigest()[:16] for part in parts]
        batches.append(list(zip(batch.appearances, digests, strict=True)))
        for one in batch.left_out:
            shard = Path(one.shard)
            places = range(one.samples) if one.place is None else [one.place]
            left_out += [(shard.parent.name, shard.name, place) for place in places]
    return batches, left_out


@dataclass(frozen=True)
class Reading:
    """What a process made of it."""

    status: int | None
    said: str
    injected: int
    batches: list[list[Sample]]
    left_out: set[Place]


def read_apart(folder: Path, root: Path, storage: Storage, *, workers: int, most_bad: int) -> Reading:
    """Read in a process of its own, from a storage that fails."""
    result, said = folder / "result.json", folder / "said"
    for file in (result, said, storage.log):
        if file is not None:
            file.unlink(missing_ok=True)

    def work() -> int:
        outage = any(one.error == errno.ENOENT and one.times == LONG for one in storage.troubles)
        if not outage:  # of a folder that was never seen, nobody knows that it was there
            storage.install()
        found = read(root, workers=workers, most_bad=most_bad, once_set_up=storage.install if outage else lambda: None)
        result.write_text(json.dumps(found))
        return 0

    status = ended(forked(work, said), MOST_S)
    injected = len(storage.log.read_text().splitlines()) if storage.log and storage.log.exists() else 0
    batches, left_out = json.loads(result.read_text()) if status == 0 else ([], [])
    samples = [[(name, digest) for name, digest in batch] for batch in batches]
    places = {(kind, shard, place) for kind, shard, place in left_out}
    return Reading(status, said.read_text()[-1500:], injected, samples, places)


def damage(draw: random.Random, root: Path) -> dict[Place, str]:
    """Change a byte of some samples, or take away a shard; the places and keys of all that is damaged now."""
    damaged: dict[Place, str] = {}
    for kind in draw.sample(KINDS, draw.choice([1, 2])):
        manifest = Manifest.load(root / kind)
        number = draw.randrange(len(manifest.shards))
        entry = manifest.shards[number]
        file = root / kind / entry.file
        places = draw.sample(range(entry.n_samples), draw.choice([1, 1, 2, entry.n_samples]))
        if len(places) == entry.n_samples and draw.random() < 0.5:
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            for place in places:
                data[draw.randrange(([0, *entry.ends])[place], entry.ends[place])] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
        first = sum(shard.n_samples for shard in manifest.shards[:number])
        for place in places:
            damaged[kind, entry.file, place] = f"clip-{2 * (first + place) + (kind == 'videos'):03d}"
    return damaged


def trouble(draw: random.Random, root: Path) -> Trouble:
    """One that is drawn, at the manifests or the shards."""
    error = draw.choice(ERRORS)
    operations = {SHORT: ("read",), CHANGED: ("read",), errno.ENOENT: ("open", "list")}.get(error)
    operations = operations or draw.choice([("open",), ("read",), ("open", "read", "list")])
    times = 1 if error in (SHORT, CHANGED) else draw.choice([1, 1, 2, ATTEMPTS - 1, LONG])
    name = draw.choice(["*.tar", "*.tar", "manifest.json"])
    if error == errno.ENOENT:  # of a mount, all is gone: a shard that is not beside its manifest is missing
        name = "*" if times == LONG else "*.tar"
    return Trouble(error=error, under=str(root), name=name, operations=operations, after=draw.randrange(8), times=times)


@contextmanager
def _reads(folder: Path) -> Iterator[Judge]:
    whole = write_data(folder / "data") / "train"
    expected, _ = read(whole, workers=0, most_bad=0)

    def judge(draw: Draw) -> Verdict | None:
        root = folder / "try"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        damaged = damage(draw, root) if draw.random() < 0.3 else {}
        workers, one = draw.choice([0, 0, 1, 2]), trouble(draw, root)
        most_bad = ALL if damaged else draw.choice([0, ALL])
        got = read_apart(folder, root, Storage([one], folder / "troubles"), workers=workers, most_bad=most_bad)
        done = f"{one}, {workers} workers, {got.injected} injected, damaged {sorted(damaged)}: {got.status} {got.said}"
        if not got.injected:
            return None
        if "Traceback" in got.said:
            return Verdict("traceback", done)
        if one.times == LONG and got.status == AGAIN:
            return Verdict(RIGHT, done)
        if got.status != 0:
            return Verdict("taken for damage" if got.status == 3 else "not read", done)
        return _compared(expected, got, damaged, done)

    yield judge


def _compared(expected: list[list[Sample]], got: Reading, damaged: dict[Place, str], done: str) -> Verdict:
    if [len(batch) for batch in got.batches] != [len(batch) for batch in expected]:
        return Verdict("lost", done)
    if got.left_out != damaged.keys():
        return Verdict("accounts differ", f"{done}: left out {sorted(got.left_out)}")
    keys = set(damaged.values())
    pairs = zip(chain(*expected), chain(*got.batches), strict=True)
    for one, other in pairs:
        is_damaged = one[0].rpartition("/")[2] in keys
        instead = other[0].rpartition("/")[2].partition("~")[0]
        if (is_damaged and instead in keys) or (not is_damaged and one != other):
            return Verdict("wrong", f"{done}: {one} {other}")
    return Verdict(RIGHT, done)


READS = Campaign(
    name="read-errors",
    title="reads of data that fail",
    instances=200,
    held=(RIGHT,),
    broken=("wrong", "lost", "accounts differ", "taken for damage", "not read", "traceback"),
    open=_reads,
)
