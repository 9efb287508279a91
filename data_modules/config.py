"""What a run reads, and how it is cut, worded and batched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data_modules.readers import READERS
from lumos_pl.errors import ConfigError
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import at_least, between, check_ranges, optional
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate

SYNTHETIC = "synthetic"
TIMEOUT_S = 600  # for a batch of a worker, whose first waits for a whole shard


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How the samples of one kind, images or videos, become batches.

    Args:
        batch_size: samples of a micro-batch.
        max_tokens: tokens of a micro-batch at most, whatever `batch_size` says; null: no limit.
        frames: RGB frames of a clip; longer samples are cut to their first ones.
        bucket: whether the samples of a batch share their latent shape (T, H, W).
        streams: independent streams the shards are dealt to; a part of the order, not of the
            workers. Null: the largest power of two up to the number of shards and 64.
        shuffle_shards: shards of a stream whose samples are shuffled together. The workers of a
            run hold about `streams * (shuffle_shards + 1)` shards in memory, all of them together.
    """

    batch_size: int = 1
    max_tokens: int | None = None
    frames: int = 1
    bucket: bool = True
    streams: int | None = None
    shuffle_shards: int = 2

    def check(self, where: str) -> None:
        some, perhaps = between(1, 10**6), optional(at_least(1))
        check_ranges(
            where, self, batch_size=some, max_tokens=perhaps, frames=some, streams=perhaps, shuffle_shards=some
        )


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Moving blobs as code maps, see `data_modules.synthetic`.

    Args:
        n_samples: samples an epoch, for each kind and split.
        width, height: pixels; half of the samples are upright if the two differ.
        fps: frames per second of the videos.
    """

    n_samples: int = 64
    width: int = 64
    height: int = 64
    fps: int = 12

    def check(self, where: str) -> None:
        some, side = between(1, 10**7), between(1, 1 << 16)
        check_ranges(where, self, n_samples=some, width=side, height=side, fps=between(1, 1000))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data of a run.

    Args:
        kind: `image`, `video`, or `joint`: the two in turn, an optimizer step each.
        root: folder of shards with their manifest, or with the folders `images` and `videos` of
            such; a pattern like `data/part-*` joins those that match; the word `synthetic` is for
            made-up data (a folder of that name is `./synthetic`).
        val_root: the same for validation; null: none.
        reader: what reads these two: `shards`, or one of one's own, see `READERS`.
        image, video: batching of each kind. Six images a video, as in the release.
        images_per_cycle, videos_per_cycle: optimizer steps of each kind in a row (joint).
        num_workers: loading processes of each rank; 0 loads in the training process.
        timeout_s: how long the training waits for a batch of theirs.
        text_tokenizer: `embedded` or a Hugging Face `tokenizer.json`; needed for captions where
            the text vocabulary is not bytes.
        prompt: what a caption becomes, see `PromptTemplate`.
        caption_dropout: share of the samples without text, for classifier-free guidance.
        given_prob: share of the samples whose first latent frames are given (I2V, continuation).
        given_max: how many are given at most.
        val_batches: micro-batches of each kind in a validation, over all ranks.
    """

    kind: Literal["image", "video", "joint"] = "joint"
    root: str | None = None
    val_root: str | None = None
    reader: str = kind_field("shards", READERS)
    image: SourceConfig = field(default_factory=lambda: SourceConfig(batch_size=6, frames=1))
    video: SourceConfig = field(default_factory=lambda: SourceConfig(batch_size=1, frames=24))
    images_per_cycle: int = 1
    videos_per_cycle: int = 1
    num_workers: int = 2
    timeout_s: int = TIMEOUT_S
    text_tokenizer: str | None = None
    prompt: str = RELEASE_PROMPT
    caption_dropout: float = 0.1
    given_prob: float = 0.0
    given_max: int = 1
    val_batches: int = 8
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
        if self.kind not in ("image", "video", "joint"):
            raise ConfigError("unknown kind", where="data.kind", got=self.kind, expected="image, video or joint")
        check_kind(self.reader, READERS, "data.reader")
        check_ranges(
            "data",
            self,
            images_per_cycle=at_least(1),
            videos_per_cycle=at_least(1),
            given_max=between(1, 10**6),
            val_batches=at_least(1),
            caption_dropout=between(0, 1),
            given_prob=between(0, 1),
            num_workers=between(0, 1024),
            timeout_s=between(1, 10**6),
        )
        self.image.check("data.image")
        self.video.check("data.video")
        self.synthetic.check("data.synthetic")
        PromptTemplate(self.prompt)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The kinds in the order of the optimizer steps, over and over."""
        if self.kind == "joint":
            return ("video",) * self.videos_per_cycle + ("image",) * self.images_per_cycle
        return (self.kind,)

    def source(self, kind: str) -> SourceConfig:
        return self.image if kind == "image" else self.video
