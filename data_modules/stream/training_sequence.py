"""From a shard's sample to a training sequence: the clip, its text, and what is dropped or given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_modules.shards.sample import ShardSample, Text, resolve_text
from lumos_pl.errors import DataError
from lumos_pl.layout import TokenLayout, TokenSequence, whole_seconds
from lumos_pl.seeding import generator
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.text import PromptTemplate, TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TrainingSequence:
    """One appearance of a sample and its tokens, [S]; `appearance` and `n_given` as in `PackedBatch`."""

    sequence: TokenSequence
    tokens: Tensor
    appearance: str
    n_given: int


def cut(sample: ShardSample, frames: int, layout: TokenLayout) -> ShardSample:
    """The first `frames` RGB frames of a sample, or all of it where it has no more.

    The first ones, since a causal tokenizer's later latent frames depend on the earlier ones. The
    numbers of frames and seconds are those of the clip.
    """
    if frames >= sample.frames:
        return sample
    codes = sample.codes[: layout.latent_frames(frames)].copy()  # a view would keep the whole in memory
    return replace(sample, codes=codes, frames=frames, duration=whole_seconds(frames, sample.fps))


def no_text_tokenizer(caption: str, file: object = None) -> DataError:
    """The error of a caption that nothing turns into ids."""
    return DataError(
        "a caption, but no text tokenizer",
        file=file,
        got=repr(caption[:40]),
        fix="set data.text_tokenizer to a tokenizer.json",
    )


@dataclass(frozen=True, kw_only=True)
class SequenceBuilder:
    """Turns cut samples into sequences; every random choice depends on (seed, appearance) alone.

    Args:
        prompt: wording around a caption.
        tokenizer: for captions; None where all texts are ids.
        max_length: the model's context in tokens; None: unlimited.
        captions, caption_dropout, given_prob, given_max: see `DataConfig`.
        draws_captions: of several captions one is drawn for each appearance; else it is the first, as in a validation.
    """

    layout: TokenLayout
    seed: int
    prompt: PromptTemplate
    tokenizer: TextTokenizer | None
    max_length: int | None = None
    captions: tuple[str, ...] = ()
    draws_captions: bool = True
    caption_dropout: float = 0.0
    given_prob: float = 0.0
    given_max: int = 1

    def build(self, sample: ShardSample, appearance: str) -> TrainingSequence:
        """A sequence of the layout.

        Raises:
            DataError: text, size or number that the layout cannot say, or a sequence longer than
                the context: nothing is ever truncated to fit.
        """
        sequence = TokenSequence(
            text_ids=None if self._drops_text(appearance) else self._text_ids(sample, self._text(sample, appearance)),
            codes=torch.from_numpy(sample.codes.astype(np.int64)),
            duration=sample.duration,
            fps=sample.fps,
        )
        tokens = self.layout.build(sequence, closed=False)  # checks every id, where the sample is known
        if self.max_length is not None and len(tokens) > self.max_length:
            n_text = 0 if sequence.text_ids is None else len(sequence.text_ids)
            raise DataError(
                f"sequence longer than the model's context ({n_text} tokens of text, {list(sample.codes.shape)} codes)",
                got=f"{len(tokens)} tokens",
                expected=f"at most {self.max_length}",
                fix="lower the frames, leave the sample out, or raise the context",
            )
        return TrainingSequence(
            sequence=sequence,
            tokens=tokens,
            appearance=appearance,
            n_given=self._n_given(len(sample.codes), appearance),
        )

    def longest(self, sample: ShardSample) -> int:
        """Tokens of a cut sample's sequence with the longest text that may be drawn for it, without a closing.

        Raises:
            DataError: as `build`, for a text that cannot be said.
        """
        n_text = max(len(self._text_ids(sample, text)) for text in self._texts(sample))
        t, h, w = sample.codes.shape
        return SequenceSpans(self.layout.prefix_length(n_text), t, h, w).length

    def _texts(self, sample: ShardSample) -> list[Text]:
        """What may be drawn, a text of twice the weight twice: by `captions`, or else each once."""
        if not sample.captions:
            return [sample.text]
        names = self.captions or sorted(sample.captions)
        wanted: list[Text] = [sample.captions[name] for name in names if name in sample.captions]
        if self.draws_captions:
            return wanted or [sample.text]
        return wanted[:1] if self.captions and wanted else [sample.text]

    def _text(self, sample: ShardSample, appearance: str) -> Text:
        texts = self._texts(sample)
        if len(texts) == 1:
            return texts[0]
        return texts[int(torch.randint(len(texts), (), generator=generator(self.seed, "caption", appearance)))]

    def _text_ids(self, sample: ShardSample, text: Text) -> tuple[int, ...]:
        if not isinstance(text, str):
            digit_offset = self.layout.digit_offset
            if digit_offset is None:
                raise DataError("text vocabulary without digits", where=f"layout {self.layout.name}")
            return resolve_text(text, frames=sample.frames, fps=sample.fps, digit_offset=digit_offset)
        if self.tokenizer is None:
            raise no_text_tokenizer(text)
        prompt = self.prompt.render(
            width=sample.width, height=sample.height, frames=sample.frames, fps=sample.fps, caption=text
        )
        return tuple(self.tokenizer.encode(prompt))

    def _drops_text(self, appearance: str) -> bool:
        drawn = torch.rand((), generator=generator(self.seed, "caption_dropout", appearance))
        return bool(drawn < self.caption_dropout)

    def _n_given(self, latent_frames: int, appearance: str) -> int:
        """0, or 1 to `given_max`, leaving at least one latent frame to predict."""
        draws = generator(self.seed, "given_frames", appearance)
        most = min(self.given_max, latent_frames - 1)
        if most < 1 or torch.rand((), generator=draws) >= self.given_prob:
            return 0
        return int(torch.randint(1, most + 1, (), generator=draws))
