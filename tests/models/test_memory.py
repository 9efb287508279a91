"""Peak memory of a training step grows with the tokens, not with their square.

pytest -m slow -s tests/models/test_memory.py
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

SIZES = (2_000, 4_000, 8_000, 16_000)

STEP = """
import sys
from functools import partial
import torch
from bench.measure import measure_here
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import pack
from lumos_pl.layout import TokenSequence, compact_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.transformer import LumosTransformer

def step(net, n_tokens, side=30):
    text = 100
    latent_frames = n_tokens // (side * (side + 1) + 4)
    codes = torch.randint(1000, (latent_frames, side, side), generator=torch.Generator().manual_seed(0))
    sequence = TokenSequence(text_ids=(1,) * text, codes=codes, duration=1, fps=12)
    batch = hide_tokens(pack([sequence], ["a"], layout), layout, MaskConfig(), seed=0)
    states = net(batch.inputs, batch.spans)[batch.target_index]
    objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig())
    net.lm_head(states, objective)[0].backward()
    return len(batch.tokens)

layout = compact_layout(1000)
net = LumosTransformer(ModelConfig(size="small", max_length=40_000).build(layout))
net.init_weights(0)
step(net, 200, side=4)  # what the first step sets up once
measured = measure_here(lambda: step(net, int(sys.argv[1])))
print(measured["result"], measured["peak_mib"])
"""


@pytest.mark.slow
def test_memory_grows_with_the_tokens() -> None:
    measured = []
    for size in SIZES:
        done = subprocess.run([sys.executable, "-c", STEP, str(size)], capture_output=True, text=True, check=True)
        tokens, mebibytes = done.stdout.split()
        measured.append((int(tokens), float(mebibytes)))
        print(f"{tokens} tokens: {float(mebibytes):.0f} MiB above the base")
    (fewest, low), (most, high) = measured[0], measured[-1]
    exponent = math.log(high / low) / math.log(most / fewest)
    print(f"exponent {exponent:.2f}")
    assert exponent < 1.15
