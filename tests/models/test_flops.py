from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import pack
from lumos_pl.layout import TokenSequence, compact_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import ComputeConfig, ModelConfig
from lumos_pl.models.flops import forward_flops
from lumos_pl.models.transformer import LumosTransformer


def _product(_: object, left: tuple[int, int], right: tuple[int, int], **__: object) -> int:
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_training_step_is_three_forward_passes(checkpointing: bool) -> None:
    """On clips so small that attention is written out as products, which torch can count on a CPU."""
    layout = compact_layout(codebook_size=300)
    net = LumosTransformer(
        ModelConfig(size="debug").build(layout), ComputeConfig(activation_checkpointing=checkpointing)
    )
    net.init_weights(0)
    sequence = TokenSequence(text_ids=(1,), codes=torch.zeros(3, 6, 6, dtype=torch.int64), duration=1, fps=12)
    batch = hide_tokens(pack([sequence], ["a"], layout), layout, MaskConfig(), seed=0)
    in_place = {torch.ops.aten.addmm_: _product}  # which the counter does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        hidden = net(batch.inputs, batch.spans)[batch.target_index]
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig(chunk_size=64))
        net.lm_head(hidden, objective)[0].backward()
    flops = forward_flops(net.config, batch.spans, len(batch.target_index))
    # what nothing asks for is not recomputed: the last product of each layer
    last = 2 * len(batch.inputs) * net.config.ffn_dim * net.config.dim * net.config.n_layers
    again = flops.body + flops.attention - last if checkpointing else 0
    # torch counts the causal text as a full square
    assert counter.get_total_flops() == pytest.approx(3 * flops.total + again, rel=0.01)
    assert min(flops.attention, flops.head) > 0.05 * flops.total  # so that each would be missed
