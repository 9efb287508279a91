"""What a training step of a visual tokenizer costs, by precision and padding: seconds of the processor's own time.

python -m bench.tokenizer_step [--steps 5] [KEY=VALUE ...]

Shape, loss and clips are those of `tokenizer_general`, or of what the settings make of it. The kinds take turns, so
that other work on the machine meets them all; torch uses one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import median
from typing import get_args

import torch
from torch import Tensor

from data_modules.media.size_buckets import parse_sizes
from experiments.config import TokenizerExperimentConfig
from experiments.read_config import load_experiment
from lumos_pl.seeding import generator
from lumos_pl.tokenizers.fsq import FsqTokenizer
from lumos_pl.tokenizers.reconstruction_loss import level_loss, picture_loss
from lumos_pl.tokenizers.trained import Padding
from lumos_pl.tokenizers.visual import to_unit

PRECISIONS = "32-true", "bf16-mixed"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(arguments)
    config = load_experiment("tokenizer_general", options.overrides)
    assert isinstance(config, TokenizerExperimentConfig)
    torch.set_num_threads(1)
    ((width, height),) = parse_sizes(config.data.size, multiple=1)
    shape = (config.data.batch_size, config.data.frames, height, width, 3)
    frames = torch.randint(0, 256, shape, generator=generator(0, "pictures"), dtype=torch.uint8)
    nets = {padding: FsqTokenizer(replace(config.tokenizer, padding=padding)) for padding in get_args(Padding)}
    seconds: dict[tuple[str, str], list[float]] = {kind: [] for kind in product(nets, PRECISIONS)}
    for turn in range(options.steps + 1):  # the first warms up
        for (padding, precision), taken in seconds.items():
            begun = time.process_time()
            _step(nets[padding], config, to_unit(frames), in_bf16=precision == "bf16-mixed")
            if turn > 0:
                taken.append(time.process_time() - begun)
    for (padding, precision), taken in seconds.items():
        print(f"{padding:10}{precision:11}{median(taken):.3f} s a step ({min(taken):.3f} to {max(taken):.3f})")


def _step(net: FsqTokenizer, config: TokenizerExperimentConfig, pictures: Tensor, *, in_bf16: bool) -> None:
    """Forward and backward, as `TokenizerModule` does; what the optimizer takes is the same for all kinds."""
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        back = net(pictures)
        loss = picture_loss(config.loss, back.pictures[:, :, : pictures.shape[2]], pictures)
        loss = loss + level_loss(config.loss, *back.levels)
    net.zero_grad()
    loss.backward()


if __name__ == "__main__":
    main()
