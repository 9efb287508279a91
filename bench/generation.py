"""Generating a clip, against the release's way: the same codes, time and memory.

python -m bench.generation ours|release [--frames T] [--steps S] [--rows H] [--cols W] [--precision 64-true] ...
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence

from bench.measure import measure_here
from bench.model import add_model_arguments, autocast, build_model
from bench.release_way import release_generate
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate

TEXT_LENGTH = 60


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, frames=2)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    net, layout = build_model(options)

    def request(frames: int, rows: int, cols: int) -> GenerationRequest:
        text_ids = tuple(range(20_000, 20_000 + TEXT_LENGTH))
        return GenerationRequest(text_ids=text_ids, frames=frames, rows=rows, cols=cols, duration=1, fps=12, seed=0)

    def work(asked: GenerationRequest) -> str:
        config = SamplingConfig(steps=options.steps, guidance=3.0, greedy=True)
        with autocast(options):
            if options.way == "ours":
                codes = generate(net, layout, [asked], config)[0]
            else:
                codes = release_generate(net, layout, asked, config)
        return hashlib.sha256(codes.numpy().tobytes()).hexdigest()

    work(request(1, 4, 4))  # what the first call sets up once
    asked = request(options.frames, options.rows, options.cols)
    measured = measure_here(lambda: work(asked), options.device)
    print(json.dumps(measured | {"notes": {"frames": options.frames}}))


if __name__ == "__main__":
    main()
