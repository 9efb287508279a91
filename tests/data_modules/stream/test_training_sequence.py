from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_modules.shards.sample import ShardSample
from data_modules.stream.training_sequence import SequenceBuilder, cut
from lumos_pl.errors import DataError
from lumos_pl.layout import compact_layout, lumos1_layout
from lumos_pl.tokenizers.text import RELEASE_PROMPT, ByteTokenizer, PromptTemplate
from tests.refusals import refused

LAYOUT = lumos1_layout()
APPEARANCES = [f"video/0/{number}" for number in range(2000)]


def sample(**changes: object) -> ShardSample:
    """84 frames at 12 fps, as in the release's files; a small picture."""
    codes = np.random.default_rng(0).integers(0, 240, (22, 4, 8), dtype=np.uint16)
    fields = {
        "key": "clip",
        "codes": codes,
        "text": (500, "{frames}", 501, "{fps}", 502),
        "frames": 84,
        "fps": 12,
        "duration": 7,
        "width": 64,
        "height": 32,
        "source": "test",
    }
    return ShardSample(**{**fields, **changes})  # type: ignore[arg-type]


def builder(**changes: object) -> SequenceBuilder:
    fields = {"layout": LAYOUT, "seed": 3, "prompt": PromptTemplate(RELEASE_PROMPT), "tokenizer": None}
    return SequenceBuilder(**{**fields, **changes})  # type: ignore[arg-type]


def digits(number: int) -> list[int]:
    return [16_399 + int(digit) for digit in str(number)]


def test_the_cut_keeps_the_first_frames_and_recomputes_the_numbers() -> None:
    whole = sample()
    clip = cut(whole, 24, LAYOUT)
    assert (clip.frames, clip.duration, clip.fps) == (24, 2, 12)
    assert np.array_equal(clip.codes, whole.codes[:7])
    assert clip.codes.base is None  # the rest can be freed

    sequence = builder().build(clip, "d").sequence
    assert sequence.text_ids == (500, *digits(24), 501, *digits(12), 502)
    assert (sequence.duration, sequence.fps, sequence.codes.shape) == (2, 12, (7, 4, 8))
    assert torch.equal(sequence.codes, torch.from_numpy(whole.codes[:7].astype(np.int64)))


def test_a_sample_without_more_frames_stays_as_it_is() -> None:
    whole = sample(duration=8)
    assert cut(whole, 84, LAYOUT) is whole
    assert cut(whole, 100, LAYOUT) is whole
    sequence = builder().build(whole, "d").sequence
    assert sequence.text_ids == (500, *digits(84), 501, *digits(12), 502)
    assert sequence.duration == 8


@pytest.mark.parametrize(("frames", "seconds"), [(1, 1), (13, 1), (23, 2), (24, 2), (25, 2), (60, 5)])
def test_seconds_are_rounded_and_at_least_one(frames: int, seconds: int) -> None:
    assert cut(sample(), frames, LAYOUT).duration == seconds


def test_a_caption_becomes_the_prompt_of_the_cut_clip() -> None:
    clip = cut(sample(text="a cat"), 24, LAYOUT)
    text_ids = builder(tokenizer=ByteTokenizer(), layout=compact_layout(240)).build(clip, "d").sequence.text_ids
    assert text_ids is not None
    assert bytes(text_ids).decode() == (
        "Generate a video with a resolution of 64x32, consisting of 24 frames at 12 frames per second, "
        "according to the following prompt:\n a cat"
    )
    with refused(DataError, got="'a cat'"):
        builder().build(clip, "d")


def test_the_share_of_dropped_captions() -> None:
    clips = builder(caption_dropout=0.1)
    small = cut(sample(), 1, LAYOUT)
    dropped = [clips.build(small, appearance).sequence.text_ids is None for appearance in APPEARANCES]
    assert 150 < sum(dropped) < 250  # 200, standard deviation 13
    assert not any(builder().build(small, appearance).sequence.text_ids is None for appearance in APPEARANCES[:100])


def test_choices_depend_on_the_seed_and_the_appearance_alone() -> None:
    """Neither on the other samples nor on how many came before."""
    settings = {"caption_dropout": 0.5, "given_prob": 0.5, "given_max": 3}
    clip = cut(sample(), 24, LAYOUT)

    def choices(clips: SequenceBuilder, appearances: list[str]) -> dict[str, tuple[bool, int]]:
        built = {appearance: clips.build(clip, appearance) for appearance in appearances}
        return {appearance: (b.sequence.text_ids is None, b.n_given) for appearance, b in built.items()}

    forward = choices(builder(**settings), APPEARANCES[:60])
    assert choices(builder(**settings), APPEARANCES[59::-1]) == forward
    assert choices(builder(**settings), APPEARANCES[7:8])[APPEARANCES[7]] == forward[APPEARANCES[7]]
    assert choices(builder(**settings, seed=4), APPEARANCES[:60]) != forward


def test_given_frames() -> None:
    clips = builder(given_prob=0.5, given_max=3)
    clip = cut(sample(), 24, LAYOUT)
    counts = np.bincount([clips.build(clip, appearance).n_given for appearance in APPEARANCES])
    assert len(counts) == 4
    assert 900 < counts[0] < 1100
    assert all(260 < count < 410 for count in counts[1:])  # 333 each, standard deviation 17

    two_frames, one_frame = cut(sample(), 5, LAYOUT), cut(sample(), 1, LAYOUT)
    assert {clips.build(two_frames, appearance).n_given for appearance in APPEARANCES[:50]} == {0, 1}
    assert {clips.build(one_frame, appearance).n_given for appearance in APPEARANCES[:50]} == {0}


def test_nothing_is_truncated_to_the_context() -> None:
    clip = cut(sample(), 24, LAYOUT)
    length = 1 + 7 + 1 + 3 + 7 * (4 * 9 + 4)
    builder(max_length=length).build(clip, "d")
    with refused(DataError, got=f"{length} tokens", expected=f"at most {length - 1}"):
        builder(max_length=length - 1).build(clip, "d")


@pytest.mark.parametrize("changes", [{"fps": 400}, {"text": (8710,)}, {"text": (65_536,)}])
def test_what_the_layout_cannot_say_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(DataError):
        builder().build(replace(sample(), **changes), "d")  # type: ignore[arg-type]


CAPTIONS = {"long": "a long caption", "short": "a cat", "other": "a pet"}


def words(clips: SequenceBuilder, one: ShardSample, appearance: str) -> str:
    text_ids = clips.build(one, appearance).sequence.text_ids
    assert text_ids is not None
    return bytes(text_ids).decode()


def captioner(*captions: str, draws: bool = True, seed: int = 3) -> SequenceBuilder:
    return builder(
        tokenizer=ByteTokenizer(),
        layout=compact_layout(240),
        prompt=PromptTemplate("{caption}"),
        captions=captions,
        draws_captions=draws,
        seed=seed,
    )


@pytest.mark.parametrize(
    ("captions", "shares"),
    [
        ((), {"a cat": 1 / 3, "a long caption": 1 / 3, "a pet": 1 / 3}),
        (("short",), {"a cat": 1.0}),
        (("short", "long", "long", "long"), {"a cat": 0.25, "a long caption": 0.75}),
        (("absent", "other"), {"a pet": 1.0}),
        (("absent",), {"a cat": 1.0}),  # the text, which is the first of a sample's captions
    ],
)
def test_one_of_several_captions_is_drawn_for_each_appearance(
    captions: tuple[str, ...], shares: dict[str, float]
) -> None:
    one = cut(sample(text="a cat", captions=CAPTIONS), 1, compact_layout(240))
    drawn = [words(captioner(*captions), one, appearance) for appearance in APPEARANCES[:400]]
    found = {text: drawn.count(text) / len(drawn) for text in drawn}
    assert found.keys() == shares.keys()
    assert all(abs(found[text] - share) < 0.08 for text, share in shares.items())  # standard deviation 0.024 at most


def test_the_drawn_caption_depends_on_seed_and_appearance_alone_and_is_the_first_in_a_validation() -> None:
    one = cut(sample(text="a cat", captions=CAPTIONS), 1, compact_layout(240))
    first = [words(captioner(), one, appearance) for appearance in APPEARANCES[:40]]
    reordered = replace(one, captions=dict(reversed(CAPTIONS.items())))
    assert [words(captioner(), reordered, appearance) for appearance in APPEARANCES[39::-1]] == first[::-1]
    assert [words(captioner(seed=4), one, appearance) for appearance in APPEARANCES[:40]] != first
    assert {words(captioner(draws=False), one, appearance) for appearance in APPEARANCES[:40]} == {"a cat"}
    named = captioner("other", "long", draws=False)
    assert {words(named, one, appearance) for appearance in APPEARANCES[:40]} == {"a pet"}
    assert words(captioner(), cut(sample(text="alone"), 1, compact_layout(240)), "a") == "alone"


def test_the_longest_caption_that_may_be_drawn_counts() -> None:
    one = cut(sample(text="a cat", captions=CAPTIONS), 24, compact_layout(240))
    for captions, longest in ((), "a long caption"), (("short", "other"), "a cat"), (("short",), "a cat"):
        clips = captioner(*captions)
        alone = replace(one, text=longest, captions={})
        assert clips.longest(one) == len(clips.build(alone, "a").tokens)
    assert captioner(draws=False).longest(one) == captioner("short").longest(one)
