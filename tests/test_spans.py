from __future__ import annotations

import torch

from lumos_pl.spans import SequenceSpans

SPANS = SequenceSpans(prefix=5, latent_frames=2, rows=2, cols=2, closing=2)  # frame blocks of 10 from 5 and 15


def test_spans_by_hand() -> None:
    assert (SPANS.n_positions, SPANS.frame_length, SPANS.length) == (6, 10, 27)
    assert [SPANS.frame_block(frame) for frame in range(2)] == [(5, 15), (15, 25)]
    assert SPANS.content_index.tolist() == [[8, 9, 10, 11, 12, 13], [18, 19, 20, 21, 22, 23]]
    assert SPANS.visual_index.tolist() == [[8, 9, 11, 12], [18, 19, 21, 22]]
    assert SPANS.is_content().nonzero().flatten().tolist() == SPANS.content_index.flatten().tolist()


def test_scaled_positions_by_hand() -> None:
    positions = SPANS.positions((4, 8, 8))
    assert positions[8:14].tolist() == [[8, 8, 8], [8, 8, 16], [8, 8, 24], [8, 16, 8], [8, 16, 16], [8, 16, 24]]
    assert positions[18].tolist() == [12, 8, 8]
    text_like = ~SPANS.is_content()
    assert torch.equal(positions[text_like], torch.arange(27)[text_like, None].expand(-1, 3))


def test_unscaled_positions_and_positions_by_index() -> None:
    assert SPANS.positions((1, 1, 1))[23].tolist() == [9, 9, 10]
    assert torch.equal(SPANS.positions(None), torch.arange(27)[:, None].expand(-1, 3))
