from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_modules import pixel_data
from data_modules.media.decode import ClipRequest, DecodedClip
from data_modules.pixel_data import PixelDataConfig, PixelDataModule
from data_modules.stream.loader import TokenLoader
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.tokenizers.reconstruction import PixelBatch
from tests.data_modules.fake_trainer import fake_trainer
from tests.data_modules.tokenizing.media_fakes import WrittenReader, write_clip
from tests.refusals import refused

N = 10


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixel_data, "MediaReader", WrittenReader)


def write_list(folder: Path, n: int = N) -> Path:
    """Clips of 6 frames, 0.mp4 to n - 1."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        write_clip(folder / f"{number}.mp4", number, 6)
    listed = folder / "captions.csv"
    listed.write_text("path,caption\n" + "".join(f"{number}.mp4,a clip\n" for number in range(n)))
    return listed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_list(tmp_path / "data")


def data(root: Path, *, step: int = 0, rank: int = 0, ranks: int = 1, seed: int = 1, **changes: Any) -> PixelDataModule:
    """A data module as a trainer of `ranks` ranks sees it at an optimizer step of two micro-batches."""
    settings = {"root": str(root), "size": "16x8", "frames": 5, "batch_size": 3, "num_workers": 0, **changes}
    module = PixelDataModule(PixelDataConfig(**settings), (4, 8, 8), seed=seed)
    module.setup("fit")
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks)
    return module


def train_batches(root: Path, n: int, **settings: Any) -> list[PixelBatch]:
    """The first batches, as they come to the training."""
    module = data(root, **settings)
    return [module.on_before_batch_transfer(batch, 0) for batch in islice(module.train_dataloader(), n)]


def names(batches: list[PixelBatch]) -> list[str]:
    return [name for batch in batches for name in batch.names]


def pixels(number: int) -> Tensor:
    request = ClipRequest(sizes=((16, 8),), fps=8, max_frames=5)
    path = Path(f"{number}.mp4")
    write_clip(path, number, 6)
    return torch.from_numpy(WrittenReader().read(path, request).frames)


def test_batches_hold_the_frames_of_their_clips(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for batch in train_batches(root, 5):
        assert batch.frames.shape == (3, 5, 8, 16, 3) and batch.frames.dtype == torch.uint8
        for name, frames in zip(batch.names, batch.frames, strict=True):
            assert torch.equal(frames, pixels(int(Path(name).stem)))


def test_every_epoch_has_each_clip_once_in_its_own_order(root: Path) -> None:
    order = names(train_batches(root, 10))
    epochs = [order[start : start + N] for start in (0, N, 2 * N)]
    assert all(sorted(epoch) == [f"{i}.mp4" for i in range(N)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert names(train_batches(root, 10, seed=2)) != order


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_goes_on_with_the_next_batch(workers: int, root: Path) -> None:
    whole = train_batches(root, 10)
    resumed = train_batches(root, 4, step=3, num_workers=workers)
    assert names(resumed) == names(whole[6:])
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(resumed, whole[6:], strict=True))


def test_a_worker_that_was_killed_is_named_with_the_last_clip(root: Path) -> None:
    loader = data(root, num_workers=1).train_dataloader()
    assert isinstance(loader, TokenLoader)
    before = multiprocessing.active_children()  # of other tests
    batches = iter(loader)
    last = next(batches).names[-1]
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    worker.kill()
    worker.join()
    said = RuntimeError(f"DataLoader worker (pid {worker.pid}) is killed by signal: Killed.")
    full = OSError(errno.ENOSPC, "No space left on device")  # whatever else came of it
    for error in said, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), full:
        death = loader.worker_death(error)
        assert death is not None and death.where == f"worker 0, after sample {last}"
        assert death.got == f"pid {worker.pid}, SIGKILL"


def test_workers_end_at_once_with_an_iteration_that_was_forgotten(root: Path) -> None:
    """As with a failure, whose traceback holds it in a circle: parts of it may be gone before the whole is ended."""
    before = multiprocessing.active_children()

    held: list[object] = [batches := iter(data(root, num_workers=1).train_dataloader())]
    next(batches)
    held.append(held)
    (worker,) = (child for child in multiprocessing.active_children() if child not in before)
    del held, batches
    gc.collect()
    assert worker.exitcode is not None


def test_ranks_share_the_batches(root: Path) -> None:
    whole = train_batches(root, 10)
    for rank in 0, 1:
        shared = train_batches(root, 4, rank=rank, ranks=2, step=0, num_workers=2)
        assert [batch.names for batch in shared] == [batch.names for batch in whole[rank:8:2]]
    later = train_batches(root, 1, rank=1, ranks=2, step=1)
    assert later[0].names == whole[5].names


def val_batches(root: Path, **settings: Any) -> list[PixelBatch]:
    return list(data(root, val_root=str(root), **settings).val_dataloader())


def numbered(*numbers: int) -> list[str]:
    return [f"{number}.mp4" for number in numbers]


def test_validation_is_the_first_clips_of_the_list(root: Path) -> None:
    loader: Any = data(root, val_root=str(root)).val_dataloader()
    for _ in range(2):
        batches: list[PixelBatch] = list(loader)
        assert names(batches) == numbered(*range(N))
        assert [len(batch.names) for batch in batches] == [3, 3, 3, 1]
    assert names(val_batches(root, val_batches=2)) == numbered(*range(6))
    assert names(val_batches(root, rank=0, ranks=2)) == numbered(0, 1, 2, 6, 7, 8)
    assert names(val_batches(root, rank=1, ranks=2)) == numbered(3, 4, 5, 9)
    assert all(val_batches(root, rank=rank, ranks=5) for rank in range(5))  # or some would wait for others
    assert list(data(root).val_dataloader()) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_clip_is_named_once_and_the_next_takes_its_place(
    workers: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_list(tmp_path / "data", n=200)
    expected = names(train_batches(root, 140))
    bad = expected[7]
    (root.parent / bad).write_text("damaged")
    write_clip(root.parent / expected[20], 0, 4)
    with caplog.at_level(logging.WARNING):
        got = train_batches(root, 140, num_workers=workers)  # two epochs
    for place in (7, 20, *(place for place in range(200, 420) if expected[place] in (bad, expected[20]))):
        expected[place] = expected[place + 1]
    assert names(got) == expected
    assert {batch.frames.shape for batch in got} == {(3, 5, 8, 16, 3)}
    lines = sorted(record.getMessage() for record in caplog.records)
    assert len(lines) == 2
    assert any(line.startswith(f"left out: {bad}: not a video or image") for line in lines)
    assert any(line.endswith("too few frames | got 4, expected 5") for line in lines)


def test_a_bad_clip_is_tried_once_and_named_once_whoever_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_list(tmp_path / "data", n=100)
    (root.parent / "3.mp4").write_text("damaged")
    tried = []

    class Counting(WrittenReader):
        def read(self, path: Path, request: ClipRequest) -> DecodedClip:
            tried.append(path.name)
            return super().read(path, request)

    monkeypatch.setattr(pixel_data, "MediaReader", Counting)
    train_batches(root, 120)
    assert tried.count("3.mp4") == 1 and len(tried) == 361
    module, found_again = data(root), PixelBatch(torch.zeros(1), ["4.mp4"], ["3.mp4: damaged"])
    caplog.clear()
    for _ in range(2):
        module.on_before_batch_transfer(found_again, 0)
    assert [record.getMessage() for record in caplog.records] == ["left out: 3.mp4: damaged"]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_clips_stop_the_run(workers: int, tmp_path: Path) -> None:
    root = write_list(tmp_path / "data", n=200)
    for number in range(0, 200, 60):  # 4 of 200
        (root.parent / f"{number}.mp4").unlink()
    with refused(DataError, file=root, expected="at most 2") as caught:
        train_batches(root, 140, num_workers=workers)
    assert str(caught.value.got).startswith("3 of 200, ")


def test_a_list_of_nothing_usable_stops_at_once(root: Path) -> None:
    for path in root.parent.glob("*.mp4"):
        path.unlink()
    with refused(DataError, file=root) as caught:
        train_batches(root, 1)
    assert str(caught.value.got).startswith("1 of 10, ")


def test_bad_validation_clips_count_by_themselves(tmp_path: Path) -> None:
    root, val = write_list(tmp_path / "data", n=100), write_list(tmp_path / "val", n=10)
    (val.parent / "1.mp4").unlink()
    module = data(root, val_root=str(val))
    with refused(DataError, file=val):
        list(module.val_dataloader())
    batch = PixelBatch(torch.zeros(1), ["a"], ["a: damaged"])
    assert module.on_before_batch_transfer(batch, 0) is batch
    module.trainer.validating = True  # type: ignore[union-attr]
    with refused(DataError, file=val, got="1 of 10, such as a: damaged"):
        module.on_before_batch_transfer(batch, 0)


def test_a_list_says_where_a_clip_starts(root: Path) -> None:
    root.write_text("path,caption,start\n0.mp4,a clip,\n0.mp4,a clip,3\n")
    batch = train_batches(root, 1, batch_size=2)[0]
    assert names([batch]) == ["0.mp4", "0.mp4"] and not torch.equal(batch.frames[0], batch.frames[1])


def test_the_identity_is_of_all_that_makes_the_stream(root: Path, tmp_path: Path) -> None:
    before = data(root).identity()
    assert data(root, num_workers=2, val_batches=1).identity() == before
    for change in {"frames": 6}, {"fps": 4}, {"batch_size": 2}, {"size": "8x8"}:
        assert data(root, **change).identity() != before
    write_clip(root.parent / "3.mp4", 10**6, 6)
    assert data(root).identity() != before
    assert data(write_list(tmp_path / "data", n=N + 1)).identity() != before


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"size": "256p"}, "data.size"),
        ({"size": "12x8"}, "data.size"),
        ({"size": "big"}, "data.size"),
        ({"frames": 0}, "data.frames"),
        ({"fps": 0}, "data.fps"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"num_workers": -1}, "data.num_workers"),
        ({"val_batches": 0}, "data.val_batches"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], where: str, root: Path) -> None:
    with refused(ConfigError, where=where):
        data(root, **wrong)


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused(ConfigError, where="data.root"):
        PixelDataModule(PixelDataConfig(), (4, 8, 8)).setup()
    with refused(DataError, file="nowhere.csv"):
        data(tmp_path / "nowhere.csv")


def test_clips_that_cannot_be_read_for_a_while_are_not_left_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = names(train_batches(root, 10))
    failed: Counter[str] = Counter()
    patience = RetryConfig(attempts=3, wait_s=0)
    times = 2

    class Failing(WrittenReader):
        def read(self, path: Path, request: ClipRequest) -> DecodedClip:
            if failed[path.name] < times:
                failed[path.name] += 1
                raise DataError("cannot be read", file=path) from OSError(errno.EIO, "Input/output error")
            return super().read(path, request)

    monkeypatch.setattr(pixel_data, "MediaReader", Failing)
    assert names(train_batches(root, 10, retry=patience)) == whole and len(failed) == N
    times = 10**6
    with refused(TemporaryError):
        train_batches(root, 1, retry=patience)


def test_a_folder_needs_no_captions(root: Path) -> None:
    root.unlink()
    assert data(root.parent, batch_size=2).identity()["clips"]
    assert set(names(train_batches(root.parent, 2, batch_size=2))) <= set(numbered(*range(N)))
    (root.parent / "0.txt").write_text("one has one")
    assert set(names(train_batches(root.parent, 2, batch_size=2))) <= set(numbered(*range(N)))


def test_a_folder_of_clips_that_is_gone_is_out_of_reach(tmp_path: Path) -> None:
    root = write_list(tmp_path / "data", n=200)
    module = data(root, retry=RetryConfig(attempts=2, wait_s=0))
    root.parent.rename(tmp_path / "aside")
    with refused(TemporaryError):
        next(iter(module.train_dataloader()))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_steps_are_not_in_the_order(root: Path, workers: int) -> None:
    whole = train_batches(root, 12)
    kept = [name for step in (0, 3, 4, 5) for name in names(whole[2 * step : 2 * step + 2])]
    assert names(train_batches(root, 8, skip_steps=["1-2"], num_workers=workers)) == kept
