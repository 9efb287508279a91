from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lumos_pl.ar_df import hide_behind_own, hide_tokens
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


def test_behind_the_models_own_codes_the_truth_is_asked_for(make_sequence: Make, layout: TokenLayout) -> None:
    """What the model drew stands where it is visible, at places that were hidden first; given frames stay true."""
    batch = pack([make_sequence(latent_frames=4, rows=8, cols=8)], ["a"], layout, n_given=[1])
    first = hide_tokens(batch, layout, MaskConfig(min_ratio=0.5), seed=2)
    drawn = (first.target_codes + 1) % layout.codebook_size
    second = hide_behind_own(first, drawn, layout, MaskConfig(min_ratio=0.5), seed=2)
    assert torch.equal(second.target_codes, batch.tokens[second.target_index] - layout.visual_offset)
    own = batch.tokens.index_copy(0, first.target_index, drawn + layout.visual_offset)
    visible = second.inputs != layout.mask
    assert torch.equal(second.inputs[visible], own[visible])
    assert not torch.equal(second.inputs[visible], batch.tokens[visible])
    assert not torch.equal(second.target_index, first.target_index)
