"""A lock's file is one that nobody else has anything in."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.file_lock import file_lock
from tests.refusals import refused


def plant(kind: str, lock: Path, target: Path) -> None:
    match kind:
        case "link":
            lock.symlink_to(target)
        case "dangling link":
            lock.symlink_to("absent")
        case "fifo":
            os.mkfifo(lock)
        case "folder":
            lock.mkdir()
        case "content":
            lock.write_text("my notes")
        case "device":
            lock.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "folder", "content", "device"])
def test_anothers_file_is_refused_and_stays(kind: str, tmp_path: Path) -> None:
    lock, target = tmp_path / "run.lock", tmp_path / "target"
    target.write_text("7")  # as a pid
    plant(kind, lock, target)
    with refused(ConfigError, file="run.lock"), file_lock(lock):
        pass
    assert target.read_text() == "7" and not (tmp_path / "absent").exists()
    assert kind != "content" or lock.read_text() == "my notes"


def test_one_with_several_names_is_held_and_stays_as_it_is(tmp_path: Path) -> None:
    lock, backup = tmp_path / "run.lock", tmp_path / "backup"
    backup.write_text("4194304000")  # of a run that was killed
    os.link(backup, lock)
    with file_lock(lock):
        assert backup.read_text() == "4194304000"
        with refused(TemporaryError, file=tmp_path), file_lock(lock):
            pass
    assert backup.read_text() == "4194304000"


def test_one_that_a_kill_has_left_is_taken(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    lock.write_text("4194304000")
    with file_lock(lock):
        assert lock.read_text() == str(os.getpid())
        with refused(TemporaryError, file=tmp_path, got=f"pid {os.getpid()}"), file_lock(lock):
            pass
    assert lock.read_text() == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_storage_that_fails_for_a_while_makes_no_lock_anothers(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, opened = tmp_path / "run.lock", os.open
    lock.touch()

    def failing(path: Any, *arguments: Any, **how: Any) -> int:
        if path == lock:
            raise OSError(number, os.strerror(number))
        return opened(path, *arguments, **how)

    monkeypatch.setattr(os, "open", failing)
    with refused(DataError, file=lock) as found, file_lock(lock):
        pass
    assert isinstance(found.value.__cause__, OSError) and found.value.__cause__.errno == number


@pytest.mark.parametrize("wait", [True, False])
def test_a_script_that_its_own_workers_run_again_is_refused_and_not_waited_for(wait: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from pathlib import Path\n"
        "from lumos_pl.machinery.file_lock import file_lock\n"
        f"with file_lock(Path({str(tmp_path / 'clips.lock')!r}), wait={wait}):\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "print('over', worker.exitcode)\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "over 1\n" and "ConfigError" in ran.stderr and "__main__" in ran.stderr
