"""Whose a file is: another's is never replaced, removed or written through."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from lumos_pl.errors import DataError, FileError
from lumos_pl.machinery import own_files
from lumos_pl.machinery.atomic_file import TakenError, make_folder, replace_regular, write_atomically, write_new
from lumos_pl.machinery.own_files import (
    RECORD,
    append,
    is_own,
    keep_aside,
    keep_copy,
    partial_of,
    remove_own,
    remove_partials,
    rename_new,
)
from tests.refusals import refused


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {RECORD}


def test_what_was_written_here_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_atomically(file, "old")
    write_atomically(file, "new")
    assert file.read_text() == "new"
    assert names(tmp_path) == {"result.json"}


def test_anothers_file_is_kept_beside(tmp_path: Path) -> None:
    file = tmp_path / "sheet.png"
    file.write_text("mine")
    write_atomically(file, "one")
    write_atomically(file, "two")
    assert file.read_text() == "two"
    assert (tmp_path / "sheet.kept-1.png").read_text() == "mine"
    assert names(tmp_path) == {"sheet.png", "sheet.kept-1.png"}


def test_what_was_changed_is_no_longer_own(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_atomically(file, "a: 1")
    file.write_text("a: 2  # mine")
    assert not is_own(file)
    write_atomically(file, "a: 3")
    assert (tmp_path / "config.kept-1.yaml").read_text() == "a: 2  # mine"


def test_a_file_of_the_same_content_stays_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("same")
    before = file.stat().st_ino
    write_atomically(file, "same")
    assert file.stat().st_ino == before
    assert names(tmp_path) == {"notes.txt"}


@pytest.mark.parametrize("target", ["there", "absent"])
def test_a_link_is_moved_and_its_target_untouched(tmp_path: Path, target: str) -> None:
    (tmp_path / "there").write_text("theirs")
    link = tmp_path / "out.json"
    link.symlink_to(target)
    write_atomically(link, "ours")
    assert link.read_text() == "ours" and not link.is_symlink()
    assert (tmp_path / "there").read_text() == "theirs"
    assert (tmp_path / "out.kept-1.json").readlink() == Path(target)
    assert not (tmp_path / "absent").exists()


def test_a_folder_of_that_name_is_kept_whole(tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    (tmp_path / "out.json" / "a").write_text("theirs")
    write_atomically(tmp_path / "out.json", "ours")
    assert (tmp_path / "out.kept-1.json" / "a").read_text() == "theirs"


def test_a_hard_link_keeps_its_content(tmp_path: Path) -> None:
    file, other = tmp_path / "log", tmp_path / "other"
    append(file, b"one\n")
    os.link(file, other)
    append(file, b"two\n")
    assert (file.read_bytes(), other.read_bytes()) == (b"one\ntwo\n", b"one\n")


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_nothing_is_appended_to_another_kind(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "log"
    (tmp_path / "target").write_text("theirs")
    match kind:
        case "link":
            file.symlink_to("target")
        case "fifo":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
    with pytest.raises(OSError):
        append(file, b"line\n")
    assert (tmp_path / "target").read_text() == "theirs"


def test_removes_only_what_is_own(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "ours")
    (tmp_path / "b").write_text("theirs")
    assert remove_own(tmp_path / "a") and not (tmp_path / "a").exists()
    assert not remove_own(tmp_path / "b") and (tmp_path / "b").exists()
    assert remove_own(tmp_path / "absent")


def test_leftovers_are_known_by_their_whole_name(tmp_path: Path) -> None:
    left = partial_of(tmp_path / "a.ckpt")
    theirs = [
        "a.ckpt.partial",
        "notes.partial",
        ".a.partial",
        ".a.0123.partial",
        ".a.ckpt.0123456789abcdef.partial",
        "x" + left.name,
        left.name + "~",
    ]
    for name in [left.name, *theirs]:
        (tmp_path / name).write_text("")
    remove_partials(tmp_path, of=lambda name: name == "b.ckpt")
    assert left.exists()
    remove_partials(tmp_path)
    assert names(tmp_path) == set(theirs)


def test_a_name_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    real = own_files.rename_new
    raced: list[Path] = []

    def race(source: Path, target: Path) -> bool:
        if not raced:
            raced.append(target)
            file.write_text("theirs")
        return real(source, target)

    monkeypatch.setattr(own_files, "rename_new", race)
    write_atomically(file, "ours")
    assert file.read_text() == "ours"
    assert (tmp_path / "a.kept-1").read_text() == "theirs"


def test_without_a_call_for_it_a_name_that_appears_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())  # as on NFS
    link, rename = os.link, Path.rename

    def appears() -> None:
        (tmp_path / "b").write_text("theirs")

    monkeypatch.setattr(os, "link", lambda *names, **options: (appears(), link(*names, **options)))
    monkeypatch.setattr(Path, "rename", lambda *names: (appears(), rename(*names)))
    (tmp_path / "a").write_text("ours")
    assert not rename_new(tmp_path / "a", tmp_path / "b")
    assert [(tmp_path / name).read_text() for name in ("a", "b")] == ["ours", "theirs"]


def test_what_nfs_has_done_and_says_that_it_was_there_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    link = os.link

    def answer_lost(*names: Path, **options: bool) -> None:
        link(*names, **options)
        raise FileExistsError

    monkeypatch.setattr(os, "link", answer_lost)
    (tmp_path / "a").write_text("ours")
    assert rename_new(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path) == {"b"}


def test_where_files_have_one_name_only_they_are_renamed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError))  # as on FAT
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert not rename_new(tmp_path / "a", tmp_path / "b")
    assert rename_new(tmp_path / "a", tmp_path / "c")
    assert names(tmp_path) == {"b", "c"}


@pytest.mark.parametrize("lacking", [False, True])
def test_renames_to_free_names_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: bool) -> None:
    if lacking:  # as on a file system without it
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    assert not rename_new(tmp_path / "a", tmp_path / "b")
    assert rename_new(tmp_path / "a", tmp_path / "c")
    assert names(tmp_path) == {"b", "c"}
    write_atomically(tmp_path / "d", "1")
    write_atomically(tmp_path / "d", "2")
    assert (tmp_path / "d").read_text() == "2"


def test_keeps_several(tmp_path: Path) -> None:
    for content in "ab":
        (tmp_path / "x.png").write_text(content)
        keep_aside(tmp_path / "x.png")
    assert [(tmp_path / f"x.kept-{i}.png").read_text() for i in (1, 2)] == ["a", "b"]


def test_keeps_a_file_with_the_longest_name(tmp_path: Path) -> None:
    file = tmp_path / ("a" * 251 + ".mp4")
    file.write_text("mine")
    write_atomically(file, "ours")
    assert (tmp_path / ("a" * 200 + ".kept-1.mp4")).read_text() == "mine"
    assert file.read_text() == "ours"


@pytest.mark.parametrize("name", ["ä" * 120, "a\nb", "back\\slash", "sp ace", "\udcff"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    write_atomically(file, "1")
    assert is_own(file)
    write_atomically(file, "2")
    assert file.read_text() == "2"
    assert names(tmp_path) == {name}


@pytest.mark.parametrize("content", ["", "mine\n", "a" * 64 + " x\n"])
def test_a_file_of_the_users_with_the_records_name_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD).write_text(content)
    for version in "1", "2":
        write_atomically(tmp_path / "a", version)
    assert (tmp_path / f"{RECORD}.kept-1").read_text() == content
    assert names(tmp_path) == {"a", f"{RECORD}.kept-1"}


def test_one_record_for_the_folders_within(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    file = tmp_path / "videos" / "a.mp4"
    for version in "1", "2":
        write_atomically(file, version, root=tmp_path)
    assert is_own(file, root=tmp_path) and not is_own(file)
    assert [path.name for path in file.parent.iterdir()] == ["a.mp4"]
    assert remove_own(file, root=tmp_path)


def test_writes_under_free_names_alone(tmp_path: Path) -> None:
    file = tmp_path / "a"
    assert write_new(file, "1") and not write_new(file, "1")
    with refused(TakenError, file=file):
        write_new(file, "2")
    assert file.read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_named_file_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    file, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    replace_regular(file, b"1")
    other.hardlink_to(file)
    replace_regular(file, b"2")
    assert (file.read_bytes(), other.read_bytes()) == (b"2", b"1")
    link = tmp_path / "link.mp4"
    link.symlink_to(other)
    with refused(FileError, file=link):
        replace_regular(link, b"3")
    assert other.read_bytes() == b"1" and link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4", "link.mp4"}


def test_why_a_file_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = tmp_path / "clips" / "a.mp4"
    with refused(
        FileError, file=file, got="No such file or directory", fix="make its folder first, or write elsewhere"
    ):
        replace_regular(file, b"1")
    file.parent.write_text("a file in the folder's place")
    with refused(FileError, file=file, got="Not a directory", fix="make its folder first, or write elsewhere"):
        write_atomically(file, b"1")


def test_no_folder_is_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").symlink_to(tmp_path / "theirs")
    for folder in tmp_path / "out" / "a", tmp_path / "out" / "a" / "b":
        with refused(DataError, file=folder):
            make_folder(folder, within=tmp_path / "out")
    make_folder(tmp_path / "out" / "c" / "d", within=tmp_path / "out")
    assert not list((tmp_path / "theirs").iterdir())


def test_a_copy_is_on_the_disk_before_it_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, fsync = set[int](), os.fsync

    def note(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    (tmp_path / "a").write_text("theirs")
    assert keep_copy(tmp_path / "a").stat().st_ino in synced


def test_an_odd_file_is_kept_once_and_under_a_name_of_its_own(tmp_path: Path) -> None:
    file, foreign = tmp_path / "x.json", tmp_path / "foreign"
    foreign.write_text("theirs")
    (tmp_path / "x.json.odd-1").symlink_to(foreign)
    copies = []
    for content in "one", "one", "two":
        file.write_text(content)
        copies.append(keep_copy(file))
        assert copies[-1].read_text() == content and not copies[-1].is_symlink()
    assert copies[0] == copies[1] != copies[2] and foreign.read_text() == "theirs"
