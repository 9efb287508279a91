from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from itertools import groupby
from pathlib import Path

import pytest
import torch

from lumos_pl.checkpoints.complete import (
    LAST,
    adopt,
    checkpoint_name,
    complete,
    kept_checkpoints,
    newest_complete,
    remove,
    remove_leftovers,
    step_of,
)
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery import own_files
from lumos_pl.machinery.own_files import RECORD, name_of, partial_of
from tests.refusals import refused


def save(folder: Path, step: int, content: bytes = b"weights", *, sharded: bool = False) -> Path:
    final = folder / checkpoint_name(step)
    partial = partial_of(final)
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
    assert not list(tmp_path.glob("*partial*")) and not list(tmp_path.glob(".*.partial"))
    check_digest(first)
    check_digest(tmp_path / "last.ckpt")
    assert newest_complete(tmp_path) == (last, [])


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, own_files.rename_new

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(name_of(path) or path.name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> bool:
        events.append(f"-> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(own_files, "rename_new", noted_rename)
    name, folder = save(tmp_path, 1).name, tmp_path.name
    digest = [f"{name}.sha256", RECORD, f"-> {RECORD}", f"-> {name}.sha256", folder]
    assert [event for event, _ in groupby(events)] == [name, *digest, f"-> {name}", folder, f"-> {LAST}", folder]


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


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {RECORD}


def test_leftovers_go_and_all_else_stays(tmp_path: Path) -> None:
    kept = save(tmp_path, 1)
    gone = save(tmp_path, 4)
    gone.unlink()
    left = [partial_of(tmp_path / name) for name in (checkpoint_name(2), checkpoint_name(2) + ".sha256", LAST)]
    partial_of(tmp_path / RECORD).write_bytes(b"half")
    left[0].write_bytes(b"half")
    left[1].write_bytes(b"half")
    left[2].symlink_to(kept.name)
    folder = partial_of(tmp_path / checkpoint_name(3))
    folder.mkdir()
    (folder / "__0_0.distcp").write_bytes(b"half")
    theirs = [f"{checkpoint_name(2)}.partial", "x.partial", f"{checkpoint_name(2)}.sha256", "step-9.ckpt.sha256"]
    theirs.append(partial_of(tmp_path / "step-best.ckpt").name)
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {kept.name, f"{kept.name}.sha256", "last.ckpt", *theirs}


@pytest.mark.parametrize(
    "name",
    [
        "step-best.ckpt",
        "step-00000009-good.ckpt",
        "step-9.ckpt",
        "step-0000000009.ckpt",
        "step-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0669.ckpt",
        "step-00000009.ckpt~",
        "step-00000009.ckpt\n",
        "Step-00000009.ckpt",
    ],
)
def test_other_names_are_no_checkpoints_of_the_run(name: str, tmp_path: Path) -> None:
    only = save(tmp_path, 1)
    copy = tmp_path / name
    copy.write_bytes(only.read_bytes())
    digest = (tmp_path / f"{only.name}.sha256").read_text()
    (tmp_path / f"{name}.sha256").write_text(digest.replace(only.name, name))
    assert kept_checkpoints(tmp_path) == [only]
    assert newest_complete(tmp_path) == (only, [])
    assert not remove(copy) and copy.exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "fifo"])
def test_what_is_no_file_is_no_checkpoint(kind: str, tmp_path: Path) -> None:
    only, other = save(tmp_path, 1), tmp_path / checkpoint_name(9)
    match kind:
        case "link":
            other.symlink_to(only.name)
        case "dangling link":
            other.symlink_to("absent")
        case "folder":
            other.mkdir()
        case "fifo":
            os.mkfifo(other)
    assert kept_checkpoints(tmp_path) == [only]
    newest, passed_over = newest_complete(tmp_path)
    assert newest == only and other.name in "".join(passed_over)  # a resume goes back, and says so
    assert not remove(other) and os.path.lexists(other)


def test_later_steps_have_longer_names(tmp_path: Path) -> None:
    steps = [10**8, 99_999_999, 10**9]
    for step in steps:
        save(tmp_path, step)
    assert [step_of(path) for path in kept_checkpoints(tmp_path)] == sorted(steps)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("kind", ["file", "digested", "link", "folder"])
def test_anothers_file_of_that_name_is_kept(kind: str, sharded: bool, tmp_path: Path) -> None:
    theirs, target = tmp_path / checkpoint_name(2), tmp_path / "target"
    target.write_text("target")
    if kind == "link":
        theirs.symlink_to(target)
    elif kind == "folder":
        theirs.mkdir()
        (theirs / "notes").write_text("theirs")
    else:
        theirs.write_text("theirs")
    if kind == "digested":
        digest = hashlib.sha256(b"theirs").hexdigest()
        (tmp_path / f"{theirs.name}.sha256").write_text(f"{digest}  {theirs.name}\n")
    ours = save(tmp_path, 2, sharded=sharded)
    check_digest(ours)
    kept = tmp_path / "step-00000002.kept-1.ckpt"
    assert (kept / "notes" if kind == "folder" else kept).read_text() == ("target" if kind == "link" else "theirs")
    assert target.read_text() == "target"
    assert (tmp_path / "step-00000002.ckpt.kept-1.sha256").exists() == (kind == "digested")


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_called_last_is_replaced_if_it_is_our_link_alone(kind: str, tmp_path: Path) -> None:
    last, target = tmp_path / LAST, tmp_path / "target"
    target.write_text("target")
    match kind:
        case "file":
            last.write_text("theirs")
        case "folder":
            last.mkdir()
        case "link":
            last.symlink_to("target")
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert last.resolve() == newest and target.read_text() == "target"
    assert os.path.lexists(tmp_path / "last.kept-1.ckpt") and not os.path.lexists(tmp_path / "last.kept-2.ckpt")


@pytest.mark.parametrize("sharded", [False, True])
def test_a_digest_planted_as_a_link_leaves_its_target(sharded: bool, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("target")
    (tmp_path / f"{checkpoint_name(1)}.sha256").symlink_to("target")
    check_digest(save(tmp_path, 1, sharded=sharded))
    assert (tmp_path / "target").read_text() == "target"


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


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("change", ["content", "replaced", "more"])
def test_what_was_changed_is_not_removed(change: str, sharded: bool, tmp_path: Path) -> None:
    file = save(tmp_path, 1, sharded=sharded)
    part = file / "rank0" if sharded else file
    match change:
        case "content":
            part.write_bytes(b"Weights")
        case "replaced":
            part.unlink()
            part.symlink_to("rank1")
        case "more":
            (file / "notes" if sharded else tmp_path / f"{file.name}.sha256").write_text("theirs")
    assert not remove(file) and os.path.lexists(part)


def test_a_copy_with_a_digest_is_not_the_runs(tmp_path: Path) -> None:
    file = save(tmp_path, 5)
    copy = tmp_path / checkpoint_name(2)
    copy.write_bytes(file.read_bytes())
    digest = (tmp_path / f"{file.name}.sha256").read_text()
    (tmp_path / f"{copy.name}.sha256").write_text(digest.replace(file.name, copy.name))
    assert not remove(copy) and copy.exists()


def test_a_folder_of_before_there_was_a_record_is_adopted(tmp_path: Path) -> None:
    file = save(tmp_path, 1)
    (tmp_path / RECORD).unlink()
    adopt(tmp_path)
    assert remove(file) and names(tmp_path) == {"last.ckpt"}
