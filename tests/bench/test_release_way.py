"""The baseline of the benchmarks computes what we compute; otherwise its time would mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from bench.release_way import release_generate, release_loss
from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import pack
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate


def test_the_same_codes(make_decoder: Callable[..., LumosTransformer], layout: TokenLayout) -> None:
    net = make_decoder()
    request = GenerationRequest(text_ids=(1, 2, 3), latent_frames=3, rows=4, cols=4, duration=1, fps=12, seed=0)
    config = SamplingConfig(steps=4, guidance=3.0, partial_context=0.6, greedy=True)
    (codes,) = generate(net, layout, [request], config)
    assert torch.equal(release_generate(net, layout, request, config), codes)


def test_the_same_loss_and_gradients(
    make_decoder: Callable[..., LumosTransformer], make_sequence: Callable[..., TokenSequence], layout: TokenLayout
) -> None:
    net = make_decoder()
    batch = hide_tokens(pack([make_sequence(rows=4, cols=4)], ["a"], layout), layout, MaskConfig(), seed=0)
    states = net(batch.inputs, batch.spans)[batch.target_index]
    objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig())
    loss, _ = net.lm_head(states, objective)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]  # type: ignore[union-attr]
    net.zero_grad()
    baseline = release_loss(net, batch.inputs, batch.spans[0], batch.target_index, batch.target_codes)
    baseline.backward()
    torch.testing.assert_close(loss, baseline)
    for gradient, parameter in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)
