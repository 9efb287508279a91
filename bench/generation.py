"""Generating a clip, against the release's way: the same codes, time and memory.

python -m bench.generation ours|release [--frames T] [--steps S] [--side H] [--threads N]
"""

from __future__ import annotations

import argparse
import hashlib
import json

import torch

from bench.measure import measure_here
from bench.release_way import release_generate
from lumos_pl.allocator import keep_freed_memory
from lumos_pl.layout import lumos1_layout
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate

TEXT_LENGTH = 60


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours", "release"])
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `lumos` does, for both
    layout = lumos1_layout()
    net = LumosTransformer(ModelConfig(size="small").build(layout))
    net.init_weights(0)

    def request(frames: int, side: int) -> GenerationRequest:
        text_ids = tuple(range(20_000, 20_000 + TEXT_LENGTH))
        return GenerationRequest(text_ids=text_ids, frames=frames, rows=side, cols=side, duration=1, fps=12, seed=0)

    def work(asked: GenerationRequest) -> str:
        config = SamplingConfig(steps=options.steps, guidance=3.0, greedy=True)
        if options.way == "ours":
            codes = generate(net, layout, [asked], config)[0]
        else:
            codes = release_generate(net, layout, asked, config)
        return hashlib.sha256(codes.numpy().tobytes()).hexdigest()

    work(request(1, 4))  # what the first call sets up once
    print(json.dumps(measure_here(lambda: work(request(options.frames, options.side)))))


if __name__ == "__main__":
    main()
