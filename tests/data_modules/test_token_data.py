from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch import Tensor

from data_modules.config import DataConfig, SourceConfig, SyntheticConfig
from data_modules.shards import folders as shard_folders
from data_modules.shards.sample import ShardSample, check_sample
from data_modules.shards.writer import ShardWriter
from data_modules.synthetic import synthetic_shards
from data_modules.token_data import TokenDataModule
from lumos_pl.batch import PackedBatch
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.layout import TokenLayout, compact_layout, lumos1_layout
from lumos_pl.shape_world.clips import WorldClipsConfig
from tests.data_modules.fake_trainer import fake_trainer
from tests.refusals import refused

LAYOUT = compact_layout()
SMALL = {"frames": 5, "batch_size": 2, "shuffle_shards": 2}


def data(
    *,
    layout: TokenLayout = LAYOUT,
    max_length: int | None = None,
    step: int = 0,
    rank: int = 0,
    ranks: int = 1,
    **changes: Any,
) -> TokenDataModule:
    """A data module as a trainer of `ranks` ranks sees it at an optimizer step."""
    settings = {
        "root": "synthetic",
        "num_workers": 0,
        "video": SourceConfig(**SMALL),
        "synthetic": SyntheticConfig(n_samples=24, width=32, height=16),
        **changes,
    }
    module = TokenDataModule(DataConfig(**settings), layout, seed=1, max_length=max_length)
    module.setup()
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks)
    return module


def train_batches(n: int, **settings: Any) -> list[PackedBatch]:
    return list(islice(data(**settings).train_dataloader(), n))


def same(a: list[PackedBatch], b: list[PackedBatch]) -> bool:
    return [x.appearances for x in a] == [y.appearances for y in b] and all(
        torch.equal(x.tokens, y.tokens) and x.n_given == y.n_given for x, y in zip(a, b, strict=True)
    )


def samples(kind: str, n: int = 24) -> list[ShardSample]:
    """Four shards' worth of small clips of 13 frames, upright and not; or of single frames."""
    return [sample(number, kind) for number in range(n)]


def sample(number: int, kind: str) -> ShardSample:
    frames, t = (1, 1) if kind == "image" else (13, 4)
    h, w = (2, 4) if number % 3 else (4, 2)
    codes = np.random.default_rng(number).integers(0, 240, (t, h, w), dtype=np.uint16)
    return ShardSample(
        key=f"s{number}", codes=codes, text=f"clip {number}", frames=frames, fps=4, duration=3,
        width=8 * w, height=8 * h, source="test",
    )  # fmt: skip


def write_shards(folder: Path, samples: Iterable[ShardSample], tokenizer: str = "t") -> Path:
    strides = (4, 8, 8)
    with ShardWriter(folder, tokenizer=tokenizer, codebook_size=240, strides=strides, samples_per_shard=6) as writer:
        for made in samples:
            writer.add(made)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in ("image", "video"):
        write_shards(tmp_path / "data" / f"{kind}s", samples(kind))
    return tmp_path / "data"


def test_shards_of_a_folder_stream_as_sequences(root: Path) -> None:
    (batch,) = train_batches(1, kind="video", root=str(root), caption_dropout=0.0)
    assert len(batch.appearances) == 2
    for appearance, spans, offset in zip(batch.appearances, batch.spans, batch.offsets, strict=True):
        source, epoch, key = appearance.split("/")
        assert (source, epoch) == ("video", "0")
        original = sample(int(key[1:]), "video")
        ids = batch.tokens[offset : offset + spans.length]
        assert spans.latent_frames == 2  # 5 of the 13 RGB frames
        codes = ids[spans.visual_index] - LAYOUT.visual_offset
        assert np.array_equal(codes.numpy().reshape(2, *original.codes.shape[1:]), original.codes[:2])
        text = bytes(ids[1 : spans.prefix - 4].tolist()).decode()
        assert text.endswith(original.text) and "consisting of 5 frames at 4 frames" in text


def test_by_hand_clips_that_nobody_made_are_asked_for(tmp_path: Path) -> None:
    world = WorldClipsConfig(folder=str(tmp_path / "clips"), train=1)
    with refused(ConfigError, file=tmp_path / "clips" / "train" / "shards", where="TokenDataModule"):
        TokenDataModule(DataConfig(), LAYOUT, world=world).setup()


def test_synthetic_clips_move_as_their_text_says() -> None:
    shards = synthetic_shards(
        SyntheticConfig(n_samples=20, width=64, height=32), LAYOUT, kind="video", split="train", frames=13
    )
    assert [len(shards.read(index)) for index in range(3)] == [8, 8, 4]
    clips = [clip for index in range(3) for clip in shards.read(index)]
    assert {clip.codes.shape for clip in clips} == {(4, 4, 8), (4, 8, 4)}
    motions = set()
    for clip in clips:
        check_sample(clip, LAYOUT.codebook_size, LAYOUT.strides)
        _, number, _, motion = bytes(int(item) for item in clip.text).decode().split()
        step = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}[motion]
        assert all(np.array_equal(np.roll(a, step, (0, 1)), b) for a, b in pairwise(clip.codes))
        assert set(np.unique(clip.codes)) == {0, int(number) * 239 // 7}
        motions.add(motion)
    assert len(motions) == 4


@pytest.mark.parametrize("kind", ["image", "video", "joint"])
def test_workers_and_steps_do_not_change_the_stream(kind: str) -> None:
    """Also with everything random on; the second half comes from a loader that starts at step 4."""
    settings = {"kind": kind, "caption_dropout": 0.4, "given_prob": 0.5}
    whole = train_batches(16, **settings)
    assert same(train_batches(16, **settings, num_workers=2), whole)
    assert same(train_batches(8, **settings, step=4), whole[8:])
    assert any(batch.n_given != (0,) * len(batch.appearances) for batch in whole) == (kind != "image")


def test_joint_data_alternates_by_step() -> None:
    def kinds(**settings: Any) -> list[str]:
        return [batch.appearances[0].split("/")[0] for batch in train_batches(8, **settings)]

    v, i = "video", "image"
    assert kinds() == [v, v, i, i, v, v, i, i]  # 2 micro-batches a step
    assert kinds(images_per_cycle=2) == [v, v, i, i, i, i, v, v]
    assert kinds(ranks=2, rank=1) == [v, v, i, i, v, v, i, i]
    assert [len(batch.appearances) for batch in train_batches(4)] == [2, 2, 6, 6]


def test_only_shards_still_needed_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream of 4 shards, 12 batches an epoch: step 4 is in the second half of an epoch."""
    opened: list[int] = []
    read_shard = shard_folders.read_shard

    def counting(folder: Path, manifest: Any, index: int, retry: Any) -> list[ShardSample]:
        opened.append(index)
        return read_shard(folder, manifest, index)

    monkeypatch.setattr(shard_folders, "read_shard", counting)
    video = SourceConfig(**{**SMALL, "streams": 1, "bucket": False})
    settings = {"kind": "video", "root": str(root), "video": video}
    train_batches(12, **settings)
    assert sorted(opened) == [0, 1, 2, 3]  # each once
    first_half = opened[:2]
    opened.clear()
    train_batches(4, step=4, **settings)
    assert len(opened) == 2 and not set(opened) & set(first_half)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_worker_arrives_as_one_line(root: Path, num_workers: int) -> None:
    """And only when its batch is due: those before it still come."""
    shard = root / "videos" / "shard-000002.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    settings = {"kind": "video", "root": str(root), "num_workers": num_workers}
    before = set(multiprocessing.active_children())  # of other tests
    batches = iter(data(**settings).train_dataloader())
    came = 0
    with pytest.raises(DataError) as caught:
        for _ in batches:
            came += 1
    assert came > 0
    assert type(caught.value) is DataError and caught.value.exit_status == 3
    line = str(caught.value)
    assert line.startswith(f"shard with other content | {shard} | ")
    assert "\n" not in line and "Traceback" not in line
    assert set(multiprocessing.active_children()) <= before  # although the traceback still holds the loader's frame


def test_a_sample_that_does_not_fit_is_named(tmp_path: Path) -> None:
    too_fast = [replace(made, fps=500) if made.key == "s4" else made for made in samples("image")]
    write_shards(tmp_path / "d", too_fast)
    with refused(DataError, file="shard-000000.tar", where="sample s4: fps", got=500):
        train_batches(10, kind="image", root=str(tmp_path / "d"))


def test_validation_is_the_same_every_time_and_equal_on_every_rank(root: Path) -> None:
    settings = {"root": str(root), "val_root": str(root), "val_batches": 5}
    settings |= {"caption_dropout": 1.0, "given_prob": 1.0}
    loader = data(**settings).val_dataloader()
    assert not isinstance(loader, list)
    whole = list(loader)
    assert same(list(loader), whole)
    assert same(list(data(**settings, num_workers=2).val_dataloader()), whole)
    assert len(whole) == 5 + 5  # of 5 batches of images and 12 of videos
    assert all(appearance.startswith("val/") for batch in whole for appearance in batch.appearances)
    assert all(int(batch.tokens[offset]) == LAYOUT.bos for batch in whole for offset in batch.offsets)  # text kept
    assert {n_given for batch in whole for n_given in batch.n_given} == {0}

    for n_ranks, each in ((2, 6), (3, 4), (8, 2)):  # of 5 batches of each kind
        ranks = [list(data(**settings, ranks=n_ranks, rank=rank).val_dataloader()) for rank in range(n_ranks)]
        assert [len(batches) for batches in ranks] == [each] * n_ranks
        kinds = [[batch.kind for batch in batches] for batches in ranks]
        assert all(of_rank == kinds[0] for of_rank in kinds)  # all ranks are at the same kind
        counted = [batch.appearances for batches in ranks for batch in batches if batch.counts]
        assert sorted(counted) == sorted(batch.appearances for batch in whole)
    few = {**settings, "val_batches": 1}
    assert same(list(data(**few, ranks=2, rank=1).val_dataloader()), list(data(**few).val_dataloader()))
    assert data().val_dataloader() == []


def test_what_does_not_fit_together_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    with refused(ConfigError, where="data.root"):
        data(root=None)
    with refused(DataError, file=tmp_path / "absent" / "images"):
        data(root=str(tmp_path / "absent"))
    with refused(DataError, file=root / "images", got="240 (tokenizer t)", expected="64 (layout compact)"):
        data(root=str(root), layout=compact_layout(64))
    with refused(DataError, file=root / "images", got="(4, 8, 8) (tokenizer t)"):
        data(root=str(root), layout=compact_layout(240, (2, 8, 8)))
    with refused(ConfigError, where="data.video.frames", got="5 frames, up to 35 tokens"):
        data(root=str(root), kind="video", max_length=34)
    with refused(DataError, where="sample s0: data.too_long"):
        data(root=str(root), kind="video", max_length=35)
    with refused(DataError, file=root / "images", got="'clip 0'"):
        data(root=str(root), layout=lumos1_layout(65_536 + 240))
    write_shards(tmp_path / "other" / "images", samples("image"), tokenizer="t")
    write_shards(tmp_path / "other" / "videos", samples("video"), tokenizer="u")
    with refused(DataError, got="u", expected=f"t, as in {tmp_path}/other/images"):
        data(root=str(tmp_path / "other"))


def test_the_fingerprint_tells_streams_apart(root: Path) -> None:
    base = {"root": str(root), "kind": "video"}

    def fingerprint(**changes: Any) -> dict[str, Any]:
        return data(**{**base, **changes}).fingerprint()

    def changed(**changes: Any) -> set[str]:
        before, after = fingerprint(), fingerprint(**changes)
        return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    assert OmegaConf.create(fingerprint())  # plain values
    assert changed(num_workers=2, val_root=str(root), val_batches=3, image=SourceConfig(batch_size=9)) == set()
    assert changed(root=str(root / "videos")) == set()  # the same shards
    assert changed(video=SourceConfig(**SMALL, streams=2)) == {"video.streams"}
    assert changed(prompt="{caption}", caption_dropout=0.2) == {"prompt", "caption_dropout"}
    assert changed(root=str(write_shards(root / "few", samples("video", 12)))) == {"video.manifest", "video.streams"}


def test_configs_merge_strictly_and_name_what_is_wrong() -> None:
    schema = OmegaConf.structured(DataConfig)
    merged = OmegaConf.merge(schema, {"kind": "image", "image": {"max_tokens": 4096}})
    config = OmegaConf.to_object(merged)
    assert config == DataConfig(kind="image", image=SourceConfig(batch_size=6, max_tokens=4096, frames=1))
    for key, value, expected in (
        ("video.batch_size", 0, "1 to 1000000"),
        ("image.streams", -1, "1 or more, up to 1000000000"),
        ("caption_dropout", float("nan"), "0 to 1"),
        ("given_prob", 1.5, "0 to 1"),
        ("num_workers", -1, "0 to 1024"),
        ("synthetic.fps", 0, "1 to 1000"),
    ):
        changes = OmegaConf.from_dotlist([f"{key}={value}"])
        with refused(ConfigError, where=f"data.{key}", got=value, expected=expected):
            OmegaConf.to_object(OmegaConf.merge(schema, changes))


class Recorder(LightningModule):
    """Takes note of what it is given; one weight, so that Lightning has something to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.appearances: list[tuple[str, ...]] = []

    def training_step(self, batch: PackedBatch, batch_idx: int) -> Tensor:
        self.appearances.append(batch.appearances)
        return self.weight * 1.0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_resumes_with_the_next_batch(tmp_path: Path) -> None:
    """Lightning restores the step before it asks for the loader, so the step places the stream."""

    def fit(steps: int, folder: str, *, workers: int = 0, checkpoint: Path | None = None) -> list[tuple[str, ...]]:
        module = Recorder()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            accumulate_grad_batches=2,
            callbacks=[ModelCheckpoint(tmp_path / folder, save_last=True, every_n_train_steps=1)],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, data(num_workers=workers), ckpt_path=checkpoint, weights_only=True)
        return module.appearances

    whole = fit(7, "whole")
    before = fit(3, "cut")
    after = fit(7, "cut", workers=2, checkpoint=tmp_path / "cut" / "last.ckpt")
    assert len(whole) == 14
    assert before + after == whole


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Clips 0 to 5 and 6 to 23 in two folders with shapes in another order, images in the second alone."""
    write_shards(tmp_path / "part-a" / "videos", samples("video")[:6])
    write_shards(tmp_path / "part-b" / "videos", samples("video")[:5:-1])
    write_shards(tmp_path / "part-b" / "images", samples("image"))
    return tmp_path


@pytest.mark.parametrize("before", [True, False])
def test_a_run_goes_on_with_the_order_of_unequal_shards_that_it_began_with(tmp_path: Path, before: bool) -> None:
    """Runs that are older than today's dealing do not say how theirs were dealt."""
    root = write_shards(tmp_path / "videos", samples("video", 6)).parent
    write_shards(tmp_path / "more" / "videos", samples("video", 15)[6:])
    settings = {"kind": "video", "root": f"{root}/[vm]*", "video": SourceConfig(**SMALL, streams=2)}

    def started() -> TokenDataModule:
        module = data(step=3, **settings)
        module.trainer.training = True
        return module

    begun, today = started(), started()
    if before:
        begun.go_on_as({})
    assert ("video.dealing" in begun.identity()) is not before
    expected = list(islice(begun.train_dataloader(), 6))
    assert same(list(islice(today.train_dataloader(), 6)), expected) is not before
    today.load_state_dict(begun.state_dict())
    assert same(list(islice(today.train_dataloader(), 6)), expected)
    assert today.identity() == begun.identity()


def test_folders_that_match_a_pattern_are_one_data_set(parts: Path) -> None:
    module = data(kind="joint", root=str(parts / "part-*"), image=SourceConfig(batch_size=2))
    seen = {kind: set[str]() for kind in ("image", "video")}
    for batch in islice(module.train_dataloader(), 48):
        for appearance, spans, offset in zip(batch.appearances, batch.spans, batch.offsets, strict=True):
            kind, _, key = appearance.split("/")
            seen[kind].add(key)
            codes = batch.tokens[offset : offset + spans.length][spans.visual_index] - LAYOUT.visual_offset
            original = sample(int(key[1:]), kind).codes[: spans.latent_frames]
            assert np.array_equal(codes.numpy().reshape(original.shape), original)
    assert seen["image"] == seen["video"] == {f"s{number}" for number in range(24)}


def test_the_identity_of_joined_folders_is_that_of_each(parts: Path) -> None:
    def identity() -> Any:
        return data(kind="video", root=str(parts / "part-*")).fingerprint()["video.manifest"]

    before = identity()
    assert before == identity()
    write_shards(parts / "part-c", [replace(sample(30, "video"), text="more")])
    assert identity() != before
    one = data(kind="video", root=str(parts / "part-a")).fingerprint()["video.manifest"]
    assert one == data(kind="video", root=str(parts / "part-[a]")).fingerprint()["video.manifest"]


@pytest.mark.parametrize(
    ("spoil", "file"),
    [
        (lambda parts: (parts / "part-b/videos/manifest.json").unlink(), "part-b/videos"),
        (lambda parts: (parts / "part-c").mkdir(), "part-c"),
        (lambda parts: write_shards(parts / "part-c", samples("video"), tokenizer="another"), "part-c"),
        (lambda parts: (parts / "part-a/videos/shard-000000.tar").unlink(), "part-a/videos/shard-000000.tar"),
    ],
)
def test_every_joined_folder_must_be_whole(parts: Path, spoil: Any, file: str) -> None:
    spoil(parts)
    with refused(DataError, file=parts / file):
        data(kind="video", root=str(parts / "part-*"))


def test_a_damaged_shard_among_joined_folders_is_named(parts: Path) -> None:
    damaged = parts / "part-b/videos/shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    with refused(DataError, file=damaged):
        train_batches(48, kind="video", root=str(parts / "part-*"))


def test_a_pattern_without_a_folder_is_refused(tmp_path: Path) -> None:
    with refused(DataError, file="nowhere-*"):
        data(kind="video", root=str(tmp_path / "nowhere-*"))


def test_captions_that_the_text_tokenizer_cannot_read_are_told_once(tmp_path: Path) -> None:
    texts = ["a red circle", "a красный circle", "a big red square", "a красный square"]
    captioned = [replace(one, text=text) for one, text in zip(samples("video", 4), texts, strict=True)]
    shards = write_shards(tmp_path / "captioned", captioned)
    module = data(kind="video", root=str(shards), text_tokenizer="embedded")
    with pytest.warns(UserWarning, match="2 of the first 4 captions") as told:
        module.warn_of_unread_words()
    assert len(told) == 1


@pytest.mark.seconds
def test_a_worker_that_is_stopped_is_waited_for_within_a_limit_and_named() -> None:
    config = DataConfig(kind="image", root="synthetic", num_workers=1, timeout_s=1, prompt="{caption}")
    data = TokenDataModule(config, compact_layout(codebook_size=60))
    data.setup("fit")
    before = multiprocessing.active_children()
    loader = data.train_dataloader()
    batches = iter(loader)
    last = next(batches).names[-1]
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    os.kill(worker.pid or 0, signal.SIGSTOP)
    with pytest.raises(TemporaryError) as silent:
        for batch in batches:  # those that were ready
            last = batch.names[-1]
    assert silent.value.where == f"worker 0, after sample {last}"
    assert f"pid {worker.pid}, stopped" in str(silent.value.got) and "1 s" in str(silent.value.expected)
    worker.join(10)
    assert not worker.is_alive()
    late = RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed.")  # as torch tells of it
    assert loader.worker_death(late) is silent.value


def test_more_workers_than_the_machine_can_serve_are_refused() -> None:
    data = TokenDataModule(DataConfig(root="synthetic", num_workers=1000), compact_layout(codebook_size=60))
    with refused(ConfigError, where="data.num_workers"):
        data.setup("fit")
