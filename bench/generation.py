"""Generating a clip, against the release's way: the same codes, time and memory.

python -m bench.generation ours|release [--frames T] [--steps S] [--rows H] [--cols W] [--precision 64-true] ...
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence

from torch import Tensor

from bench.measure import measure_here
from bench.model import add_model_arguments, build_model, text_id
from bench.release_way import release_generate
from lumos_pl.layout import TokenLayout
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate

TEXT_LENGTH = 60


def clip_request(layout: TokenLayout, latent_frames: int, rows: int, cols: int) -> GenerationRequest:
    text_ids = tuple(text_id(layout) + i for i in range(TEXT_LENGTH))
    return GenerationRequest(
        text_ids=text_ids, latent_frames=latent_frames, rows=rows, cols=cols, duration=1, fps=12, seed=0
    )


def our_clip(net: LumosTransformer, layout: TokenLayout, request: GenerationRequest, config: SamplingConfig) -> Tensor:
    (codes,) = generate(net, layout, [request], config)
    return codes


WAYS = {"ours": our_clip, "release": release_generate}  # of making the codes [T, H, W] of a clip, on the CPU


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, latent_frames=2)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    net, layout = build_model(options)
    lumos = LumosPipeline(net=net, layout=layout, precision=options.precision)

    def work(asked: GenerationRequest) -> str:
        config = SamplingConfig(steps=options.steps, guidance=3.0, greedy=True)
        with lumos.autocast():
            codes = WAYS[options.way](net, layout, asked, config)
        return hashlib.sha256(codes.numpy().tobytes()).hexdigest()

    work(clip_request(layout, 1, 4, 4))  # what the first call sets up once
    asked = clip_request(layout, options.latent_frames, options.rows, options.cols)
    measured = measure_here(lambda: work(asked), options.device)
    print(json.dumps(measured | {"notes": {"frames": options.latent_frames}}))


if __name__ == "__main__":
    main()
