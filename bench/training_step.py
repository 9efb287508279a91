"""A training step of one clip, against the release's way: the same loss, time and memory.

python -m bench.training_step ours|release [--frames T] [--side H] [--text N] [--precision 32-true|bf16-mixed]
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import torch

from bench.measure import measure_here
from bench.release_way import release_loss
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.allocator import keep_freed_memory
from lumos_pl.layout import TokenSequence, lumos1_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.seeding import generator

CODEBOOK_SIZE = 64_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["ours", "release"])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--text", type=int, default=200)
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `lumos` does, for both
    layout = lumos1_layout()
    net = LumosTransformer(ModelConfig(size="small", max_length=65_536).build(layout))
    net.init_weights(0)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # memory of its own, as from the second step on

    def batch(frames: int, side: int) -> MaskedBatch:
        codes = torch.randint(CODEBOOK_SIZE, (frames, side, side), generator=generator(0, "bench"))
        sequence = TokenSequence(text_ids=(20_000,) * options.text, codes=codes, duration=1, fps=12)
        return hide_tokens(pack([sequence], ["bench"], layout), layout, MaskConfig(), seed=0)

    def work(batch: MaskedBatch) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            if options.way == "ours":
                hidden = net(batch.inputs, batch.spans)[batch.target_index]
                objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig())
                loss, _ = net.lm_head(hidden, objective)
            else:
                loss = release_loss(net, batch.inputs, batch.spans[0], batch.target_index, batch.target_codes)
        loss.backward()
        value: float = loss.item()
        return value

    work(batch(1, 4))  # what the first step sets up once
    print(json.dumps(measure_here(lambda: work(batch(options.frames, options.side)))))


if __name__ == "__main__":
    main()
