"""Tens of millions of samples, as far as a run knows them before it reads a shard: opened, planned, resumed.

python -m bench.manifest_scale [--samples N] [--step N] [--folder DIR]

Prints a line for each figure. Seconds are of this process's CPU, beside those of the clock, which on a shared machine
say little. Memory is this process's own (anonymous); what is mapped is shared by all processes of a machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_modules.config import SourceConfig
from data_modules.shards.folders import FolderShards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.table import ROW, Rows, ShardTable
from data_modules.stream.held_out import split
from data_modules.stream.plan import StreamPlan
from lumos_pl.layout import lumos1_layout

PER_SHARD = 1024
BYTES_A_SAMPLE = 5000
SHAPES = tuple((t, h, w) for t in (1, 4, 7) for h, w in ((32, 56), (40, 48), (48, 40), (56, 32)))
MIB = 1 << 10  # in the unit of /proc


def write_made_up_manifest(folder: Path, n: int) -> None:
    """A manifest whose shards are not there; the last one is smaller."""
    draw = np.random.default_rng(0)
    rows = np.empty(n, ROW)
    rows["shape"] = draw.integers(0, len(SHAPES), n, dtype=np.uint32)
    rows["text_length"] = draw.integers(20, 400, n, dtype=np.uint32)
    rows["end"] = (np.arange(n) % PER_SHARD + 1) * BYTES_A_SAMPLE
    rows["checksum"] = draw.integers(0, 1 << 32, n, dtype=np.uint32)
    counts = [PER_SHARD] * (n // PER_SHARD) + ([n % PER_SHARD] if n % PER_SHARD else [])
    shards = [
        (f"shard-{number:06d}.tar", count, count * BYTES_A_SAMPLE + 1024, f"{number:064x}")
        for number, count in enumerate(counts)
    ]
    layout = lumos1_layout()
    Manifest(
        tokenizer="made-up",
        codebook_size=layout.codebook_size,
        strides=layout.strides,
        shapes=SHAPES,
        shards=ShardTable.over(Rows(values=rows), shards),
    ).save(folder)


def memory() -> dict[str, int]:
    """MiB of this process by kind: its own, mapped from files, and the most there ever was of both."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {line[0]: int(line[1]) // MIB for line in lines if line[0] in ("RssAnon:", "RssFile:", "VmHWM:")}
    return {"own_mib": found["RssAnon:"], "mapped_mib": found["RssFile:"], "most_mib": found["VmHWM:"]}


@contextmanager
def measured(name: str) -> Iterator[None]:
    clock, cpu, before = time.perf_counter(), time.process_time(), memory()["own_mib"]
    yield
    seconds = {"cpu_s": round(time.process_time() - cpu, 2), "clock_s": round(time.perf_counter() - clock, 2)}
    print(json.dumps({"what": name, **seconds, "own_mib_more": memory()["own_mib"] - before, **memory()}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=60_000_000)
    parser.add_argument("--step", type=int, default=500_000)
    parser.add_argument("--batch-size", type=int, default=6, help="of a micro-batch")
    parser.add_argument("--per-step", type=int, default=8, help="micro-batches of a step: ranks, one each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="of a manifest that was made so before; made if missing")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST_FILE).exists():
            write_made_up_manifest(folder, options.samples)
        with measured("opened"):
            manifest = Manifest.read(folder)
        for max_tokens in None, 65_536:
            config = SourceConfig(batch_size=options.batch_size, max_tokens=max_tokens, frames=25)
            with measured(f"planned, max_tokens {max_tokens}"):
                plan = StreamPlan(manifest, config, lumos1_layout(), kind="video", seed=0)
            with measured("first batch"):
                plan.walk().batch(0)
            with measured(f"first batch at step {options.step}"):
                walk = plan.walk()
                walk.batch(options.step * options.per_step)
            with measured("and of each other stream of that worker"):
                apart = options.per_step * options.workers
                for number in range(1, max(1, plan.n_streams // apart)):
                    walk.batch(options.step * options.per_step + number * apart)
        with measured("a thousandth held out"):
            split(FolderShards(folder=folder, manifest=manifest), 0.001, "video")
        with measured("half of the samples selected, and planned"):
            selected = np.random.default_rng(1).random(manifest.n_samples) < 0.5
            plan = StreamPlan(manifest, config, lumos1_layout(), kind="video", seed=0, selected=selected)
            del selected
        with measured("first batch of them"):
            plan.walk().batch(0)
        with measured("counted, as `lumos plan` does"):
            manifest.table.counts()


if __name__ == "__main__":
    main()
