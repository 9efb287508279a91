"""The data of a run, images, videos or both, for Lightning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from typing import Any

import webdataset
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from data_modules.config import SYNTHETIC, DataConfig
from data_modules.held_out import split
from data_modules.made_clips import make_clips, shards_of
from data_modules.manifest import Manifest
from data_modules.position import PositionedDataModule, StreamPosition, check_can_follow, stream_position
from data_modules.readers import Shards, check_same_tokenizer, open_shards
from data_modules.skipped_steps import SkippedSteps
from data_modules.stream_plan import PlannedBatch, StreamPlan
from data_modules.synthetic import synthetic_shards
from data_modules.token_stream import (
    Source,
    TokenLoader,
    batch_stream,
    check_workers,
    training_order,
    validation_order,
)
from data_modules.training_sequence import SequenceBuilder, no_text_tokenizer
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.settings.plain import to_plain
from lumos_pl.shape_world.clips import WorldClipsConfig
from lumos_pl.spans import SequenceSpans
from lumos_pl.tokenizers.load import load_text_tokenizer
from lumos_pl.tokenizers.text import PromptTemplate, TextTokenizer, unreadable_word
from lumos_pl.tokenizers.visual import VisualTokenizer, makes_codes_of

LOOKED_AT = 256  # captions of a kind that are tried on the text tokenizer before training


class TokenDataModule(PositionedDataModule):
    """Packed batches in an order that depends on (config, data, seed) alone, in any Trainer and without one.

    The optimizer step is the only state: a resumed run, with any number of workers, and of ranks if
    the micro-batches of a step are as many, goes on with the very next batch.

    Args:
        layout: the vocabulary, such as `LumosModule.layout`.
        max_length: the model's context in tokens; None: that of the Trainer's module, unlimited without one.
        world: clips that are made where they are not there yet; read where the settings name no other data.
        visual_tokenizer: what those clips are tokenized with, see `load_visual_tokenizer`.
        was_there: the data were read before, by the run that is gone on with: their absence may pass.

    Attributes:
        prompt, tokenizer: how a caption becomes text ids; no tokenizer where all texts are ids. After `setup`.
    """

    def __init__(
        self,
        config: DataConfig,
        layout: TokenLayout,
        *,
        seed: int = 0,
        max_length: int | None = None,
        world: WorldClipsConfig | None = None,
        visual_tokenizer: str | None = None,
        was_there: bool = False,
    ) -> None:
        super().__init__(
            skipped=SkippedSteps.parse(config.skip_steps), most_left_out=config.max_bad_samples, retry=config.patience
        )
        if world is not None and config.root is None:
            train, val = (str(shards_of(world, split)) for split in ("train", "val"))
            config = replace(config, root=train, val_root=val)
        self._was_there = was_there
        self._world, self._tokenized_with = world, visual_tokenizer
        self.config, self.layout, self.seed, self.max_length = config, layout, seed, max_length
        self._takes_context = max_length is None
        self.prompt = PromptTemplate(config.prompt)
        self.tokenizer: TextTokenizer | None = None
        self._train: dict[str, Source] = {}
        self._val: dict[str, Source] = {}

    def prepare_data(self) -> None:
        """Make the clips of `world` that are not there yet."""
        if self._world is not None and not self._train:
            make_clips(self._world, self._tokenized_with)

    def setup(self, stage: str | None = None) -> None:
        """Read the manifests and check them against the layout and each other; of shards, one where texts are ids.

        Args:
            stage: `validate` needs no training data.
        Raises:
            ConfigError, DataError: what does not fit, before anything is trained.
        """
        self._ask_module()
        if self._train:
            return
        check_workers(self.config.num_workers)
        if self.config.root is None and stage != "validate":
            raise ConfigError("no data", where="data.root", fix=f"give a folder of shards, or data.root={SYNTHETIC}")
        self.tokenizer = load_text_tokenizer(self.config.text_tokenizer, self.layout)
        kinds = sorted(set(self.config.pattern))
        train: dict[str, Source] = {}
        root, share = self.config.root, self.config.held_out
        for kind in kinds if root is not None and (stage != "validate" or share is not None) else ():
            assert root is not None
            shards = self._shards(kind, "train", root)
            if share is not None:
                shards, held = split(shards, share, kind)
                self._val[kind] = self._source(kind, "val", held)
            if stage != "validate":
                train[kind] = self._source(kind, "train", shards)
        if self.config.val_root is not None:
            self._val = {
                kind: self._source(kind, "val", self._shards(kind, "val", self.config.val_root)) for kind in kinds
            }
        check_same_tokenizer([source.shards for source in (*train.values(), *self._val.values())])
        if self.tokenizer is None:
            _check_texts_are_ids([*train.values(), *self._val.values()])
        self._train = train

    @rank_zero_only
    def warn_of_unread_words(self) -> None:
        """Say once, of the first captions, how many have words that the text tokenizer has no ids for. After `setup`.

        Whatever such words say, they train as the same.
        """
        for source in self._train.values() if self.tokenizer is not None else ():
            captions: list[str] = []
            with suppress(DataError):  # of a damaged shard: the training says it when it comes to it
                captions.extend(sample.text for sample in source.first(LOOKED_AT) if isinstance(sample.text, str))
            assert self.tokenizer is not None
            words = [word for one in captions if (word := unreadable_word(self.tokenizer, one)) is not None]
            if words:
                rank_zero_warn(
                    f"{len(words)} of the first {len(captions)} captions have words that the text tokenizer cannot "
                    f"read, and that train as the same, such as {words[0][:40]!a} | {source.shards.folder}"
                )

    def train_manifests(self) -> dict[str, Manifest]:
        """What is trained on, by kind. After `setup`."""
        return {kind: source.shards.manifest for kind, source in self._train.items()}

    def val_source(self) -> Source | None:
        """The validation videos, or images where there are no videos; None without either. After `setup`."""
        return self._val.get("video") or self._val.get("image")

    def _ask_module(self) -> None:
        """Take the context from the Trainer's module, and refuse one with another vocabulary."""
        module = None if self.trainer is None else self.trainer.lightning_module
        shape, layout = getattr(module, "shape", None), getattr(module, "layout", self.layout)
        if layout != self.layout:
            got, expected = (f"{one.name}, {one.codebook_size} codes" for one in (self.layout, layout))
            raise ConfigError("the data's layout is not the module's", where="layout", got=got, expected=expected)
        if self._takes_context and shape is not None and shape.max_length != self.max_length:
            self.max_length, self._train, self._val = shape.max_length, {}, {}  # read for another

    def train_dataloader(self) -> TokenLoader:
        """The endless stream, from the trainer's optimizer step on."""
        if self.trainer is not None:
            check_can_follow(self.trainer)
            self.account.check()
        return self.stream(lambda: stream_position(self.trainer))

    def stream(self, position: Callable[[], StreamPosition]) -> TokenLoader:
        """The endless stream from wherever `position` says as an iteration begins."""
        self._check_is_set_up()
        plans = {kind: source.plan for kind, source in self._train.items()}

        def read() -> webdataset.DataPipeline:
            here = replace(position(), skipped=self.skipped)
            order = partial(training_order, plans=plans, pattern=self.config.pattern, position=here)
            return batch_stream(order, self._train, self.layout, max_bad_samples=self.config.max_bad_samples)

        return self._loader(read)

    def val_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """The same batches at every call, as many on each rank; nothing without `val_root` or `val_share`."""
        return self._in_order(self.config.val_batches)

    def test_dataloader(self) -> TokenLoader | list[TokenLoader]:
        """All there is to validate with, as many batches on each rank, some of which may not count there."""
        return self._in_order(None)

    def _in_order(self, most: int | None) -> TokenLoader | list[TokenLoader]:
        """The first batches of each kind, in the order of the shards, shared among the ranks."""
        if self.config.val_root is None and self.config.held_out is None:
            return []
        self._check_is_set_up()
        position = stream_position(self.trainer)
        batches: list[PlannedBatch] = []
        for source in self._val.values():
            first = list(islice(source.plan.sequential(), most))
            batches += _share(first, position.rank, position.world_size)
        order = partial(validation_order, batches=batches)

        def read() -> webdataset.DataPipeline:
            return batch_stream(order, self._val, self.layout, max_bad_samples=self.config.max_bad_samples)

        return self._loader(read, n_batches=len(batches))

    def _loader(self, read: Callable[[], webdataset.DataPipeline], *, n_batches: int | None = None) -> TokenLoader:
        workers, timeout_s = self.config.num_workers, self.config.timeout_s
        return TokenLoader(read, workers, n_batches=n_batches, timeout_s=timeout_s, note=self.note_left_out)

    def _check_is_set_up(self) -> None:
        if not (self._train or self._val):
            raise ConfigError("the data are not read yet", where="TokenDataModule", fix="call setup() first")

    def identity(self) -> dict[str, str | int | float | None]:
        return {**self.fingerprint(), VISUAL_TOKENIZER: self.visual_tokenizer}

    def go_on_as(self, recorded: Mapping[str, Any]) -> None:
        for kind, source in self._train.items():
            source.plan.deal_as(recorded.get(f"{kind}.dealing"))

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of the data: their settings, under the name that an experiment has for them."""
        return {"data": to_plain(self.config)}

    def fingerprint(self) -> dict[str, str | int | float | None]:
        """All that determines the training stream besides the seed and the batches of a step; after `setup`."""
        config = self.config
        values: dict[str, str | int | float | None] = {
            "val_share": config.held_out,
            "pattern": " ".join(config.pattern),
            "prompt": config.prompt,
            "text_tokenizer": None if self.tokenizer is None else self.tokenizer.fingerprint,
            "caption_dropout": config.caption_dropout,
            # Under the names of before: runs that are older than today's keys go on.
            "given_frames_prob": config.given_prob,
            "given_frames_max": config.given_max,
        }
        for kind, source in self._train.items():
            settings = asdict(config.source(kind)) | {"streams": source.plan.n_streams}
            values |= {f"{kind}.{key}": value for key, value in settings.items()}
            values[f"{kind}.manifest"] = source.shards.manifest.fingerprint
            if source.plan.dealing is not None:
                values[f"{kind}.dealing"] = source.plan.dealing
        if config.root == SYNTHETIC:
            values |= {f"synthetic.{key}": value for key, value in asdict(config.synthetic).items()}
        if config.reader != "shards":
            values["reader"] = config.reader
        return values

    @property
    def visual_tokenizer(self) -> str | None:
        """Fingerprint of the visual tokenizer that made the training shards; None of made-up ones. After `setup`."""
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

    def _source(self, kind: str, split: str, shards: Shards) -> Source:
        config = self.config.source(kind)
        training = split == "train"
        sequences = SequenceBuilder(
            layout=self.layout,
            seed=self.seed,
            prompt=self.prompt,
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            caption_dropout=self.config.caption_dropout if training else 0.0,
            given_prob=self.config.given_prob if training else 0.0,
            given_max=self.config.given_max,
        )
        plan = StreamPlan(
            shards.manifest,
            config,
            self.layout,
            kind=kind,
            seed=self.seed,
            prompt_tokens=0 if self.tokenizer is None else self.prompt.max_bytes,
        )
        self._check_context(plan)
        return Source(name=kind if training else f"{split}/{kind}", shards=shards, plan=plan, sequences=sequences)

    def _shards(self, kind: str, split: str, root: str) -> Shards:
        if root == SYNTHETIC:
            frames = self.config.source(kind).frames
            return synthetic_shards(self.config.synthetic, self.layout, kind=kind, split=split, frames=frames)
        return open_shards(root, kind, self.config, self.layout, was_there=self._was_there)

    def _check_context(self, plan: StreamPlan) -> None:
        prefix = self.layout.prefix_length(None)
        longest = max(SequenceSpans(prefix, *shape).length for shape in plan.clip_shapes)
        if self.max_length is not None:
            check_context(plan.kind, plan.config.frames, longest, self.max_length)


def check_context(kind: str, frames: int, longest: int, max_length: int) -> None:
    """Refuse clips that do not fit the model's context even without text; `longest` in tokens."""
    if longest > max_length:
        raise ConfigError(
            "clips longer than the model's context",
            where=f"data.{kind}.frames",
            got=f"{frames} frames, up to {longest} tokens",
            expected=f"at most {max_length} tokens (model.max_length)",
            fix="lower it, use smaller pictures, or raise the context",
        )


def _check_texts_are_ids(sources: list[Source]) -> None:
    """Raise DataError where the first sample has a caption, which nothing turns into ids."""
    for source in sources:
        for sample in source.first(1):
            if isinstance(sample.text, str):
                raise no_text_tokenizer(sample.text, file=source.shards.folder)


def _share(batches: list[PlannedBatch], rank: int, world_size: int) -> list[PlannedBatch]:
    """This rank's part: each batch counts on one rank, and those that have one less take one that does not count.

    Five batches of three ranks, what does not count in brackets: `0 3`, `1 4`, `2 (0)`.
    """
    rounds = -(-len(batches) // world_size)
    places = range(rank, rounds * world_size, world_size)
    return [batches[place % len(batches)]._replace(counts=place < len(batches)) for place in places]
