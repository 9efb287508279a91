"""A checkpoint of a run that never was: random weights, with all that generation needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lumos_pl.checkpoints.contents import FORMAT
from lumos_pl.checkpoints.description import identity
from lumos_pl.layout import LayoutConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.models.transformer import LumosTransformer

LAYOUT = LayoutConfig(preset="compact", codebook_size=1000)
MODEL = ModelConfig(size="debug", max_length=16_384)
CLIP = {"width": 32, "height": 32, "frames": 9, "fps": 8}


def write_checkpoint(
    file: Path,
    *,
    seed: int = 0,
    prefixes: tuple[str, ...] = ("net.",),
    codes_of: object = None,
    of_layout: LayoutConfig = LAYOUT,
    of_model: ModelConfig = MODEL,
    **config: Any,
) -> Path:
    """A decoder over bytes and the embedded visual tokenizer's codes, with 9 frames of 4x4 codes by default.

    Args:
        prefixes: of the weights; `ema.` are other ones.
        of_layout, of_model: of the decoder.
        codes_of: fingerprint of the visual tokenizer that made its data; None: not said, as in older checkpoints.
        config: instead of what the run's configuration has there.
    """
    shape = of_model.build(of_layout.build())
    state: dict[str, torch.Tensor] = {}
    for number, prefix in enumerate(prefixes):
        net = LumosTransformer(shape)
        net.init_weights(seed + number)
        large = {name: p * (1 if "norm" in name else 5) for name, p in net.state_dict().items()}
        state |= {prefix + name: tensor for name, tensor in large.items()}
    settings = {
        "visual_tokenizer": "embedded",
        "data": {"prompt": "{caption}", "text_tokenizer": None},
        "clip": CLIP,
        "sampling": {"steps": 2, "guidance": 2.0},
        "trainer": {"precision": "32-true"},
        **config,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    data = {} if codes_of is None else {"data": {"visual_tokenizer": codes_of}}
    described = {"format": FORMAT, "config": settings, "identity": {**identity(of_layout, shape), **data}}
    torch.save({"state_dict": state, "lumos": described}, file)
    return file
