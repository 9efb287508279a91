"""The token grammar of Lumos-1: the only owner of special ids. Where tokens lie is in `spans`.

One sequence holds the text and the video (arXiv:2507.08801):

    BOS text.. SEP  VIDEO_START dur fps  { FRAME_START h w  rows  FRAME_END } x T  VIDEO_END SEP
    |------------- prefix -----------|   |--------------- frames ------------|  |-- closing --|

    rows = H rows of W visual ids, each row closed by NEWLINE
    content = the visual ids and the NEWLINEs of the frames; everything else is text-like

With the text dropped (classifier-free guidance) the sequence starts at VIDEO_START. The closing
tokens see everything, nothing sees them, and they carry no loss: training leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.settings.plain import check_types
from lumos_pl.settings.ranges import between, check_ranges
from lumos_pl.spans import MARKERS_PER_FRAME, SequenceSpans

PREFIX_MARKERS = 3  # VIDEO_START dur fps


def whole_seconds(frames: int, fps: int) -> int:
    """Duration in whole seconds of `frames` RGB frames, as a clip's text states it; at least one."""
    return max(1, round(frames / fps))


@dataclass(frozen=True, kw_only=True)
class TokenSequence:
    """What one sequence says, without ids other than the text's own.

    Args:
        text_ids: the text without BOS and SEP; None if the text is dropped.
        codes: visual codes, [T, H, W], integers below the codebook's size.
        duration: in whole seconds, at least one.
        fps: frames per second, at least one.
    """

    text_ids: tuple[int, ...] | None
    codes: Tensor
    duration: int
    fps: int


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The ids of one vocabulary, and the grammar over them.

    Args:
        vocab_size: number of ids; the codes are the last of them, `visual_offset + code`.
        n_text: ids below this may stand in the text, unless they are markers.
        number_offset, n_numbers: the id of the number 0, and how many numbers there are.
        size_unit: pixels per step of the h and w numbers.
        strides: pixels (frames) per latent step in t, h, w: the visual tokenizer's compression.
        digit_offset: text id of the decimal digit 0, if the text vocabulary has one.
    """

    name: str
    vocab_size: int
    n_text: int
    bos: int
    sep: int
    video_start: int
    video_end: int
    frame_start: int
    frame_end: int
    newline: int
    mask: int
    number_offset: int
    n_numbers: int
    visual_offset: int
    size_unit: int
    strides: tuple[int, int, int] = (4, 8, 8)
    digit_offset: int | None = None

    def __post_init__(self) -> None:
        check_types(f"layout {self.name}", self)
        if len(self.markers) != 8:
            raise ConfigError("two markers share an id", where=f"layout {self.name}")
        if not max(self.markers) < self.visual_offset < self.vocab_size:
            raise ConfigError(
                "the visual ids must come last",
                where=f"layout {self.name}: visual_offset",
                got=self.visual_offset,
                expected=f"above {max(self.markers)} and below {self.vocab_size}",
            )

    @property
    def codebook_size(self) -> int:
        return self.vocab_size - self.visual_offset

    @cached_property
    def markers(self) -> frozenset[int]:
        """The ids that structure a sequence, and MASK; they may not stand in a text."""
        frame = {self.frame_start, self.frame_end, self.newline, self.mask}
        return frozenset({self.bos, self.sep, self.video_start, self.video_end} | frame)

    # -- numbers -------------------------------------------------------------------------------

    def number(self, value: int, what: str) -> int:
        """The id of a duration, frame rate or size, which is never 0."""
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise DataError(f"{what} is not whole", where=what, got=repr(value)[:100], expected="a whole number")
        if not 1 <= value < self.n_numbers:
            raise DataError(f"{what} has no token", where=what, got=value, expected=f"1 to {self.n_numbers - 1}")
        return self.number_offset + value

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of codes of a frame of `width` x `height` pixels."""
        for what, pixels, stride in ("height", height, self.strides[1]), ("width", width, self.strides[2]):
            unit = max(self.size_unit, stride)
            if pixels <= 0 or pixels % unit:
                raise DataError(
                    f"{what} does not fit the token grid", where=what, got=pixels, expected=f"a multiple of {unit} px"
                )
        return height // self.strides[1], width // self.strides[2]

    def latent_frames(self, frames: int) -> int:
        """Latent frames of `frames` RGB frames: the first one alone, then groups (causal tokenizer)."""
        return 1 - (1 - frames) // self.strides[0]

    def _size_number(self, cells: int, stride: int, what: str) -> int:
        pixels = cells * stride
        if pixels % self.size_unit:
            raise DataError(
                f"{what} does not fit the token grid",
                where=what,
                got=f"{cells} latent cells = {pixels} px",
                expected=f"a multiple of {self.size_unit} px",
            )
        return self.number(pixels // self.size_unit, what)

    # -- building ------------------------------------------------------------------------------

    def prefix_length(self, n_text: int | None) -> int:
        """Tokens before the first frame for a text of `n_text` ids (None: text dropped)."""
        return PREFIX_MARKERS + (0 if n_text is None else n_text + 2)

    def spans(self, sequence: TokenSequence, *, closed: bool = True) -> SequenceSpans:
        latent_frames, rows, cols = sequence.codes.shape
        n_text = None if sequence.text_ids is None else len(sequence.text_ids)
        return SequenceSpans(self.prefix_length(n_text), latent_frames, rows, cols, closing=2 if closed else 0)

    def build(self, sequence: TokenSequence, *, closed: bool = True) -> Tensor:
        """The ids of a sequence, [S] int64; `closed=False` leaves out VIDEO_END SEP.

        Raises:
            DataError: an id, code or number that is not in the vocabulary, with its position.
        """
        self.check_codes(sequence.codes)
        latent_frames, rows, cols = sequence.codes.shape
        prefix: list[int] = []
        if sequence.text_ids is not None:
            self._check_text(sequence.text_ids)
            prefix = [self.bos, *sequence.text_ids, self.sep]
        prefix += [
            self.video_start,
            self.number(sequence.duration, "duration"),
            self.number(sequence.fps, "fps"),
        ]
        height = self._size_number(rows, self.strides[1], "height")
        width = self._size_number(cols, self.strides[2], "width")

        block = torch.empty(latent_frames, rows * (cols + 1) + MARKERS_PER_FRAME, dtype=torch.int64)
        block[:, :3] = torch.tensor([self.frame_start, height, width])
        content = block[:, 3:-1].view(latent_frames, rows, cols + 1)
        content[..., :cols] = sequence.codes.to(torch.int64) + self.visual_offset
        content[..., cols] = self.newline
        block[:, -1] = self.frame_end

        closing = [self.video_end, self.sep] if closed else []
        return torch.cat([torch.tensor(prefix), block.flatten(), torch.tensor(closing, dtype=torch.int64)])

    def _check_text(self, text_ids: Sequence[int]) -> None:
        for position, token in enumerate(text_ids):
            if not isinstance(token, Integral) or not 0 <= token < self.n_text or token in self.markers:
                raise DataError(
                    "id cannot stand in the text",
                    where=f"text position {position}",
                    got=repr(token)[:100],
                    expected=f"an int from 0 to {self.n_text - 1}, none of the markers of layout {self.name}",
                )

    def check_words(self, words: Sequence[int]) -> None:
        """Raise ConfigError unless all of these ids may stand in a text."""
        for position, word in enumerate(words):
            if not 0 <= word < self.n_text or word in self.markers:
                raise ConfigError(
                    "not an id of a word",
                    where=f"adapter.words[{position}]",
                    got=word,
                    expected=f"0 to {self.n_text - 1}, none of the markers of layout {self.name}",
                    fix="name codes in adapter.codes, by their numbers" if word >= self.n_text else None,
                )

    def check_codes(self, codes: Tensor) -> None:
        """Raise DataError unless these are codes of the codebook: integers, [T, H, W]."""
        if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.dtype == torch.bool:
            got = codes.dtype if isinstance(codes, Tensor) else type(codes).__name__
            raise DataError("codes must be whole numbers", where="codes", got=got, expected="an int64 Tensor [T, H, W]")
        if codes.ndim != 3 or 0 in codes.shape:
            raise DataError("codes must be a [T, H, W] grid", where="codes", got=list(codes.shape))
        wide = codes.to(torch.int64)
        bad = (wide < 0) | (wide >= self.codebook_size)
        if bad.any():
            t, h, w = (int(i) for i in bad.nonzero()[0])
            raise DataError(
                "code outside the codebook",
                where=f"codes[{t}, {h}, {w}]",
                got=int(wide[t, h, w]),
                expected=f"0 to {self.codebook_size - 1}",
            )

    # -- parsing -------------------------------------------------------------------------------

    def parse(self, tokens: Tensor) -> TokenSequence:
        """Read a closed sequence back: the inverse of `build`.

        Args:
            tokens: [S], integers.
        Raises:
            DataError: the first position where the grammar is broken, with got and expected.
        """
        ids = tokens.to(torch.int64)
        listed: list[int] = ids.tolist()
        text_ids, start = self._parse_text(listed)
        self._expect(listed, start, self.video_start, "VIDEO_START")
        duration = self._parse_number(listed, start + 1, "duration")
        fps = self._parse_number(listed, start + 2, "fps")

        first = start + PREFIX_MARKERS
        self._expect(listed, first, self.frame_start, "FRAME_START")
        rows = self._parse_number(listed, first + 1, "height") * self.size_unit // self.strides[1]
        cols = self._parse_number(listed, first + 2, "width") * self.size_unit // self.strides[2]
        if rows == 0 or cols == 0:
            raise DataError("frame without content", where=f"position {first + 1}", got=f"{rows} rows, {cols} columns")
        spans = SequenceSpans(first, 1, rows, cols)
        end = first
        latent_frames = 0
        while end < len(listed) and listed[end] == self.frame_start:
            end += spans.frame_length
            latent_frames += 1
        self._check_frames(
            ids[first:end], SequenceSpans(0, latent_frames, rows, cols), first, listed[first : first + 3]
        )
        for offset, (expected, name) in enumerate([(self.video_end, "VIDEO_END"), (self.sep, "SEP")]):
            self._expect(listed, end + offset, expected, name)
        if len(listed) != end + 2:
            raise DataError("tokens after the end", where=f"position {end + 2}", got=listed[end + 2])
        spans = SequenceSpans(first, latent_frames, rows, cols)
        codes = (ids[spans.visual_index] - self.visual_offset).reshape(latent_frames, rows, cols)
        return TokenSequence(text_ids=text_ids, codes=codes, duration=duration, fps=fps)

    def _parse_text(self, listed: list[int]) -> tuple[tuple[int, ...] | None, int]:
        """The text, and the index where VIDEO_START must be."""
        if listed[:1] == [self.video_start]:
            return None, 0
        self._expect(listed, 0, self.bos, "BOS or VIDEO_START")
        for position, token in enumerate(listed[1:], start=1):
            if token == self.sep:
                return tuple(listed[1:position]), position + 1
            if not 0 <= token < self.n_text or token in self.markers:
                raise DataError(
                    "id cannot stand in the text", where=f"position {position}", got=token, expected="text, or SEP"
                )
        raise DataError("text without an end", where=f"position {len(listed)}", expected=f"SEP ({self.sep})")

    def _parse_number(self, listed: list[int], position: int, what: str) -> int:
        value = listed[position] - self.number_offset if position < len(listed) else -1
        if not 1 <= value < self.n_numbers:
            got = listed[position] if position < len(listed) else "the end"
            first, last = self.number_offset + 1, self.number_offset + self.n_numbers - 1
            raise DataError(f"no {what}", where=f"position {position}", got=got, expected=f"{first} to {last}")
        return value

    def _expect(self, listed: list[int], position: int, token: int, name: str) -> None:
        got = listed[position] if position < len(listed) else "the end"
        if got != token:
            raise DataError(f"no {name}", where=f"position {position}", got=got, expected=token)

    def _check_frames(self, tokens: Tensor, spans: SequenceSpans, start: int, head: list[int]) -> None:
        """Check that every frame has the first one's markers, with codes of the codebook in between."""
        if len(tokens) < spans.length:
            raise DataError("frame cut short", where=f"position {start + len(tokens)}", got="the end")
        blocks = tokens.view(spans.latent_frames, spans.frame_length)
        content = blocks[:, 3:-1].reshape(spans.latent_frames, spans.rows, spans.cols + 1)
        good = torch.ones_like(blocks, dtype=torch.bool)
        good[:, :3] = blocks[:, :3] == torch.tensor(head)
        good[:, -1] = blocks[:, -1] == self.frame_end
        good_content = good[:, 3:-1].view(content.shape)
        codes = content[..., :-1]
        good_content[..., :-1] = (codes >= self.visual_offset) & (codes < self.vocab_size)
        good_content[..., -1] = content[..., -1] == self.newline
        if not good.all():
            position = int((~good.flatten()).nonzero()[0])
            frame, within = divmod(position, spans.frame_length)
            raise DataError(
                "token breaks the frame",
                where=f"position {start + position}: frame {frame}, token {within} of {spans.frame_length}",
                got=int(tokens[position]),
                expected=f"{spans.rows} rows of {spans.cols} visual ids and NEWLINE, then FRAME_END",
            )


def lumos1_layout(vocab_size: int = 129_536) -> TokenLayout:
    """The released vocabulary: Chameleon's text ids, then the codes of Cosmos DV4x8x8.

    A checkpoint with another codebook keeps these ids; only the vocabulary's size changes.
    """
    return TokenLayout(
        name="lumos1",
        vocab_size=vocab_size,
        n_text=65_536,
        bos=0,
        sep=8710,
        video_start=9004,
        video_end=9005,
        frame_start=8197,
        frame_end=8196,
        newline=8803,
        mask=9003,
        number_offset=8804,
        n_numbers=199,  # 8804..9002: up to MASK
        visual_offset=65_536,
        size_unit=32,
        digit_offset=16_399,
    )


def compact_layout(codebook_size: int = 240, strides: tuple[int, int, int] = (4, 8, 8)) -> TokenLayout:
    """The same grammar over a small vocabulary: UTF-8 bytes, 8 markers, 128 numbers, the codes."""
    markers = 256
    numbers = markers + 8
    codes = numbers + 128
    return TokenLayout(
        name="compact",
        vocab_size=codes + codebook_size,
        n_text=256,
        bos=markers,
        sep=markers + 1,
        video_start=markers + 2,
        video_end=markers + 3,
        frame_start=markers + 4,
        frame_end=markers + 5,
        newline=markers + 6,
        mask=markers + 7,
        number_offset=numbers,
        n_numbers=128,
        visual_offset=codes,
        size_unit=max(strides[1:]),
        strides=strides,
        digit_offset=ord("0"),
    )


@dataclass(frozen=True, kw_only=True)
class LayoutConfig:
    """Which vocabulary a run uses.

    Args:
        preset: `lumos1` (the released ids) or `compact` (the same grammar with fewer ids).
        codebook_size: number of codes of the visual tokenizer.
        strides: pixels (frames) per latent step in t, h, w.
    """

    preset: Literal["lumos1", "compact"] = "lumos1"
    codebook_size: int = 64_000
    strides: list[int] = field(default_factory=lambda: [4, 8, 8])

    def __post_init__(self) -> None:
        check_ranges("layout", self, codebook_size=between(1, 65_536))  # shards hold codes as uint16
        if len(self.strides) != 3 or min(self.strides) < 1 or max(self.strides) > 1024:
            raise ConfigError("must be three whole numbers, 1 to 1024", where="layout.strides", got=self.strides)

    def build(self) -> TokenLayout:
        strides = (self.strides[0], self.strides[1], self.strides[2])
        match self.preset:
            case "lumos1":
                if strides != (4, 8, 8):
                    raise ConfigError("fixed in layout lumos1", where="layout.strides", got=strides, expected=(4, 8, 8))
                return lumos1_layout(65_536 + self.codebook_size)
            case "compact":
                return compact_layout(self.codebook_size, strides)
            case _:
                raise ConfigError("unknown layout", where="layout.preset", got=self.preset)
