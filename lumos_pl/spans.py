"""Where the text, the latent frames and their content lie in a token sequence, and the positions of each token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MARKERS_PER_FRAME = 4  # FRAME_START h w ... FRAME_END


@dataclass(frozen=True)
class SequenceSpans:
    """Where everything lies in one sequence, derived from five numbers.

    Args:
        prefix: tokens before the first FRAME_START.
        latent_frames, rows, cols: the clip's latent shape T, H, W.
        closing: tokens after the last frame.
    """

    prefix: int
    latent_frames: int
    rows: int
    cols: int
    closing: int = 0

    @property
    def n_positions(self) -> int:
        """Content tokens of one frame: H * (W + 1)."""
        return self.rows * (self.cols + 1)

    @property
    def frame_length(self) -> int:
        return self.n_positions + MARKERS_PER_FRAME

    @property
    def length(self) -> int:
        return self.prefix + self.latent_frames * self.frame_length + self.closing

    @property
    def first_content(self) -> int:
        """Index of the first content token: the base of the 3-D positions."""
        return self.prefix + MARKERS_PER_FRAME - 1

    def frame_block(self, frame: int) -> tuple[int, int]:
        """[start, end) of one frame's block, FRAME_START and FRAME_END included."""
        start = self.prefix + frame * self.frame_length
        return start, start + self.frame_length

    @cached_property
    def content_index(self) -> Tensor:
        """Index in the sequence of every content token, [T, H * (W + 1)]."""
        starts = self.first_content + self.frame_length * torch.arange(self.latent_frames)
        return starts[:, None] + torch.arange(self.n_positions)

    @cached_property
    def is_visual_position(self) -> Tensor:
        """True at the content positions of a frame that hold a code; the others are NEWLINEs. [H * (W + 1)]."""
        return torch.arange(self.n_positions) % (self.cols + 1) != self.cols

    @property
    def visual_index(self) -> Tensor:
        """Index in the sequence of every visual token, [T, H * W]."""
        return self.content_index[:, self.is_visual_position]

    def is_content(self) -> Tensor:
        """True at content tokens, [S]."""
        content = torch.zeros(self.length, dtype=torch.bool)
        content[self.content_index.flatten()] = True
        return content

    def positions(self, scale: tuple[int, int, int] | None) -> Tensor:
        """Three positions (t, h, w) for every token, [S, 3].

        Text-like tokens stand at their index on all three axes. A content token stands at
        `base + scale * (frame, row, col)`, base being the index of the first content token;
        a NEWLINE has col = W. With `scale=None` content tokens stand at their index too (1-D).
        """
        positions = torch.arange(self.length)[:, None].repeat(1, 3)
        if scale is not None:
            axes = torch.arange(self.latent_frames), torch.arange(self.rows), torch.arange(self.cols + 1)
            grid = torch.cartesian_prod(*axes).reshape(-1, 3)  # [T * H * (W + 1), 3]
            positions[self.content_index.flatten()] = self.first_content + grid * torch.tensor(scale)
        return positions
