"""The LightningDataModule of token sequences: images, videos or both."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import webdataset
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from data_modules.config import SYNTHETIC, DataConfig, NamedSource
from data_modules.made_clips import make_clips, shards_of
from data_modules.readers import Shards, check_same_tokenizer, open_shards
from data_modules.shards.manifest import Manifest
from data_modules.stream.chosen import Choice
from data_modules.stream.held_out import split
from data_modules.stream.loader import TokenLoader, check_workers
from data_modules.stream.plan import PlannedBatch, StreamPlan
from data_modules.stream.position import (
    VALIDATION_STAGES,
    PositionedDataModule,
    StreamPosition,
    check_can_follow,
)
from data_modules.stream.skipped_steps import SkippedSteps
from data_modules.stream.source import Source
from data_modules.stream.token_stream import batch_stream, training_order, validation_order
from data_modules.stream.training_sequence import SequenceBuilder, no_text_tokenizer
from data_modules.synthetic import synthetic_shards
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.layout import TokenLayout
from lumos_pl.settings.plain import check_instance, read_value, to_plain
from lumos_pl.settings.ranges import at_least, optional
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.load import load_text_tokenizer
from lumos_pl.tokenizers.text import PromptTemplate, TextTokenizer, unreadable_word
from lumos_pl.tokenizers.visual import VisualTokenizer, makes_codes_of

LOOKED_AT = 256  # captions per kind that are tried on the text tokenizer before training


class TokenDataModule(PositionedDataModule):
    """Packed batches in an order that depends only on (config, data, seed), in any Trainer or without one.

    The optimizer step is the only state: a resumed run continues with the very next batch, with any number of workers,
    and with any number of ranks as long as a step has equally many micro-batches.

    Args:
        layout: the vocabulary, such as `LumosModule.layout`.
        max_length: the model's context in tokens; None: that of the Trainer's module, unlimited without one.
        world: clips to make if they do not exist yet; read if the settings name no other data.
        visual_tokenizer: what those clips are tokenized with, see `load_visual_tokenizer`.
        was_there: the resumed run has read the data before, so their absence may be temporary.

    Attributes:
        prompt, tokenizer: how a caption becomes text ids; no tokenizer if all texts are ids already. After `setup`.
    """

    def __init__(
        self,
        config: DataConfig,
        layout: TokenLayout,
        *,
        seed: int = 0,
        max_length: int | None = None,
        world: WorldClipsConfig | None = None,
        visual_tokenizer: str | Path | None = None,
        was_there: bool = False,
    ) -> None:
        check_instance(config, DataConfig, "config")
        check_instance(layout, TokenLayout, "layout", fix="give LumosModule.layout, or LayoutConfig.build()")
        seed = read_value(seed, int, "seed")
        optional(at_least(1)).check("max_length", read_value(max_length, int | None, "max_length"))
        read_value(visual_tokenizer, str | Path | None, "visual_tokenizer")
        if world is not None:
            check_instance(world, WorldClipsConfig, "world")
        super().__init__(
            skipped=SkippedSteps.parse(config.skip_steps), most_left_out=config.max_bad_samples, retry=config.patience
        )
        if world is not None and config.root is None and not config.sources:
            train, val = (str(shards_of(world, split)) for split in ("train", "val"))
            config = replace(config, root=train, val_root=val)
        self._was_there = was_there
        self._world = world
        self._tokenized_with = None if visual_tokenizer is None else str(visual_tokenizer)
        self.config, self.layout, self.seed, self.max_length = config, layout, seed, max_length
        self._takes_context = max_length is None
        self.prompt = PromptTemplate(config.prompt)
        self.tokenizer: TextTokenizer | None = None
        self._train: dict[str, Source] = {}
        self._val: dict[str, Source] = {}
        self._left_out: dict[str, tuple[str, ...]] = {}

    def prepare_data(self) -> None:
        """Make the clips of `world` that do not exist yet."""
        if self._world is not None and not self._train:
            make_clips(self._world, self._tokenized_with)

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests and check them against the layout and each other; opens a shard only if texts must be ids.

        Args:
            stage: `validate` and `test` need no training data.
        Raises:
            ConfigError, DataError: something does not fit; raised before anything is trained.
        """
        self._ask_module()
        if self._train:
            return
        check_workers(self.config.num_workers)
        self._check_is_made()
        trains = stage not in VALIDATION_STAGES
        needs_root = trains or any(source.held_out is not None for source in self.config.all_sources)
        if self.config.root is None and not self.config.sources and needs_root:
            raise ConfigError("no data", where="data.root", fix=f"give a folder of shards, or data.root={SYNTHETIC}")
        self.tokenizer = load_text_tokenizer(self.config.text_tokenizer, self.layout)
        train: dict[str, Source] = {}
        for source in self.config.all_sources:
            share = source.held_out
            if source.root is not None and (trains or share is not None):
                shards = self._shards(source, "train", source.root)
                if share is not None:
                    shards, held = split(shards, share, source.kind)
                    self._val[source.name] = self._source(source, "val", held)
                if trains:
                    train[source.name] = self._source(source, "train", shards)
            if source.val_root is not None:
                self._val[source.name] = self._source(source, "val", self._shards(source, "val", source.val_root))
        check_same_tokenizer([source.shards for source in (*train.values(), *self._val.values())])
        if self.tokenizer is None:
            _check_texts_are_ids([*train.values(), *self._val.values()])
        self._train = train

    @rank_zero_only
    def warn_of_unread_words(self) -> None:
        """Warn once if the first captions have words that the text tokenizer has no ids for. After `setup`.

        All such words look the same to the model.
        """
        for source in self._train.values() if self.tokenizer is not None else ():
            captions: list[str] = []
            with suppress(DataError):  # a damaged shard is reported when the training reaches it
                captions.extend(sample.text for sample in source.first(LOOKED_AT) if isinstance(sample.text, str))
            assert self.tokenizer is not None
            words = [word for one in captions if (word := unreadable_word(self.tokenizer, one)) is not None]
            if words:
                rank_zero_warn(
                    f"{len(words)} of the first {len(captions)} captions have words that the text tokenizer cannot "
                    f"read, and that train as the same, such as {words[0][:40]!a} | {source.shards.folder}"
                )

    @rank_zero_only
    def tell_of_left_out(self) -> None:
        """Say once what `data.where` and `data.too_long` leave out. After `setup`."""
        for name, told in self._left_out.items():
            for line in told:
                print(f"lumos: {name}: {line}", file=sys.stderr)

    def train_manifests(self) -> dict[str, Manifest]:
        """Manifests of the training data, by kind or by the names of a mixture's sources. After `setup`."""
        return {name: source.shards.manifest for name, source in self._train.items()}

    def val_source(self) -> Source | None:
        """The validation videos, or images if there are no videos; None without either. After `setup`."""
        found = {self.config.named(name).kind: source for name, source in reversed(self._val.items())}
        return found.get("video") or found.get("image")

    def _check_is_made(self) -> None:
        """Raise ConfigError if the world's clips do not exist, and no Trainer had them made."""
        if self.trainer is not None or self._world is None or not self._world.train:
            return
        made = shards_of(self._world, "train")
        if self.config.root == str(made) and not made.exists():
            fix = "call prepare_data() before setup(), as a Trainer does"
            raise ConfigError("the clips are not made yet", file=made, where="TokenDataModule", fix=fix)

    def _ask_module(self) -> None:
        """Take the context from the Trainer's module, and refuse one with another vocabulary."""
        module = None if self.trainer is None else self.trainer.lightning_module
        shape, layout = getattr(module, "shape", None), getattr(module, "layout", self.layout)
        if layout != self.layout:
            got, expected = (f"{one.name}, {one.codebook_size} codes" for one in (self.layout, layout))
            raise ConfigError("the data's layout is not the module's", where="layout", got=got, expected=expected)
        if self._takes_context and shape is not None and shape.max_length != self.max_length:
            self.max_length, self._train, self._val = shape.max_length, {}, {}  # they were read for another context

    def train_dataloader(self) -> TokenLoader:
        """The endless stream, from the trainer's optimizer step on."""
        if self.trainer is not None:
            check_can_follow(self.trainer)
            self.account.check()
        return self.stream(self._position)

    def stream(self, position: Callable[[], StreamPosition]) -> TokenLoader:
        """The endless stream from wherever `position` says when an iteration begins."""
        self._check_is_set_up()
        return self._loader(partial(self._training_batches, position))

    def _training_batches(self, position: Callable[[], StreamPosition]) -> webdataset.DataPipeline:
        here = replace(position(), skipped=self.skipped)
        plans = {name: source.plan for name, source in self._train.items()}
        order = partial(training_order, plans=plans, order=self.config.order(here.per_step), position=here)
        return self._batches(order, self._train)

    def val_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """The same batches at every call, equally many on each rank; none without `val_root` or `val_share`."""
        return self._in_order(self.config.val_batches)

    def test_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """All the validation data, equally many batches on each rank, some of which may not count there."""
        return self._in_order(None)

    def _in_order(self, most: int | None) -> TokenLoader | list[TokenLoader]:
        """The first batches of each source, in the order of the shards, divided among the ranks."""
        if not self.config.has_validation:
            return []
        self._check_is_set_up()
        position = self._position()
        batches: list[PlannedBatch] = []
        for source in self._val.values():
            first = list(islice(source.plan.sequential(), most))
            batches += _share(first, position.rank, position.world_size)
        order = partial(validation_order, batches=batches)
        return self._loader(partial(self._batches, order, self._val), n_batches=len(batches))

    def _batches(
        self, order: Callable[[int, int], Iterator[PlannedBatch]], sources: Mapping[str, Source]
    ) -> webdataset.DataPipeline:
        return batch_stream(order, sources, self.layout, max_bad_samples=self.config.max_bad_samples)

    def _loader(self, read: Callable[[], webdataset.DataPipeline], *, n_batches: int | None = None) -> TokenLoader:
        workers, timeout_s = self.config.num_workers, self.config.timeout_s
        return TokenLoader(read, workers, n_batches=n_batches, timeout_s=timeout_s, note=self.note_left_out)

    def _check_is_set_up(self) -> None:
        if not (self._train or self._val):
            raise ConfigError("the data are not read yet", where="TokenDataModule", fix="call setup() first")

    def identity(self) -> dict[str, str | int | float | None]:
        return {**self.fingerprint(), VISUAL_TOKENIZER: self.visual_tokenizer}

    def go_on_as(self, recorded: Mapping[str, Any]) -> None:
        for source in self.config.all_sources:
            if source.name in self._train:
                self._train[source.name].plan.deal_as(recorded.get(f"{_prefix(source)}dealing"))

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of the data: their settings, under the section's name in an experiment."""
        return {"data": to_plain(self.config)}

    def fingerprint(self) -> dict[str, str | int | float | None]:
        """Everything that determines the training stream besides the seed and the batches of a step; after `setup`."""
        config = self.config
        values: dict[str, str | int | float | None] = {
            "prompt": config.prompt,
            "text_tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            "caption_dropout": config.caption_dropout,
            # Under their former names, so that runs from before today's keys can be resumed.
            "given_frames_prob": config.given_prob,
            "given_frames_max": config.given_max,
        }
        if not config.sources:
            values |= {"val_share": config.all_sources[0].held_out, "pattern": " ".join(config.pattern)}
        for source in config.all_sources:
            values |= self._fingerprint_of(source)
        if SYNTHETIC in (source.root for source in config.all_sources):
            values |= {f"synthetic.{key}": value for key, value in asdict(config.synthetic).items()}
        if config.reader != "shards":
            values["reader"] = config.reader
        # Only if set, so that runs from before these settings existed can be resumed.
        if config.captions:
            values["captions"] = " ".join(config.captions)
        if config.where is not None and not config.sources:
            values["where"] = config.where
        if config.too_long != "refuse":
            values["too_long"] = config.too_long
        return values

    def _fingerprint_of(self, source: NamedSource) -> dict[str, str | int | float | None]:
        """What determines the batches of one source."""
        if source.name not in self._train:
            return {}
        ready = self._train[source.name]
        settings = asdict(source.config) | {"streams": ready.plan.n_streams}
        settings["manifest"] = ready.shards.manifest.fingerprint
        if ready.plan.dealing is not None:
            settings["dealing"] = ready.plan.dealing
        if self.config.sources:
            settings |= {"kind": source.kind, "val_share": source.held_out}
            settings |= {} if source.where is None else {"where": source.where}
        return {f"{_prefix(source)}{key}": value for key, value in settings.items()}

    def identity_at(self, step: int) -> dict[str, Any]:
        """For a mixture only what was read up to `step`: later weights may change, and sources may be added."""
        identity = super().identity_at(step)
        if not self.config.sources:
            return identity
        passed = self.skipped.of_order(step - 1) + 1 if step else 0
        read = {_prefix(self.config.named(name)): n for name, n in self.config.order(1).steps_before(passed).items()}
        unread = tuple(prefix for prefix, n in read.items() if not n)
        return {
            **{f"{prefix}weight": f"{n} of the first {passed} steps" for prefix, n in read.items() if n},
            **{key: value for key, value in identity.items() if not key.startswith(unread)},
        }

    @property
    def visual_tokenizer(self) -> str | None:
        """Fingerprint of the visual tokenizer that made the training shards; None for made-up data. After `setup`."""
        made_by = next(iter((self._train or self._val).values())).shards.manifest.tokenizer
        return None if made_by == SYNTHETIC else made_by

    def check_visual_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise DataError unless `tokenizer` made the shards; after `setup`."""
        for source in (*self._train.values(), *self._val.values()):
            made_by = source.shards.manifest.tokenizer
            if made_by != SYNTHETIC and not makes_codes_of(tokenizer, made_by):
                raise DataError(
                    "shards of another visual tokenizer",
                    file=source.shards.folder,
                    got=made_by,
                    expected=tokenizer.fingerprint,
                    fix="set visual_tokenizer to the one that made them, or tokenize the videos anew",
                )

    def _source(self, source: NamedSource, split: str, shards: Shards) -> Source:
        training = split == "train"
        sequences = SequenceBuilder(
            layout=self.layout,
            seed=self.seed,
            prompt=self.prompt,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            captions=tuple(self.config.captions),
            draws_captions=training,
            caption_dropout=self.config.caption_dropout if training else 0.0,
            given_prob=self.config.given_prob if training else 0.0,
            given_max=self.config.given_max,
        )
        name = source.name if training else f"{split}/{source.name}"
        self._check_context(source, shards.manifest)
        chosen = Choice(
            config=source.config,
            key=source.key,
            sequences=sequences,
            where=self.config.alone(source).condition if training or source.val_root is None else None,
            too_long=self.config.too_long,
            skips_damage=self.config.max_bad_samples > 0,
        ).of(shards)
        self._left_out |= {name: chosen.told}
        plan = StreamPlan(
            chosen.of(shards.manifest),
            source.config,
            self.layout,
            kind=source.name,
            seed=self.seed,
            prompt_tokens=0 if self.tokenizer is None or chosen.text_tokens is not None else self.prompt.max_bytes,
            key=source.key,
        )
        return Source(name=name, shards=shards, plan=plan, sequences=sequences)

    def _shards(self, source: NamedSource, split: str, root: str) -> Shards:
        kind, config = source.kind, self.config.alone(source)
        if root == SYNTHETIC:
            frames = source.config.frames
            return synthetic_shards(config.synthetic, self.layout, kind=kind, split=split, frames=frames)
        setting = f"{source.key}.{'root' if split == 'train' else 'val_root'}" if self.config.sources else None
        with located(where=setting):
            return open_shards(root, kind, config, self.layout, was_there=self._was_there)

    def _check_context(self, source: NamedSource, manifest: Manifest) -> None:
        prefix, frames = self.layout.prefix_length(None), self.layout.latent_frames(source.config.frames)
        longest = max(SequenceSpans(prefix, min(t, frames), h, w).length for t, h, w in manifest.shapes)
        if self.max_length is not None:
            check_context(source.key, source.config.frames, longest, self.max_length)


def _prefix(source: NamedSource) -> str:
    """Prefix of a source's entries in a fingerprint: the key of its settings, without `data.`."""
    return f"{source.key.removeprefix('data.')}."


def check_context(key: str, frames: int, longest: int, max_length: int) -> None:
    """Raise ConfigError for clips that do not fit the model's context even without text.

    Args:
        key: of the source's settings, for the message.
        longest: length of the longest clip in tokens.
    """
    if longest > max_length:
        raise ConfigError(
            "clips longer than the model's context",
            where=f"{key}.frames",
            got=f"{frames} frames, up to {longest} tokens",
            expected=f"at most {max_length} tokens (model.max_length)",
            fix="lower it, use smaller pictures, or raise the context",
        )


def _check_texts_are_ids(sources: list[Source]) -> None:
    """Raise DataError if the first sample has a caption, because nothing turns captions into ids."""
    for source in sources:
        for sample in source.first(1):
            if isinstance(sample.text, str):
                raise no_text_tokenizer(sample.text, file=source.shards.folder)


def _share(batches: list[PlannedBatch], rank: int, world_size: int) -> list[PlannedBatch]:
    """This rank's part. Each batch counts on one rank; ranks that have one fewer get one that does not count.

    Five batches on three ranks, those that do not count in brackets: `0 3`, `1 4`, `2 (0)`.
    """
    rounds = -(-len(batches) // world_size)
    places = range(rank, rounds * world_size, world_size)
    return [batches[place % len(batches)]._replace(counts=place < len(batches)) for place in places]
