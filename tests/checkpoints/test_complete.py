from __future__ import annotations

import os
import pickle
import zipfile
from itertools import groupby
from pathlib import Path

import pytest
import torch

from lumos_pl.checkpoints.complete import (
    LAST,
    PARTIAL,
    checkpoint_name,
    complete,
    kept_checkpoints,
    newest_complete,
    remove,
    remove_leftovers,
)
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.errors import CheckpointError
from tests.refusals import refused


def save(folder: Path, step: int, content: bytes = b"weights", *, sharded: bool = False) -> Path:
    final = folder / checkpoint_name(step)
    partial = final.with_name(final.name + PARTIAL)
    if sharded:
        partial.mkdir()
        (partial / "rank0").write_bytes(content)
        (partial / "rank1").write_bytes(content)
    else:
        partial.write_bytes(content)
    complete(partial, final)
    return final


@pytest.mark.parametrize("sharded", [False, True])
def test_complete_leaves_a_digested_checkpoint_and_the_link(sharded: bool, tmp_path: Path) -> None:
    first = save(tmp_path, 1, sharded=sharded)
    last = save(tmp_path, 2, sharded=sharded)
    assert kept_checkpoints(tmp_path) == [first, last]
    assert (tmp_path / "last.ckpt").resolve() == last
    assert not list(tmp_path.glob("*" + PARTIAL))
    check_digest(first)
    check_digest(tmp_path / "last.ckpt")
    assert newest_complete(tmp_path) == (last, [])


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        events.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_rename)
    name, folder = save(tmp_path, 1).name, tmp_path.name
    digest = [f"{name}.sha256{PARTIAL}", f"-> {name}.sha256", folder]
    assert [event for event, _ in groupby(events)] == [
        name + PARTIAL,
        *digest,
        f"-> {name}",
        folder,
        f"-> {LAST}",
        folder,
    ]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    first = save(tmp_path, 1, b"old", sharded=True)
    assert save(tmp_path, 1, b"new", sharded=True) == first
    assert (first / "rank0").read_bytes() == b"new"
    check_digest(first)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("damage", ["flip", "cut", "grow"])
def test_damage_is_found_and_passed_over(damage: str, sharded: bool, tmp_path: Path) -> None:
    first, last = save(tmp_path, 1, sharded=sharded), save(tmp_path, 2, sharded=sharded)
    file = last / "rank1" if sharded else last
    content = file.read_bytes()
    file.write_bytes({"flip": b"Weights", "cut": content[:-1], "grow": content + b"x"}[damage])
    with refused(CheckpointError, file="step-00000002.ckpt", got="another sha256 than was written"):
        check_digest(last)
    newest, passed_over = newest_complete(tmp_path)
    assert newest == first
    assert len(passed_over) == 1 and str(last) in passed_over[0]


def test_a_sharded_checkpoint_with_a_file_too_many_or_few_is_damaged(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, sharded=True)
    (folder / "rank2").write_bytes(b"x")
    with refused(CheckpointError, file="step-00000001.ckpt", where="a file too many"):
        check_digest(folder)
    (folder / "rank2").unlink()
    (folder / "rank0").unlink()
    with refused(CheckpointError, file="step-00000001.ckpt", where="step-00000001.ckpt/rank0"):
        check_digest(folder)


def test_without_any_complete_checkpoint_it_says_why(tmp_path: Path) -> None:
    with refused(CheckpointError, got="none"):
        newest_complete(tmp_path)
    (tmp_path / checkpoint_name(3)).write_bytes(b"torn")
    with refused(CheckpointError):
        newest_complete(tmp_path)


def test_leftovers_go_and_checkpoints_stay(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)
    (tmp_path / f"{checkpoint_name(2)}{PARTIAL}").write_bytes(b"half")
    (tmp_path / f"{checkpoint_name(3)}{PARTIAL}").mkdir()
    (tmp_path / f"{checkpoint_name(3)}{PARTIAL}" / "rank0").write_bytes(b"half")
    (tmp_path / f"{checkpoint_name(2)}.sha256").write_text("of a checkpoint that never came")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, f"{kept.name}.sha256", "last.ckpt"}


def test_a_link_left_half_made_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    kept = save(tmp_path, 1, sharded=True)
    link = tmp_path / (LAST + PARTIAL)
    link.symlink_to(kept.name)
    last = save(tmp_path, 2)
    assert (tmp_path / LAST).resolve() == last
    link.symlink_to(kept.name)
    remove_leftovers(tmp_path)
    assert not link.is_symlink()
    check_digest(kept)


@pytest.mark.parametrize("sharded", [False, True])
def test_removing_takes_the_digest_along(sharded: bool, tmp_path: Path) -> None:
    first = save(tmp_path, 1, sharded=sharded)
    save(tmp_path, 2, sharded=sharded)
    remove(first)
    assert not list(tmp_path.glob(f"{first.name}*"))


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_checkpoint_is_refused_by_name_and_not_executed(legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "evil.ckpt"
    if legacy:
        file.write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    else:
        torch.save({"state_dict": Evil(tmp_path / "executed")}, file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    assert "evil.ckpt" in str(caught.value) and "\n" not in str(caught.value)
    assert legacy or "posix.mkdir" in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch's advice how to execute it all the same
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04torn"])
def test_a_file_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.ckpt"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_pickle_is_one_line(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "good.ckpt")
    with zipfile.ZipFile(tmp_path / "good.ckpt") as good, zipfile.ZipFile(tmp_path / "x.ckpt", "w") as bad:
        for name in good.namelist():
            bad.writestr(name, b"\x80\x02u." if name.endswith("data.pkl") else good.read(name))  # an IndexError
    with refused(CheckpointError, file="x.ckpt", got="pop from empty list"):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "x.ckpt")
    with refused(CheckpointError, file="x.ckpt"):
        read_checkpoint(tmp_path / "x.ckpt")
