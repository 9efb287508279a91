from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import LayoutConfig, TokenLayout, TokenSequence, compact_layout, lumos1_layout
from tests.refusals import refused

LAYOUTS = [lumos1_layout(), compact_layout(codebook_size=60)]


@st.composite
def sequences(draw: st.DrawFn, layout: TokenLayout) -> TokenSequence:
    step = layout.size_unit // layout.strides[1]
    latent_frames, rows, cols = (draw(st.integers(1, 3)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    codes = torch.randint(layout.codebook_size, (latent_frames, rows * step, cols * step), generator=generator)
    word = st.integers(0, layout.n_text - 1).filter(lambda token: token not in layout.markers)
    text = draw(st.none() | st.lists(word, max_size=8).map(tuple))
    number = st.integers(1, layout.n_numbers - 1)
    return TokenSequence(text_ids=text, codes=codes, duration=draw(number), fps=draw(number))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
@given(data=st.data())
def test_parse_is_the_inverse_of_build(layout: TokenLayout, data: st.DataObject) -> None:
    sequence = data.draw(sequences(layout))
    tokens = layout.build(sequence)
    parsed = layout.parse(tokens)
    assert torch.equal(parsed.codes, sequence.codes)
    assert (parsed.text_ids, parsed.duration, parsed.fps) == (sequence.text_ids, sequence.duration, sequence.fps)
    spans = layout.spans(sequence)
    assert spans.length == len(tokens)
    assert torch.equal(layout.build(sequence, closed=False), tokens[:-2])
    assert torch.equal(tokens[spans.visual_index].flatten(), sequence.codes.flatten() + layout.visual_offset)


@given(data=st.data())
def test_any_broken_token_is_refused_or_changes_what_is_read(data: st.DataObject) -> None:
    layout = LAYOUTS[1]
    sequence = data.draw(sequences(layout))
    tokens = layout.build(sequence)
    position = data.draw(st.integers(0, len(tokens) - 1))
    value = data.draw(st.integers(-1, layout.vocab_size).filter(lambda token: token != tokens[position]))
    broken = tokens.clone()
    broken[position] = value
    try:
        parsed = layout.parse(broken)
    except DataError:
        return
    assert torch.equal(layout.build(parsed), broken)  # what is accepted is read exactly


def test_lumos1_sequence_id_by_id() -> None:
    codes = torch.tensor([[[7] * 4] * 4])
    tokens = lumos1_layout().build(TokenSequence(text_ids=(5, 6), codes=codes, duration=2, fps=12))
    row = [65_543] * 4 + [8803]
    assert tokens.tolist() == [0, 5, 6, 8710, 9004, 8806, 8816, 8197, 8805, 8805, *row * 4, 8196, 9005, 8710]


@pytest.mark.parametrize(
    ("position", "token", "where"),
    [
        (0, 9, "position 0"),
        (4, 256, "position 4"),
        (7, 0, "position 7"),
        (8, 5, "position 8"),
        (14, 262, "position 14: frame 0, token 4 of 12"),
        (23, 262, "position 23: frame 1, token 1 of 12"),
        (46, 3, "position 46"),
    ],
)
def test_errors_name_the_position(
    position: int, token: int, where: str, make_sequence: Callable[..., TokenSequence], layout: TokenLayout
) -> None:
    tokens = layout.build(make_sequence())
    tokens[position] = token
    with refused(DataError, where=where, got=token):
        layout.parse(tokens)


def test_short_and_long_sequences_are_refused(make_sequence: Callable[..., TokenSequence], layout: TokenLayout) -> None:
    tokens = layout.build(make_sequence())
    for length in range(len(tokens)):
        with pytest.raises(DataError):
            layout.parse(tokens[:length])
    with refused(DataError, where="position 48"):
        layout.parse(torch.cat([tokens, tokens[:1]]))


def test_build_refuses_what_the_vocabulary_lacks(layout: TokenLayout) -> None:
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)
    good = {"text_ids": (1,), "codes": codes, "duration": 1, "fps": 12}
    with refused(DataError, where="codes"):
        layout.build(TokenSequence(**{**good, "codes": torch.zeros(2, 0, 2, dtype=torch.int64)}))
    with refused(DataError, where="text position 0"):
        layout.build(TokenSequence(**{**good, "text_ids": (layout.sep,)}))
    with refused(DataError, where="width"):
        lumos1_layout().build(TokenSequence(**{**good, "codes": torch.zeros(1, 4, 3, dtype=torch.int64)}))


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (2, 2), (5, 2), (6, 3), (24, 7), (25, 7), (84, 22)])
def test_latent_frames(frames: int, latent: int) -> None:
    assert lumos1_layout().latent_frames(frames) == latent


def test_layout_config() -> None:
    assert LayoutConfig().build() == lumos1_layout()
    assert LayoutConfig(preset="compact", codebook_size=240).build().codebook_size == 240
    assert LayoutConfig(codebook_size=65_536).build().codebook_size == 65_536
    for codebook_size in 0, 65_537:
        with refused(ConfigError, where="layout.codebook_size"):
            LayoutConfig(codebook_size=codebook_size)
    with refused(ConfigError, where="layout.strides"):
        LayoutConfig(strides=[4, 0, 8])
    with refused(ConfigError, where="layout.strides"):
        LayoutConfig(strides=[4, 16, 16]).build()


def test_layouts_that_contradict_themselves_are_refused(layout: TokenLayout) -> None:
    with refused(ConfigError, where="layout compact"):
        replace(layout, sep=layout.bos)
    with refused(ConfigError, where="layout compact.vocab_size"):
        replace(layout, vocab_size=math.inf)
    for offset in layout.mask, layout.vocab_size:
        with refused(ConfigError, where="layout compact: visual_offset"):
            replace(layout, visual_offset=offset)


def test_lumos1_numbers_reach_up_to_the_mask() -> None:
    lumos1 = lumos1_layout()
    assert lumos1.number(lumos1.n_numbers - 1, "fps") == lumos1.mask - 1


@pytest.mark.parametrize("value", [-1, 0, 128])
def test_numbers_begin_with_one_and_end_with_the_vocabularys(
    value: int, make_sequence: Callable[..., TokenSequence], layout: TokenLayout
) -> None:
    for what in "fps", "duration":
        with refused(DataError, where=what):
            layout.build(replace(make_sequence(), **{what: value}))
    tokens = layout.build(make_sequence())
    tokens[9] = layout.number_offset + value
    with refused(DataError, where="position 9"):
        layout.parse(tokens)


@pytest.mark.parametrize("code", [-1, 60])
def test_codes_end_with_the_codebook(
    code: int, make_sequence: Callable[..., TokenSequence], layout: TokenLayout
) -> None:
    sequence = make_sequence()
    codes = sequence.codes.clone()
    codes[1, 0, 1] = code
    with refused(DataError, where="codes[1, 0, 1]", got=code, expected="0 to 59"):
        layout.build(replace(sequence, codes=codes))
    tokens = layout.build(sequence)
    tokens[layout.spans(sequence).visual_index[1, 1]] = layout.visual_offset + code
    with refused(DataError, where="position 26: frame 1, token 4 of 12"):
        layout.parse(tokens)


def test_a_marker_among_the_texts_ids_cannot_stand_in_it() -> None:
    lumos1 = lumos1_layout()  # its markers lie below n_text
    sequence = TokenSequence(text_ids=(5, 6), codes=torch.zeros(1, 4, 4, dtype=torch.int64), duration=1, fps=12)
    with refused(DataError, where="text position 1"):
        lumos1.build(replace(sequence, text_ids=(5, lumos1.mask)))
    with refused(DataError, where="text position 0", got="tensor(5)"):
        lumos1.build(replace(sequence, text_ids=torch.tensor([5, 6])))
    tokens = lumos1.build(sequence)
    tokens[2] = lumos1.mask
    with refused(DataError, where="position 2"):
        lumos1.parse(tokens)


def test_pixels_that_do_not_fit_the_grid_are_refused() -> None:
    assert lumos1_layout().latent_size(width=352, height=192) == (24, 44)
    for width in 0, 360:
        with refused(DataError, where="width", got=width, expected="a multiple of 32 px"):
            lumos1_layout().latent_size(width=width, height=192)
    with refused(DataError, got="8"):
        compact_layout(60, (4, 8, 16)).latent_size(width=8, height=16)


@pytest.mark.parametrize("place", [1, 2])
def test_a_frame_without_content_is_refused(
    place: int, make_sequence: Callable[..., TokenSequence], layout: TokenLayout
) -> None:
    tokens = layout.build(make_sequence())
    tokens[10 + place] = layout.number_offset  # no rows, or no columns
    with refused(DataError, where=f"position {10 + place}"):
        layout.parse(tokens)
    tokens[11:13] = layout.number_offset + 1
    with refused(DataError, where="position 11"):
        replace(layout, size_unit=4).parse(tokens)  # of less than a code
