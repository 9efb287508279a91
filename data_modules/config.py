"""What a run reads, and how it is cut, worded and batched."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from data_modules.places import Access, CacheConfig
from data_modules.readers import READERS
from data_modules.skipped_steps import SkippedSteps
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import STALL_S, check_url, is_url
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import above, at_least, between, check_ranges, optional
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
            such; or the URL of one in a store (`s3://bucket/folder`, `gs://`, `https://`); a pattern like
            `data/part-*` joins those that match; the word `synthetic` is for
            made-up data (a folder of that name is `./synthetic`).
        val_root: the same for validation; null: none, or what `val_share` holds out.
        val_share: share of the shards of each kind, one at the least, that is never trained on and is validated
            with where there is no `val_root`; null: none.
        reader: what reads these two: `shards`, or one of one's own, see `READERS`.
        image, video: batching of each kind. Six images a video, as in the release.
        images_per_cycle, videos_per_cycle: optimizer steps of each kind in a row (joint).
        num_workers: loading processes of each rank; 0 loads in the training process.
        timeout_s: how long the training waits for a batch of theirs.
        cache: what is kept on this machine of shards that a URL names.
        retry: how long a read that fails for a while is tried again; its waits are shortened to what `timeout_s`
            leaves room for.
        max_bad_samples: how many damaged samples may be left out, of all data and in all attempts of a run together;
            another sample takes the place of each, and `left_out.jsonl` names them. A shard of which nothing can be
            used counts all of its samples.
        skip_steps: steps of the data's order that are left out, as numbers and ranges: `[1200, 3000-3010]`.
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
    val_share: float | None = None
    reader: str = kind_field("shards", READERS)
    image: SourceConfig = field(default_factory=lambda: SourceConfig(batch_size=6, frames=1))
    video: SourceConfig = field(default_factory=lambda: SourceConfig(batch_size=1, frames=24))
    images_per_cycle: int = 1
    videos_per_cycle: int = 1
    num_workers: int = 2
    timeout_s: int = TIMEOUT_S
    cache: CacheConfig = field(default_factory=CacheConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    max_bad_samples: int = 0
    skip_steps: list[int | str] = field(default_factory=list)
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
            max_bad_samples=at_least(0),
            val_share=optional(above(0, below=1)),
        )
        for where, root in ("data.root", self.root), ("data.val_root", self.val_root):
            if root is not None and self.reader == "shards" and is_url(root):  # one of one's own may take what it likes
                check_url(root, where)
        self.cache.check("data.cache")
        SkippedSteps.parse(self.skip_steps)
        self.image.check("data.image")
        self.video.check("data.video")
        self.synthetic.check("data.synthetic")
        PromptTemplate(self.prompt)

    @property
    def patience(self) -> RetryConfig:
        """`retry`, with which a worker answers before it is taken for one that does not."""
        return self.retry.within(self.timeout_s / 2)

    @property
    def access(self) -> Access:
        """How shards in a store are read; all attempts fit into `timeout_s`, and who reads the root counts them."""
        stall_s = max(1.0, min(STALL_S, self.timeout_s / 2 / self.retry.attempts))
        return Access(cache=self.cache.opened(), stall_s=stall_s, retry=replace(self.retry, attempts=1))

    @property
    def held_out(self) -> float | None:
        """The share of the shards that is held out; None: none is, as other data are there to validate with."""
        return self.val_share if self.val_root is None else None

    @property
    def has_validation(self) -> bool:
        return bool(self.val_root or self.held_out)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The kinds in the order of the optimizer steps, over and over."""
        if self.kind == "joint":
            return ("video",) * self.videos_per_cycle + ("image",) * self.images_per_cycle
        return (self.kind,)

    def source(self, kind: str) -> SourceConfig:
        return self.image if kind == "image" else self.video
