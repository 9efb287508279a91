"""What a run reads, and how samples are cut, worded and batched."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from data_modules.readers import READERS
from data_modules.shards.places import Access, CacheConfig
from data_modules.shards.where import Where
from data_modules.stream.joint import Alternation, Order
from data_modules.stream.mixture import Mixture, Weights, check_weights
from data_modules.stream.skipped_steps import SkippedSteps
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import STALL_S, check_url, is_url
from lumos_pl.settings.kinds import check_kind, kind_field
from lumos_pl.settings.ranges import above, at_least, between, check_ranges, optional
from lumos_pl.tokenizers.text import RELEASE_PROMPT, PromptTemplate

SYNTHETIC = "synthetic"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,99}")  # of a source: used as a key of the settings, and in names of samples
TIMEOUT_S = 600  # for a worker's batch; its first one waits for a whole shard


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How the samples of one kind, images or videos, become batches.

    Args:
        batch_size: samples of a micro-batch.
        max_tokens: most tokens of a micro-batch, whatever `batch_size` says; null: no limit.
        frames: RGB frames of a clip; longer samples are cut to their first ones.
        bucket: whether all samples of a batch have the same latent shape (T, H, W).
        streams: independent streams that the shards are dealt to; decides the order, and does not depend on the
            number of workers. Null: the largest power of two up to the number of shards and 64.
        shuffle_shards: shards of a stream whose samples are shuffled together. All the workers of a
            run together hold about `streams * (shuffle_shards + 1)` shards in memory.
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
class MixtureSource:
    """One of the data sets that a run mixes; null fields are as in `data.image` or `data.video`.

    Args:
        root: as `data.root`, for this source.
        kind: `image` or `video`; null: as `data.kind` says.
        weight: its share of the optimizer steps, relative to the other weights: a number, or points
            `[[step, weight], ...]` joined by straight lines. Of two points at one step the second holds from there on.
        val_root: validation data of this source; null: what `data.val_share` holds out of it, or none.
        where: a condition on its samples, like `data.where`, which applies if this is null.
        batch_size, max_tokens, frames, bucket, streams, shuffle_shards: as in `data.image`, for this source.
    """

    root: str | None = None
    kind: Literal["image", "video"] | None = None
    weight: Any = 1.0
    val_root: str | None = None
    where: str | None = None
    batch_size: int | None = None
    max_tokens: int | None = None
    frames: int | None = None
    bucket: bool | None = None
    streams: int | None = None
    shuffle_shards: int | None = None

    def over(self, config: SourceConfig) -> SourceConfig:
        """The settings of a kind, overridden by this source's own."""
        own = {item.name: getattr(self, item.name) for item in fields(config)}
        return replace(config, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class NamedSource:
    """A source of a run, in one form for all the ways of configuring it.

    Args:
        name: the name in a mixture, otherwise the kind.
        key: of its settings, for messages.
        val_root: its validation data; None: none, or what is held out of it.
        held_out: the share of its shards held out for validation; None: none, because there is other validation data.
        where: the condition on its samples; None: all are used.
    """

    name: str
    kind: str
    key: str
    root: str | None
    val_root: str | None
    held_out: float | None
    where: str | None
    config: SourceConfig


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """Made-up data, moving blobs as code maps; see `data_modules.synthetic`.

    Args:
        n_samples: samples per epoch, for each kind and split.
        width, height: in pixels; if they differ, half of the samples are upright.
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
        kind: `image`, `video`, or `joint`: optimizer steps of both in turn.
        root: folder of shards with their manifest, or with such folders named `images` and `videos`; or its URL in a
            store (`s3://bucket/folder`, `gs://`, `https://`); a pattern like `data/part-*` joins all that match; the
            word `synthetic` stands for made-up data (a folder of that name is `./synthetic`).
        val_root: the same for validation; null: none, or what `val_share` holds out.
        val_share: share of the shards of each kind, at least one, that is held out of training, and used for
            validation if there is no `val_root`; null: none.
        reader: what reads these two: `shards`, or a reader of your own, see `READERS`.
        sources: data sets to mix by their weights, instead of `root`; each optimizer step is of one of them. By
            name, such as `{films: {root: data/films, kind: video, weight: 2}, art: {root: data/art, kind: image}}`,
            or as a list, each with its `name`; in Python a dict of `MixtureSource`.
        image, video: batching of each kind. By default six images per video, as in the release.
        images_per_cycle, videos_per_cycle: consecutive optimizer steps of each kind (joint).
        num_workers: loading processes of each rank; 0 loads in the training process.
        timeout_s: seconds that the training waits for a worker's batch.
        cache: what is kept on this machine of shards that a URL names.
        retry: how long a read that fails temporarily is retried; its waits are shortened to fit into `timeout_s`.
        max_bad_samples: how many damaged samples may be left out, of all data and in all attempts of a run together;
            another sample takes the place of each, and `left_out.jsonl` names them. An unusable shard counts with all
            its samples.
        skip_steps: steps to leave out of the data's order, as numbers and ranges: `[1200, 3000-3010]`.
        text_tokenizer: `embedded` or a Hugging Face `tokenizer.json`; needed for captions unless the text vocabulary
            is bytes.
        prompt: what a caption becomes, see `PromptTemplate`.
        captions: for samples with several captions, the names to draw one from for each appearance; a name listed
            twice is drawn twice as often, and validation uses the first. Null: draw from all.
        where: a condition on the samples' metadata, such as `score >= 5 and lang in ("en", "de")`; other samples are
            not read. It applies to `root` and to what is held out of it, not to `val_root`.
        too_long: what to do with samples that are longer than `model.max_length` or `max_tokens` with their text:
            `refuse` names the first one before the first step, `leave_out` trains without them and says how many.
        caption_dropout: share of the samples without text, for classifier-free guidance.
        given_prob: share of the samples whose first latent frames are given (I2V, continuation).
        given_max: how many are given at most.
        val_batches: micro-batches of each kind, or source, in a validation, over all ranks.
    """

    kind: Literal["image", "video", "joint"] = "joint"
    root: str | None = None
    val_root: str | None = None
    val_share: float | None = None
    reader: str = kind_field("shards", READERS)
    sources: dict[str, MixtureSource] = field(default_factory=dict)
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
    captions: list[str] = field(default_factory=list)
    where: str | None = None
    too_long: Literal["refuse", "leave_out"] = "refuse"
    caption_dropout: float = 0.1
    given_prob: float = 0.0
    given_max: int = 1
    val_batches: int = 8
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)

    def __post_init__(self) -> None:
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
        for where, root in self.roots.items():
            if root is not None and self.reader == "shards" and is_url(root):  # a custom reader may take anything
                check_url(root, where)
        self.cache.check("data.cache")
        SkippedSteps.parse(self.skip_steps)
        self.image.check("data.image")
        self.video.check("data.video")
        self.synthetic.check("data.synthetic")
        PromptTemplate(self.prompt)
        _ = self.condition
        self._check_sources()

    def _check_sources(self) -> None:
        for name, source in self.sources.items():
            key = f"data.sources.{name}"
            if not NAME.fullmatch(name):
                expected = "a letter, and then letters, digits, - and _"
                raise ConfigError("not a name for a source", where=key[:200], got=repr(name)[:100], expected=expected)
            if source.kind is None and self.kind == "joint":
                raise ConfigError("a source of no kind", where=f"{key}.kind", got="null", expected="image or video")
            if source.kind not in (None, "image", "video"):
                raise ConfigError("unknown kind", where=f"{key}.kind", got=repr(source.kind), expected="image or video")
            if source.root is None:
                raise ConfigError("a source without data", where=f"{key}.root", fix="give a folder of shards")
            Weights.parse(source.weight, f"{key}.weight")
            if source.where is not None:
                Where.parse(source.where, f"{key}.where")
        for one in self.all_sources:
            one.config.check(one.key)
        if not self.sources:
            return
        check_weights(self.weights, "data.sources")
        for setting in "root", "val_root":
            if getattr(self, setting) is not None:
                fix = f"name it among them, or as data.sources.NAME.{setting}"
                raise ConfigError("beside data.sources", where=f"data.{setting}", got=getattr(self, setting), fix=fix)

    def idle(self) -> dict[str, str]:
        """See settings/idle.py; a custom reader may use any setting."""
        if self.reader != "shards":
            return {}
        decided_by = "sources" if self.sources else "kind"
        found = {kind: decided_by for kind in ("image", "video") if kind not in self.kinds}
        if len(self.pattern) == 1 or self.sources:
            found |= {"images_per_cycle": decided_by, "videos_per_cycle": decided_by}
        if not any(source.held_out for source in self.all_sources):
            found["val_share"] = "sources" if self.sources else "val_root"
        if SYNTHETIC not in self.roots.values():
            found["synthetic"] = "sources" if self.sources else "root"
        return found if self.given_prob else found | {"given_max": "given_prob"}

    @property
    def condition(self) -> Where | None:
        """The condition in `where`, parsed."""
        return None if self.where is None else Where.parse(self.where, "data.where")

    @property
    def patience(self) -> RetryConfig:
        """`retry`, shortened so that a worker answers before it is taken for one that hangs."""
        return self.retry.within(self.timeout_s / 2)

    @property
    def roots(self) -> dict[str, str | None]:
        """All settings that say where data are, by name."""
        named = {f"data.sources.{name}": source for name, source in self.sources.items()}
        return {
            "data.root": self.root,
            "data.val_root": self.val_root,
            **{f"{key}.root": source.root for key, source in named.items()},
            **{f"{key}.val_root": source.val_root for key, source in named.items()},
        }

    @property
    def access(self) -> Access:
        """How shards in a store are read; all retries together fit into `timeout_s`."""
        stall_s = max(1.0, min(STALL_S, self.timeout_s / 2 / self.retry.attempts))
        return Access(cache=self.cache.opened(), stall_s=stall_s, retry=self.patience)

    @property
    def has_validation(self) -> bool:
        return any(source.val_root or source.held_out for source in self.all_sources)

    @property
    def pattern(self) -> tuple[str, ...]:
        """The kinds of consecutive optimizer steps, one cycle; without `sources`."""
        if self.kind == "joint":
            return ("video",) * self.videos_per_cycle + ("image",) * self.images_per_cycle
        return (self.kind,)

    @cached_property
    def all_sources(self) -> tuple[NamedSource, ...]:
        """The sources to read: those of the mixture, or else one of each kind in `root`."""
        if not self.sources:
            return tuple(
                NamedSource(
                    name=kind,
                    kind=kind,
                    key=f"data.{kind}",
                    root=self.root,
                    val_root=self.val_root,
                    held_out=self.val_share if self.val_root is None else None,
                    where=self.where,
                    config=self.image if kind == "image" else self.video,
                )
                for kind in sorted(set(self.pattern))
            )
        return tuple(
            NamedSource(
                name=name,
                kind=(kind := source.kind or self.kind),
                key=f"data.sources.{name}",
                root=source.root,
                val_root=source.val_root,
                held_out=self.val_share if source.val_root is None else None,
                where=self.where if source.where is None else source.where,
                config=source.over(self.image if kind == "image" else self.video),
            )
            for name, source in self.sources.items()
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all sources, without duplicates."""
        return tuple(sorted({source.kind for source in self.all_sources}))

    @property
    def weights(self) -> dict[str, Weights]:
        """The weights of a mixture's sources, by name."""
        return {
            name: Weights.parse(source.weight, f"data.sources.{name}.weight") for name, source in self.sources.items()
        }

    def order(self, per_step: int) -> Order:
        """Which source each micro-batch of the run comes from.

        Args:
            per_step: micro-batches of an optimizer step, over all ranks.
        """
        if self.sources:
            return Mixture(self.weights, per_step)
        return Alternation(pattern=self.pattern, per_step=per_step)

    def shares(self, steps: int) -> dict[str, float]:
        """Each source's share of the first `steps` optimizer steps; without a mixture, of a whole cycle."""
        steps = steps if self.sources else len(self.pattern)
        return {name: n / steps for name, n in self.order(1).steps_before(steps).items()}

    def source(self, name: str) -> SourceConfig:
        """How the samples of the source with this name become batches; a kind stands for its first source."""
        found = {"image": self.image, "video": self.video}
        found |= {source.kind: source.config for source in reversed(self.all_sources)}
        return (found | {source.name: source.config for source in self.all_sources})[name]

    def named(self, name: str) -> NamedSource:
        """A source by its name, which is its kind if there is no mixture."""
        return next(source for source in self.all_sources if source.name == name)

    def alone(self, source: NamedSource) -> DataConfig:
        """The settings of a run on this source alone, for its reader."""
        if not self.sources:
            return self
        own = {"kind": source.kind, "root": source.root, "val_root": source.val_root, "where": source.where}
        return replace(self, sources={}, **own, **{source.kind: source.config})  # type: ignore[arg-type]
