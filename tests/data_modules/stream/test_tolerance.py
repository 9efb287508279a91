"""Data that are damaged, or that cannot be read for a while: what a training then reads, and what it says."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer

from data_modules.config import DataConfig, SourceConfig
from data_modules.shards.manifest import Manifest
from data_modules.shards.sample import ShardSample
from data_modules.shards.writer import ShardWriter
from data_modules.stream.left_out import LEFT_OUT_FILE, Account, LeftOut
from data_modules.token_data import TokenDataModule
from lumos_pl.batch import PackedBatch
from lumos_pl.errors import CheckpointError, ConfigError, DataError, TemporaryError
from lumos_pl.layout import compact_layout
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.fake_trainer import fake_trainer
from tests.refusals import refused

LAYOUT = compact_layout()
N_SAMPLES, OF_A_SHARD = 24, 6
QUICK = RetryConfig(attempts=4, wait_s=0)
ONE_STREAM = SourceConfig(batch_size=2, frames=5, streams=1)


def sample(number: int) -> ShardSample:
    h, w = (2, 4) if number % 3 else (4, 2)
    return ShardSample(
        key=f"s{number}",
        codes=np.random.default_rng(number).integers(0, 240, (2, h, w), dtype=np.uint16),
        text=f"clip {number}",
        frames=5,
        fps=4,
        duration=2,
        width=8 * w,
        height=8 * h,
        source="test",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    with ShardWriter(
        folder, tokenizer="t", codebook_size=240, strides=(4, 8, 8), samples_per_shard=OF_A_SHARD
    ) as writer:
        for number in range(N_SAMPLES):
            writer.add(sample(number))
    return folder


def data(
    root: Path, folder: Path | None = None, *, step: int = 0, rank: int = 0, ranks: int = 1, **settings: Any
) -> Any:
    """A data module as one rank's Trainer sees it, whose run lies in `folder`; two micro-batches of a step."""
    config = {
        "kind": "video",
        "root": str(root),
        "num_workers": 0,
        "retry": QUICK,
        "video": SourceConfig(batch_size=2, frames=5, streams=2),
        **settings,
    }
    module = TokenDataModule(DataConfig(**config), LAYOUT, seed=1)
    module.setup()
    more = {} if folder is None else {"default_root_dir": str(folder), "fast_dev_run": False}
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks, accumulate=2 // ranks, **more)
    return module


def read(module: TokenDataModule, n: int) -> list[PackedBatch]:
    """The first batches, and one more that is asked for and not used, as a Trainer does."""
    return list(islice(module.train_dataloader(), n + 1))[:n]


def same(a: Iterable[PackedBatch], b: Iterable[PackedBatch]) -> bool:
    return all(x.appearances == y.appearances and torch.equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def keys_of(batch: PackedBatch) -> list[str]:
    return [appearance.split("/")[-1] for appearance in batch.appearances]


def listed(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LEFT_OUT_FILE).read_text().splitlines()]


def damage_sample(root: Path, shard: int, place: int) -> str:
    """Flip bits of one sample's codes; its key."""
    manifest = Manifest.read(root)
    entry = manifest.shards[shard]
    file = root / entry.file
    content = bytearray(file.read_bytes())
    start = (0, *entry.ends)[place]
    for offset in range(start + 640, start + 650):
        content[offset] ^= 0xFF
    file.write_bytes(content)
    return f"s{shard * OF_A_SHARD + place}"


def test_a_damaged_sample_is_left_out_and_all_others_keep_their_place(root: Path, tmp_path: Path) -> None:
    whole = read(data(root), 40)
    bad = damage_sample(root, 1, 2)
    left = read(data(root, tmp_path, max_bad_samples=1), 40)
    assert any(bad in keys_of(batch) for batch in whole)
    for before, after in zip(whole, left, strict=True):
        for one, other in zip(keys_of(before), keys_of(after), strict=True):
            if one == bad:
                assert other.partition("~")[0] not in (bad, "") and "~" in other
            else:
                assert one == other
        assert [spans.n_positions for spans in before.spans] == [spans.n_positions for spans in after.spans]
    (line,) = listed(tmp_path)
    assert (line["shard"], line["key"], line["samples"]) == (str(root / "shard-000001.tar"), bad, 1)
    names = [name for batch in left for name in batch.appearances]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("harm", ["missing", "empty", "other bytes"])
def test_a_damaged_shard_is_left_out_with_all_of_its_samples(root: Path, tmp_path: Path, harm: str) -> None:
    file = root / "shard-000002.tar"
    gone = {f"s{number}" for number in range(12, 18)}
    match harm:
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
        case _:
            file.write_bytes(bytes(file.stat().st_size))
    batches = read(data(root, tmp_path, max_bad_samples=OF_A_SHARD), 48)
    seen = Counter(key.partition("~")[0] for batch in batches for key in keys_of(batch))
    assert seen.keys() == {f"s{number}" for number in range(N_SAMPLES)} - gone
    assert seen.total() == 96
    (line,) = listed(tmp_path)
    assert (Path(line["shard"]).name, line["key"], line["samples"]) == (file.name, None, OF_A_SHARD)
    module = data(root, tmp_path, max_bad_samples=OF_A_SHARD - 1)
    with refused(DataError, file=tmp_path / LEFT_OUT_FILE, got="6 left out"):
        read(module, 1)


def test_one_more_than_may_be_left_out_stops_the_training_and_the_list_names_all(root: Path, tmp_path: Path) -> None:
    bad = {damage_sample(root, shard, shard) for shard in range(3)}
    with refused(DataError, file=tmp_path / LEFT_OUT_FILE, got="3 left out"):
        read(data(root, tmp_path, max_bad_samples=2), 48)
    assert {line["key"] for line in listed(tmp_path)} == bad
    with refused(DataError, file="shard-000000.tar"):
        read(data(root, tmp_path / "other"), 48)  # as ever, where none may be


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_reads_the_same_and_lists_nothing_twice(root: Path, tmp_path: Path, workers: int) -> None:
    for shard in range(2):
        damage_sample(root, shard, 3 - shard)
    (root / "shard-000003.tar").write_bytes(b"")
    settings = {"max_bad_samples": 8}
    whole = read(data(root, tmp_path / "a", **settings), 40)
    for step in (3, 12):
        rest = read(data(root, tmp_path / "b", step=step, num_workers=workers, **settings), 40 - 2 * step)
        assert same(whole[2 * step :], rest)
    ranks = [
        read(data(root, tmp_path / "b", rank=rank, ranks=2, num_workers=workers, **settings), 20) for rank in range(2)
    ]
    assert same(whole, [batch for pair in zip(*ranks, strict=True) for batch in pair])
    lines = [{name: line[name] for name in ("shard", "key")} for line in listed(tmp_path / "b")]
    assert len(lines) == 3
    assert all(line in lines for line in ({n: line[n] for n in ("shard", "key")} for line in listed(tmp_path / "a")))


def test_nothing_is_left_where_all_shards_are_damaged(root: Path, tmp_path: Path) -> None:
    for file in root.glob("*.tar"):
        file.write_bytes(b"")
    with refused(DataError):
        read(data(root, tmp_path, max_bad_samples=100), 1)
    with refused(DataError, file=tmp_path / LEFT_OUT_FILE):
        read(data(root, tmp_path, max_bad_samples=7), 1)
    assert all(line["samples"] == OF_A_SHARD for line in listed(tmp_path))


# -- reads that fail for a while -------------------------------------------------------------------


class Storage:
    """Opens files, unless it is time to fail: with this error, so many times in a row for each file of a name."""

    def __init__(self, ending: str, *, number: int, times: int) -> None:
        self.ending, self.number, self.times = ending, number, times
        self.failed: Counter[str] = Counter()
        self.open = os.open

    def __call__(self, file: Any, *args: Any, **more: Any) -> int:
        name = str(file)
        if name.endswith(self.ending) and self.failed[name] < self.times:
            self.failed[name] += 1
            raise OSError(self.number, os.strerror(self.number), name)
        return self.open(file, *args, **more)


PASSING = [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOENT]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", PASSING, ids=errno.errorcode.get)
def test_what_fails_for_a_while_is_read_all_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, workers: int
) -> None:
    whole = read(data(root), 24)
    monkeypatch.setattr(os, "open", Storage(".tar", number=number, times=QUICK.attempts - 1))
    assert same(whole, read(data(root, tmp_path, num_workers=workers, max_bad_samples=5), 24))
    assert not (tmp_path / LEFT_OUT_FILE).exists()


@pytest.mark.parametrize("most", [0, 100])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("number", PASSING[:3], ids=errno.errorcode.get)
def test_what_fails_for_longer_is_trouble_of_the_storage_and_no_damage(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, workers: int, most: int
) -> None:
    module = data(root, tmp_path, num_workers=workers, max_bad_samples=most)
    monkeypatch.setattr(os, "open", Storage("1.tar", number=number, times=10**6))
    with refused(TemporaryError, file="shard-000001.tar") as caught:
        read(module, 24)
    assert caught.value.exit_status == 75 and errno.errorcode[number] in str(caught.value)
    assert not (tmp_path / LEFT_OUT_FILE).exists()


@pytest.mark.parametrize("most", [0, 100])
def test_a_mount_that_is_gone_is_no_damage_and_a_shard_that_is_gone_is(root: Path, tmp_path: Path, most: int) -> None:
    module = data(root, tmp_path / "run", max_bad_samples=most)
    aside = root.rename(tmp_path / "aside")
    with refused(TemporaryError):
        read(module, 1)
    aside.rename(root)
    for file in root.glob("*.tar"):
        file.unlink()
    with refused(DataError):
        read(module, 1)


@pytest.mark.parametrize("most", [0, 100])
def test_what_may_not_be_read_is_for_a_person_and_never_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    module = data(root, tmp_path, max_bad_samples=most)
    monkeypatch.setattr(os, "open", Storage("0.tar", number=errno.EACCES, times=10**6))
    with refused(DataError, file="shard-000000.tar"):
        read(module, 24)
    assert not (tmp_path / LEFT_OUT_FILE).exists()


def test_read_errors_at_random_change_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    whole = read(data(root), 48)
    opened, failed = os.open, 0

    def flaky(file: Any, *args: Any, **more: Any) -> int:
        nonlocal failed
        if ".tar" in str(file) and draw.random() < 0.5:
            failed += 1
            raise OSError(draw.choice(PASSING), "passes", str(file))
        return opened(file, *args, **more)

    monkeypatch.setattr(os, "open", flaky)
    patient = RetryConfig(attempts=30, wait_s=0)
    assert same(whole, read(data(root, tmp_path, retry=patient, max_bad_samples=1), 48))
    assert failed > 5


def test_damage_is_what_a_digest_says_twice(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that garbles a file once: the second read is whole."""
    whole = read(data(root), 24)
    garbled = tmp_path / "garbled"
    garbled.write_bytes(bytes(100))
    opened, met = os.open, set[str]()

    def garbling(file: Any, *args: Any, **more: Any) -> int:
        if str(file).endswith(".tar") and str(file) not in met:
            met.add(str(file))
            file = garbled
        return opened(file, *args, **more)

    monkeypatch.setattr(os, "open", garbling)
    assert same(whole, read(data(root, tmp_path), 24))
    assert len(met) == 4


def test_a_manifest_is_read_again_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", Storage("manifest.json", number=errno.EIO, times=QUICK.attempts - 1))
    data(root)
    monkeypatch.setattr(os, "open", Storage("manifest.json", number=errno.EIO, times=10**6))
    with refused(TemporaryError, file="manifest.json"):
        data(root)


def test_data_that_a_run_has_read_before_may_be_gone_for_a_while(root: Path, tmp_path: Path) -> None:
    aside = root.rename(tmp_path / "aside")
    config = DataConfig(kind="video", root=str(root), num_workers=0, retry=QUICK)
    with refused(DataError, file=root):
        TokenDataModule(config, LAYOUT).setup()
    with refused(TemporaryError, file=root):
        TokenDataModule(config, LAYOUT, was_there=True).setup()
    aside.rename(root)
    TokenDataModule(config, LAYOUT, was_there=True).setup()


def test_waits_end_before_a_worker_is_taken_for_one_that_does_not_answer() -> None:
    long = RetryConfig(attempts=40, wait_s=10, longest_wait_s=600)
    for timeout_s in (1, 60, 10**6):
        patience = DataConfig(retry=long, timeout_s=timeout_s).patience
        assert patience.attempts == 40 and patience.waits_s < timeout_s
    assert DataConfig().patience == RetryConfig()


# -- steps that are left out -----------------------------------------------------------------------


def steps(module: TokenDataModule, n: int) -> list[list[PackedBatch]]:
    batches = read(module, 2 * n)
    return [batches[2 * step : 2 * step + 2] for step in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["video", "joint"])
def test_the_order_is_as_if_skipped_steps_were_not_there(root: Path, workers: int, kind: str) -> None:
    settings: dict[str, Any] = {"kind": kind, "root": "synthetic" if kind == "joint" else str(root)}
    whole = steps(data(**settings), 20)
    kept = [batches for step, batches in enumerate(whole) if step not in (0, 4, 5, 6, 11)]
    skip = [11, "4-6", 0, 5]
    left = steps(data(**settings, skip_steps=skip, num_workers=workers), 15)
    assert all(same(a, b) for a, b in zip(kept, left, strict=True))
    for step in (1, 3, 9):
        rest = steps(data(**settings, skip_steps=skip, step=step, num_workers=workers), 15 - step)
        assert all(same(a, b) for a, b in zip(kept[step:], rest, strict=True))
    ranks = [read(data(**settings, skip_steps=skip, rank=rank, ranks=2), 15) for rank in range(2)]
    assert all(same(step, [a, b]) for step, a, b in zip(kept, *ranks, strict=True))


@pytest.mark.parametrize(
    ("begun", "now", "step", "goes_on"),
    [
        ([], [5], 5, True),  # ahead: the next step is 5
        ([], [5], 6, False),  # it was trained on
        ([], ["100-200"], 50, True),
        ([3], [3, 50], 10, True),
        ([3], [], 10, False),
        ([3], [], 2, True),
        ([3], [3], 3, True),
        (["3-4"], [3, 4], 10, True),
        (["3-4"], [3], 3, True),  # neither was come to
        (["3-4"], [3], 4, False),
    ],
)
def test_steps_may_be_skipped_that_lie_ahead(
    root: Path, begun: list[Any], now: list[Any], step: int, goes_on: bool
) -> None:
    saved = data(root, skip_steps=begun, step=step).state_dict()
    module = data(root, skip_steps=now)
    module.trainer.training = True
    if goes_on:
        module.load_state_dict(saved)
    else:
        with refused(CheckpointError, where="data.skip_steps"):
            module.load_state_dict(saved)


@pytest.mark.parametrize("entry", ["x", "5-3", -1, True, 1.5, "1-", None, 10**15])
def test_what_is_no_step_is_refused(entry: Any) -> None:
    with refused(ConfigError, where="data.skip_steps[1]"):
        DataConfig(skip_steps=[1, entry])


# -- shards that are held out ----------------------------------------------------------------------


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.5, 2), (0.9, 3)])
def test_shards_held_out_are_validated_with_and_never_trained_on(root: Path, share: float, held: int) -> None:
    settings: dict[str, Any] = {"val_share": share, "video": SourceConfig(batch_size=2, frames=5, streams=1)}
    module = data(root, **settings)
    validated = {key for batch in module.test_dataloader() for key in keys_of(batch)}
    trained = {key for batch in read(module, 60) for key in keys_of(batch)}
    assert len(validated) == held * OF_A_SHARD and len(trained) == N_SAMPLES - len(validated)
    assert not validated & trained
    alone = data(root, **settings)
    assert alone.identity() == module.identity()
    assert alone.identity()["val_share"] == share
    module.setup("validate")


def test_a_validation_alone_opens_the_shards_that_are_held_out(root: Path) -> None:
    held = {key for batch in data(root, val_share=0.25, video=ONE_STREAM).test_dataloader() for key in keys_of(batch)}
    module = TokenDataModule(DataConfig(kind="video", root=str(root), val_share=0.25, num_workers=0), LAYOUT)
    module.setup("validate")
    assert {key for batch in module.test_dataloader() for key in keys_of(batch)} == held
    assert module.train_manifests() == {}


def test_a_single_shard_is_not_held_out(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "d", tokenizer="t", codebook_size=240, strides=(4, 8, 8)) as writer:
        writer.add(sample(1))
    with refused(ConfigError, where="data.val_share"):
        data(tmp_path / "d", val_share=0.1, video=ONE_STREAM)


def test_another_share_is_another_run(root: Path) -> None:
    saved = data(root, val_share=0.25, step=3, video=ONE_STREAM).state_dict()
    for share in (None, 0.5):
        module = data(root, val_share=share, video=ONE_STREAM)
        module.trainer.training = True
        with refused(CheckpointError, where="data.val_share"):
            module.load_state_dict(saved)


def test_read_and_left_out_and_held_out_are_all_samples(root: Path, tmp_path: Path) -> None:
    module = data(root, tmp_path, val_share=0.25, max_bad_samples=100, video=ONE_STREAM)
    held = {key for batch in module.test_dataloader() for key in keys_of(batch)}
    trained = sorted({f"s{number}" for number in range(N_SAMPLES)} - held, key=lambda key: int(key[1:]))
    shard, place = divmod(int(trained[0][1:]), OF_A_SHARD)
    damage_sample(root, shard, place)
    (root / f"shard-{int(trained[-1][1:]) // OF_A_SHARD:06d}.tar").unlink()
    names = {name for batch in read(module, 30) for name in batch.appearances}
    one_epoch = {name.split("/")[2] for name in names if name.split("/")[1] == "0" and "~" not in name}
    left_out = sum(line["samples"] for line in listed(tmp_path))
    assert (len(one_epoch), left_out, len(held)) == (11, 7, 6)
    assert len(one_epoch) + left_out + len(held) == Manifest.read(root).n_samples


# -- the account -----------------------------------------------------------------------------------


def entry(number: int) -> LeftOut:
    return LeftOut(shard=f"d/shard-{number % 3}.tar", sha256="a", place=number, key=f"s{number}", samples=1, reason="x")


def _note_all(folder: Path, rank: int) -> None:
    account = Account(folder, 100, QUICK)
    for number in range(20):
        account.note([entry((number + rank) % 20)], step=number)


def test_ranks_that_meet_the_same_at_once_write_it_once(tmp_path: Path) -> None:
    ranks = [multiprocessing.get_context("fork").Process(target=_note_all, args=(tmp_path, rank)) for rank in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0
    assert sorted(line["key"] for line in listed(tmp_path)) == sorted(f"s{number}" for number in range(20))
    assert Account(tmp_path, 100, QUICK).total() == 20


def test_a_line_that_a_kill_has_torn_is_written_anew(tmp_path: Path) -> None:
    Account(tmp_path, 100, QUICK).note([entry(0), entry(1)], step=3)
    file = tmp_path / LEFT_OUT_FILE
    file.write_bytes(file.read_bytes()[:-10])
    account = Account(tmp_path, 100, QUICK)
    assert account.total() == 1
    account.note([entry(0), entry(1)], step=5)
    assert [(line["key"], line["step"]) for line in listed(tmp_path)] == [("s0", 3), ("s1", 5)]
    assert account.total() == 2


def test_a_shard_counts_once_with_its_samples(tmp_path: Path) -> None:
    account = Account(tmp_path, 100, QUICK)
    account.note([entry(0), entry(3), entry(1)], step=0)
    whole = replace(entry(0), place=None, key=None, samples=6)
    for _ in range(2):
        account.note([whole, replace(whole, shard="elsewhere/shard-0.tar")], step=1)
    assert account.total() == 7 and len(listed(tmp_path)) == 4


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / LEFT_OUT_FILE).write_text('{"step": 1}\n')
    with refused(DataError, file=LEFT_OUT_FILE):
        Account(tmp_path, 100, QUICK).check()
    (tmp_path / LEFT_OUT_FILE).unlink()
    (tmp_path / LEFT_OUT_FILE).symlink_to(tmp_path / "elsewhere")
    with refused(DataError, file=LEFT_OUT_FILE):
        Account(tmp_path, 100, QUICK).note([entry(0)], step=0)
    assert not (tmp_path / "elsewhere").exists()


def test_a_plain_trainer_notes_what_it_trains_on_and_nothing_that_is_read_ahead(root: Path, tmp_path: Path) -> None:
    damage_sample(root, 0, 0)
    (root / "shard-000002.tar").unlink()

    class Learner(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen: list[PackedBatch] = []

        def training_step(self, batch: PackedBatch, batch_idx: int) -> torch.Tensor:
            self.seen.append(batch)
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = data(root, max_bad_samples=7, num_workers=1)
    for steps in (1, 9):
        learner = Learner()
        trainer = Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / str(steps),
        )
        trainer.fit(learner, module)
        names = {(Path(one.shard).name, one.place) for batch in learner.seen for one in batch.left_out}
        file = tmp_path / str(steps) / LEFT_OUT_FILE
        lines = listed(file.parent) if file.exists() else []
        assert {(Path(line["shard"]).name, line["place"]) for line in lines} == names
