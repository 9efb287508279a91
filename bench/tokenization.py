"""Drawn clips to shards by the embedded tokenizer: two workers against one, the same bytes.

python -m bench.tokenization two|one [--clips N]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import measure_here
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import tokenize_media
from lumos_pl.shape_world.clips import write_clips
from lumos_pl.shape_world.scene import WorldConfig

WORKERS = {"two": 2, "one": 1}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=list(WORKERS))
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args(arguments)
    world = WorldConfig()
    with TemporaryDirectory() as temporary:
        media, out = Path(temporary) / "media", Path(temporary) / "out"
        captions = write_clips(media, world, split="train", count=options.clips)
        settings = TokenizeSettings(size="64x64", workers=WORKERS[options.way])
        frames = 0

        def work() -> dict[str, str]:
            nonlocal frames

            def count(progress: object) -> None:
                nonlocal frames
                frames = progress.frames  # type: ignore[attr-defined]

            written = tokenize_media(captions, out, "embedded", settings, on_progress=count)
            return {kind: manifest.fingerprint for kind, manifest in written.items()}

        measured = measure_here(work)
    print(json.dumps(measured | {"notes": {"frames": frames}}))


if __name__ == "__main__":
    main()
