"""A module and batches whose every product torch can count on a CPU, and that count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.layout import LayoutConfig, TokenSequence
from lumos_pl.loss.masked_cross_entropy import LossConfig
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ModelConfig, Recomputed
from lumos_pl.models.flops import Flops, forward_flops
from lumos_pl.module import LumosModule

LAYOUT_CONFIG = LayoutConfig(preset="compact", codebook_size=300)
LAYOUT = LAYOUT_CONFIG.build()


def make_module(recomputed: Recomputed = "none") -> LumosModule:
    model = ModelConfig(size="debug", activation_checkpointing=recomputed)
    module = LumosModule(model, LAYOUT_CONFIG, loss=LossConfig(chunk_size=64))
    module.configure_model()
    return module


def make_batch(*shapes: tuple[int, int, int]) -> MaskedBatch:
    """Clips so small that attention is written out as products, which torch can count on a CPU."""
    sequences = [
        TokenSequence(text_ids=(1,), codes=torch.zeros(shape, dtype=torch.int64), duration=1, fps=12)
        for shape in shapes
    ]
    return hide_tokens(pack(sequences, list(map(str, shapes)), LAYOUT), LAYOUT, MaskConfig(), seed=0)


def counted(function: Callable[[], object]) -> int:
    """Operations of all matrix products that run in it, as torch counts them."""

    def product(_: object, left: tuple[int, int], right: tuple[int, int], **__: object) -> int:
        return 2 * left[0] * left[1] * right[1]

    in_place = {torch.ops.aten.addmm_: product}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        function()
    return int(counter.get_total_flops())


def parts(module: LumosModule, batch: MaskedBatch) -> Flops:
    return forward_flops(module.shape, batch.spans, len(batch.target_index))


def recomputed_flops(module: LumosModule, batch: MaskedBatch, recomputed: Recomputed) -> int:
    """What a backward pass repeats: of a whole layer all but its last product, which nothing asks for."""
    config, forward = module.shape, parts(module, batch)
    last = 2 * len(batch.inputs) * config.ffn_dim * config.dim * config.n_layers
    return forward.body + forward.attention - last if recomputed == "full" else 0  # selective repeats no product
