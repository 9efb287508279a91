from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.errors import ConfigError
from lumos_pl.layout import TokenLayout, TokenSequence, lumos1_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.attention import attend, block_causal_calls
from lumos_pl.models.config import SIZES, ModelConfig
from lumos_pl.models.flops import forward_flops
from lumos_pl.models.transformer import HeadNorm, LumosTransformer, visual_logits
from lumos_pl.spans import SequenceSpans
from tests.reference.plain import plain_states
from tests.refusals import refused

MakeDecoder = Callable[..., LumosTransformer]
MakeSequence = Callable[..., TokenSequence]


@pytest.fixture
def batch(make_sequence: MakeSequence, layout: TokenLayout) -> MaskedBatch:
    """Ragged: other texts, frames and grids, one sample without text."""
    shapes = [(3, 2, 3, 5), (1, 4, 2, 30), (2, 2, 2, None), (4, 1, 5, 0)]
    sequences = [make_sequence(*shape, seed=i) for i, shape in enumerate(shapes)]
    return hide_tokens(pack(sequences, list("abcd"), layout), layout, MaskConfig(), seed=0)


def singles(batch: MaskedBatch) -> list[tuple[Tensor, Tensor, object]]:
    lengths = [spans.length for spans in batch.spans]
    return list(zip(batch.inputs.split(lengths), batch.tokens.split(lengths), batch.spans, strict=True))


def loss_of(net: LumosTransformer, batch: MaskedBatch) -> Tensor:
    states = net(batch.inputs, batch.spans)[batch.target_index]
    objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig(chunk_size=16))
    loss: Tensor = net.lm_head(states, objective)[0]
    return loss


def test_batched_equals_alone(make_decoder: MakeDecoder, batch: MaskedBatch) -> None:
    net = make_decoder()
    together = net(batch.inputs, batch.spans)
    alone = torch.cat([net(inputs, [spans]) for inputs, _, spans in singles(batch)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rope", ["mm", "1d", "3d_block"])
def test_equals_the_plain_oracle(rope: str, make_decoder: MakeDecoder, batch: MaskedBatch, layout: TokenLayout) -> None:
    net = make_decoder(rope=rope).double()
    for inputs, tokens, spans in singles(batch):
        fast = net(inputs, [spans])
        torch.testing.assert_close(fast, plain_states(net, inputs, tokens, layout), atol=1e-6, rtol=0)


def test_a_later_frame_changes_nothing_before_it(
    make_decoder: MakeDecoder, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    net, sequence = make_decoder(), make_sequence()
    tokens, spans = layout.build(sequence), layout.spans(sequence)
    other = tokens.clone()
    other[spans.visual_index[1]] = layout.mask
    start, end = spans.frame_block(1)
    difference = (net(tokens, [spans]) - net(other, [spans])).abs().amax(1)
    assert difference[:start].max() == 0
    assert (difference[start:end] > 0).all()  # the whole frame, also what stands before the change


def test_closing_tokens_change_nothing(
    make_decoder: MakeDecoder, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    net, sequence = make_decoder(), make_sequence()
    closed = net(layout.build(sequence), [layout.spans(sequence)])
    opened = net(layout.build(sequence, closed=False), [layout.spans(sequence, closed=False)])
    torch.testing.assert_close(closed[:-2], opened, atol=1e-5, rtol=0)


def test_weights_depend_on_seed_and_name_alone(layout: TokenLayout) -> None:
    config = ModelConfig(size="debug").build(layout)
    first, again, other = (LumosTransformer(config) for _ in range(3))
    torch.manual_seed(1)
    first.init_weights(0)
    torch.manual_seed(2)
    again.init_weights(0)
    other.init_weights(1)
    pairs = zip(first.parameters(), again.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.model.layers[0].mlp.gate_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_every_weight_is_drawn_for_itself(layout: TokenLayout) -> None:
    net = LumosTransformer(ModelConfig(size="debug").build(layout))
    net.init_weights(0)
    first, second = net.model.layers
    assert not torch.equal(first.mlp.gate_proj.weight, first.mlp.up_proj.weight)
    assert not torch.equal(first.mlp.gate_proj.weight, second.mlp.gate_proj.weight)
    assert (first.self_attn.q_norm.weight == 1).all() and (first.self_attn.q_norm.bias == 0).all()


def test_head_norm_rows_serve_their_part_of_the_heads() -> None:
    norm = HeadNorm(rows=2, head_dim=4, eps=1e-5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0] * 4, [2.0] * 4]))
        norm.bias.copy_(torch.tensor([[0.0] * 4, [3.0] * 4]))
    x = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))
    plain = torch.nn.functional.layer_norm(x, (4,))
    torch.testing.assert_close(norm(x), torch.cat([plain[:, :3], plain[:, 3:] * 2 + 3], dim=1))


@pytest.mark.parametrize(("size", "billions"), [("1b", 1.5), ("3b", 3.6)])
def test_named_sizes_have_the_papers_parameter_counts(size: str, billions: float) -> None:
    config = ModelConfig(size=size).build(lumos1_layout())  # type: ignore[arg-type]
    with torch.device("meta"):
        net = LumosTransformer(config)
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(billions, abs=0.05)


def test_sizes_that_do_not_fit_are_refused(layout: TokenLayout) -> None:
    assert set(SIZES) >= {"0.5b", "1b", "3b"}
    with refused(ConfigError, where="model.head_dim", got="48"):
        ModelConfig(size="debug", head_dim=48).build(layout)
    with refused(ConfigError, where="model.n_heads"):
        ModelConfig(size="debug", n_heads=3, n_kv_heads=2, head_dim=32).build(layout)


def test_settings_reach_the_decoder(layout: TokenLayout) -> None:
    config = ModelConfig(size="debug", rope_theta=5.0, max_length=77).build(layout)
    assert (config.rope_theta, config.max_length) == (5.0, 77)
    for wrong in "n_layers", "max_length":
        with refused(ConfigError, where=f"model.{wrong}", got=0):
            ModelConfig(size="debug", **{wrong: 0}).build(layout)  # type: ignore[arg-type]
    with refused(ConfigError, where="model.qk_norm_rows"):
        replace(config, qk_norm_rows=2)


def test_flops_of_attention_by_hand(layout: TokenLayout) -> None:
    config = ModelConfig(size="debug").build(layout)  # 2 layers, 2 heads of 32
    spans = SequenceSpans(prefix=3, latent_frames=2, rows=1, cols=1)  # 3 tokens, then two frames of 6
    pairs = 1 + 2 + 3 + 6 * 9 + 6 * 15
    assert forward_flops(config, [spans], 0).attention == 2 * 2 * 2 * 64 * pairs  # 2 layers; QK and PV; 2 each


def test_flops_equal_torchs_counter(make_decoder: MakeDecoder, batch: MaskedBatch) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = make_decoder()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net.lm_head(net(batch.inputs, batch.spans)[batch.target_index], visual_logits)
    flops = forward_flops(net.config, batch.spans, len(batch.target_index))
    # torch counts a causal call as a full one, and knows no attention on the CPU
    assert counter.get_total_flops() in (flops.body + flops.head, pytest.approx(flops.total, rel=0.1))


def test_attention_from_a_cache_equals_the_full_pass(
    make_decoder: MakeDecoder, make_sequence: MakeSequence, layout: TokenLayout
) -> None:
    """What generation will rest on: `Attention` may keep keys and values, and the layers do not notice."""
    net, sequence = make_decoder(), make_sequence()
    tokens, spans = layout.build(sequence), layout.spans(sequence)
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def cached(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if layer in kept:
            key, value = (torch.cat(pair) for pair in zip(kept[layer], (key, value), strict=True))
        kept[layer] = key, value
        return attend(query, key, value, causal=len(query) == len(key))

    positions = net.positions(spans)
    blocks = [(call.start, call.end) for call in block_causal_calls(spans)]
    pieces = [net.model(tokens[start:end], positions[start:end], cached) for start, end in blocks]
    torch.testing.assert_close(torch.cat(pieces), net(tokens, [spans]), atol=1e-5, rtol=0)
