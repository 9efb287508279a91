from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import pack
from lumos_pl.layout import TokenLayout, TokenSequence
from lumos_pl.masking import MaskConfig

Make = Callable[..., TokenSequence]


def test_targets_are_the_hidden_visual_tokens(make_sequence: Make, layout: TokenLayout) -> None:
    sequences = [make_sequence(text=7, seed=1), make_sequence(latent_frames=1, rows=4, text=None, seed=2)]
    batch = pack(sequences, ["a", "b"], layout)
    masked = hide_tokens(batch, layout, MaskConfig(), seed=0)
    changed = (masked.inputs != batch.tokens).nonzero().flatten()
    assert (masked.inputs[changed] == layout.mask).all()
    visual = changed[batch.tokens[changed] != layout.newline]
    assert len(visual) < len(changed)  # some NEWLINE was hidden too
    assert torch.equal(masked.target_index, visual)
    assert torch.equal(masked.target_codes, batch.tokens[visual] - layout.visual_offset)


def test_target_frames_count_within_the_sample(make_sequence: Make, layout: TokenLayout) -> None:
    batch = pack([make_sequence(text=0, seed=1), make_sequence(text=4, seed=2)], ["a", "b"], layout)
    masked = hide_tokens(batch, layout, MaskConfig(kind="diffusion_forcing", min_ratio=0.1), seed=3)
    for index, frame in zip(masked.target_index.tolist(), masked.target_frames.tolist(), strict=True):
        sample = 0 if index < batch.spans[0].length else 1
        spans, offset = batch.spans[sample], batch.offsets[sample]
        start, end = spans.frame_block(frame)
        assert start <= index - offset < end


@pytest.mark.parametrize("kind", ["tube", "random", "diffusion_forcing", "tube_decay"])
def test_given_frames_stay_visible_and_unsupervised(kind: str, make_sequence: Make, layout: TokenLayout) -> None:
    batch = pack([make_sequence(latent_frames=4)], ["a"], layout, n_given=[2])
    masked = hide_tokens(batch, layout, MaskConfig(kind=kind), seed=0)
    end = batch.spans[0].frame_block(1)[1]
    assert torch.equal(masked.inputs[:end], batch.tokens[:end])
    assert set(masked.target_frames.tolist()) == {2, 3}


def test_a_sample_is_hidden_alike_whatever_else_is_in_its_batch(make_sequence: Make, layout: TokenLayout) -> None:
    one, other = make_sequence(seed=1), make_sequence(latent_frames=2, text=9, seed=2)
    alone = hide_tokens(pack([one], ["video/0/one"], layout), layout, MaskConfig(), seed=5)
    both = hide_tokens(pack([other, one], ["video/0/other", "video/0/one"], layout), layout, MaskConfig(), seed=5)
    assert torch.equal(both.inputs[-len(alone.inputs) :], alone.inputs)
    again = hide_tokens(pack([one], ["video/1/one"], layout), layout, MaskConfig(), seed=5)
    assert not torch.equal(again.inputs, alone.inputs)


def test_what_is_hidden_depends_on_the_seed(make_sequence: Make, layout: TokenLayout) -> None:
    batch = pack([make_sequence()], ["a"], layout)
    first, again, other = (hide_tokens(batch, layout, MaskConfig(), seed=seed).inputs for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_leaves_the_closing_tokens_out(make_sequence: Make, layout: TokenLayout) -> None:
    batch = pack([make_sequence(), make_sequence()], ["a", "b"], layout)
    assert layout.video_end not in batch.tokens
    assert batch.offsets == [0, batch.spans[0].length]
    assert len(batch.tokens) == sum(spans.length for spans in batch.spans)
