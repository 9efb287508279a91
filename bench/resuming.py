"""From opening the data to the first batch in the middle of an epoch, against reading up to there.

python -m bench.resuming ours|reading [--samples N] [--workers 0|1]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench.made_up_shards import stream_of, write_made_up_shards
from bench.measure import measure_here


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours", "reading"])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        write_made_up_shards(folder, samples=options.samples, frames=1, width=448, height=256)
        middle = options.samples // 2

        def work() -> int:
            start = middle if options.way == "ours" else 0
            batches = stream_of(folder, frames=1, batch_size=1, workers=options.workers, step=start)
            return int(next(islice(batches, middle - start, None)).tokens.sum())

        print(json.dumps(measure_here(work)))


if __name__ == "__main__":
    main()
