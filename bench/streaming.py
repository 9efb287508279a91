"""An epoch from local shards, against a plain reader of tars that builds its tokens in loops.

python -m bench.streaming ours|plain [--samples N] [--workers 0|1]
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.made_up_shards import LAYOUT, stream_of, write_made_up_shards
from bench.measure import measure_here

BATCH_SIZE = 4
FRAMES, WIDTH, HEIGHT = 24, 448, 256


def ours(folder: Path, samples: int, workers: int) -> Iterator[Tensor]:
    batches = stream_of(folder, frames=FRAMES, batch_size=BATCH_SIZE, workers=workers)
    for batch in islice(batches, samples // BATCH_SIZE):
        yield batch.tokens


def plain(folder: Path) -> Iterator[Tensor]:
    """Nothing is verified, shuffled or batched."""
    for file in sorted(folder.glob("*.tar")):
        contents: dict[str, bytes] = {}
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                contents[member.name] = stream.read()
        for name in contents:
            if name.endswith(".codes.npy"):
                described = json.loads(contents[name.replace(".codes.npy", ".json")])
                yield _tokens(np.load(io.BytesIO(contents[name])), described)


def _tokens(codes: np.ndarray[Any, np.dtype[np.uint16]], described: dict[str, Any]) -> Tensor:
    number = LAYOUT.number_offset
    tokens = [LAYOUT.bos, *described["text"], LAYOUT.sep, LAYOUT.video_start]
    tokens += [number + described["duration"], number + described["fps"]]
    for frame in codes:
        tokens += [LAYOUT.frame_start, number + described["height"] // 32, number + described["width"] // 32]
        for row in frame:
            tokens += [LAYOUT.visual_offset + int(code) for code in row]
            tokens.append(LAYOUT.newline)
        tokens.append(LAYOUT.frame_end)
    return torch.tensor(tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours", "plain"])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos"
        write_made_up_shards(folder, samples=options.samples, frames=FRAMES, width=WIDTH, height=HEIGHT)
        stream = ours(folder, options.samples, options.workers) if options.way == "ours" else plain(folder)
        checksum = int(next(stream).sum())  # a run's first batch: what is opened and started once
        n_tokens = 0

        def work() -> int:
            nonlocal n_tokens
            total = checksum
            for tokens in stream:
                total += int(tokens.sum())
                n_tokens += len(tokens)
            return total

        measured = measure_here(work)
    print(json.dumps(measured | {"notes": {"tokens": n_tokens}}))


if __name__ == "__main__":
    main()
