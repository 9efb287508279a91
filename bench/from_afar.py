"""How long a training waits for shards that lie elsewhere: a web server of this machine, as far and narrow as is said.

    python -m bench.from_afar --latency-ms 50 --mbit 100 --step-s 0.25 --steps 200 --rounds 2

The shards are of the recipe's clips (256p, 24 frames) and of the default size of `lumos tokenize`; a step is a sleep,
as of a GPU, of so many seconds: the defaults are those of `t2v_1b` on an H100, a clip of 13,000 tokens every quarter of
a second (`lumos plan t2v_1b`). The same steps are taken from the folder itself in between: a process waits for its data
as long as the machine gives its cores to others, too. What it computes to take a batch over is a part of its wait. The
first batch, which waits for the first shards of its streams, is told apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from bench.made_up_shards import LAYOUT, write_made_up_shards
from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.places import CacheConfig
from data_modules.stream.position import StreamPosition
from data_modules.token_data import TokenDataModule
from faults.web_server import web_server
from lumos_pl.machinery.store import is_url


def _serve(root: Path, latency_s: float, bytes_per_s: float, told: Connection) -> None:
    with web_server(root, latency_s=latency_s, bytes_per_s=bytes_per_s) as server:
        told.send(server.url)
        told.recv()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.from_afar", description=__doc__.splitlines()[0])
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--mbit", type=float, default=100)
    parser.add_argument("--step-s", type=float, default=0.25, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="lumos-afar-") as name:
        folder = Path(name)
        write_made_up_shards(folder / "data", samples=options.samples, frames=24, width=448, height=256)
        here, there = context.Pipe()
        shape = options.latency_ms / 1e3, options.mbit * 1e6 / 8
        server = context.Process(target=_serve, args=(folder / "data", *shape, there), daemon=True)
        server.start()
        try:
            roots = {"from afar": here.recv(), "local": str(folder / "data")}
            for number in range(options.rounds):
                for name, root in roots.items():
                    found = _measure(root, folder / f"cache-{number}", options)
                    print(json.dumps({"what": name, **found}), flush=True)
        finally:
            server.kill()
            server.join()


def _measure(root: str, cache: Path, options: argparse.Namespace) -> dict[str, float]:
    begun = time.monotonic()
    config = DataConfig(
        kind="video",
        root=root,
        video=SourceConfig(batch_size=options.batch_size, frames=24),
        num_workers=options.workers,
        cache=CacheConfig(dir=str(cache)),
    )
    data = TokenDataModule(config, LAYOUT, seed=0)
    data.setup("fit")
    stream = iter(data.stream(partial(StreamPosition, per_step=1)))
    next(stream)
    first_s = time.monotonic() - begun
    waited, computed, longest, trained = 0.0, 0.0, 0.0, time.monotonic()
    for _ in range(options.steps):
        time.sleep(options.step_s)
        asked, before = time.monotonic(), time.thread_time()
        next(stream)
        waited, computed = waited + time.monotonic() - asked, computed + time.thread_time() - before
        longest = max(longest, time.monotonic() - asked)
    seconds = time.monotonic() - trained
    fetched = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) if is_url(root) else 0
    return {
        "waiting_share": round(waited / seconds, 5),
        "of_it_computing": round(computed / seconds, 5),
        "longest_wait_s": round(longest, 3),
        "first_batch_s": round(first_s, 2),
        "seconds": round(seconds, 1),
        "MB_fetched": round(fetched / 1e6, 1),
    }


if __name__ == "__main__":
    main()
