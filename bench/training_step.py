"""A training step of one clip, against the release's way: the same loss, time and memory.

python -m bench.training_step ours|release [--frames T] [--rows H] [--cols W] [--text N] [--precision bf16-mixed] ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from bench.measure import measure_here
from bench.model import add_model_arguments, autocast, build_model, text_id
from bench.release_way import release_loss
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, PackedBatch, pack
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.flops import forward_flops, training_flops
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.optimizer import update_ema
from lumos_pl.seeding import generator


def packed_clip(layout: TokenLayout, shape: tuple[int, int, int], *, n_text: int) -> PackedBatch:
    """One clip of drawn codes, nothing hidden yet, on the CPU.

    Args:
        shape: latent frames, rows and columns.
        n_text: ids of its text.
    """
    codes = torch.randint(layout.codebook_size, shape, generator=generator(0, "bench"))
    sequence = TokenSequence(text_ids=(text_id(layout),) * n_text, codes=codes, duration=1, fps=12)
    return pack([sequence], ["bench"], layout)


def hidden_as_in_training(batch: PackedBatch, layout: TokenLayout) -> MaskedBatch:
    return hide_tokens(batch, layout, MaskConfig(), seed=0)


def our_loss(net: LumosTransformer, batch: MaskedBatch) -> Tensor:
    states = net(batch.inputs, batch.spans).index_select(0, batch.target_index)
    loss: Tensor
    loss, _ = net.lm_head(states, partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig()))
    return loss


def loss_as_released(net: LumosTransformer, batch: MaskedBatch) -> Tensor:
    """Of a batch of one sample."""
    return release_loss(net, batch.inputs, batch.spans[0], batch.target_index, batch.target_codes)


LOSSES = {"ours": our_loss, "release": loss_as_released}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser, latent_frames=4)
    parser.add_argument("--text", type=int, default=200)
    parser.add_argument("--update", choices=["fused", "loop"], help="with AdamW's part of the step, in such kernels")
    parser.add_argument("--ema", action="store_true", help="with an average of the weights")
    parser.add_argument("--repeats", type=int, default=1, help="steps that are timed; seconds are of one")
    options = parser.parse_args(arguments)
    net, layout = build_model(options)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)  # memory of its own, as from the second step on
    optimizer = None
    if options.update is not None:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=options.update == "fused", foreach=False)
    ema = deepcopy(net).requires_grad_(False) if options.ema else None

    def batch(latent_frames: int, rows: int, cols: int) -> MaskedBatch:
        clip = packed_clip(layout, (latent_frames, rows, cols), n_text=options.text)
        return hidden_as_in_training(clip, layout).to(options.device)

    def step(batch: MaskedBatch) -> float:
        with autocast(options):
            loss = LOSSES[options.way](net, batch)
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        if ema is not None:
            update_ema(ema, net, 0.999)
        value: float = loss.item()
        return value

    asked = batch(options.latent_frames, options.rows, options.cols)
    # What the first step sets up once; a graph is compiled, and a GPU's memory laid out, for the shape that follows.
    for _ in range(3 if options.device == "cuda" or options.compile else 1):
        step(asked if options.device == "cuda" or options.compile else batch(1, 4, 4))
    measured = measure_here(lambda: [step(asked) for _ in range(options.repeats)], options.device)
    measured["result"] = measured["result"][0]
    measured["seconds"] /= options.repeats
    measured["cpu_seconds"] /= options.repeats
    forward = forward_flops(net.config, asked.spans, len(asked.target_index))
    flops = training_flops(forward, n_tokens=len(asked.tokens)).total
    print(json.dumps(measured | {"notes": {"tokens": len(asked.tokens), "flops": flops}}))


if __name__ == "__main__":
    main()
