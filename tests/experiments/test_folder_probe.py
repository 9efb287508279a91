"""File systems that lack something: a run does without, or says what and the way out before its first step."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery import folder_probe
from lumos_pl.machinery.folder_probe import probe
from tests.experiments.conftest import Train, result
from tests.refusals import refused, told

Lack = Callable[..., None]


@pytest.fixture
def lacks(monkeypatch: pytest.MonkeyPatch) -> Lack:
    """Have a function of the system fail where `applies` says so of its first argument."""

    def lack(module: Any, name: str, number: int, applies: Callable[[Any], bool] = lambda _: True) -> None:
        original = getattr(module, name)

        def failing(first: Any, *arguments: Any, **named: Any) -> Any:
            if applies(first):
                raise OSError(number, os.strerror(number))
            return original(first, *arguments, **named)

        monkeypatch.setattr(module, name, failing)

    return lack


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def test_nothing_is_left_and_nothing_lacking(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    assert probe(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
def test_without_links_and_forced_folders_there_are_limits(number: int, lacks: Lack, tmp_path: Path) -> None:
    lacks(os, "symlink", number)
    lacks(os, "fsync", number, is_folder)
    assert len(probe(tmp_path)) == 2 and not list(tmp_path.iterdir())


@pytest.mark.seconds
@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_a_run_does_without_links_and_forced_folders(
    number: int, lacks: Lack, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks(os, "symlink", number)
    if number != errno.EPERM:
        lacks(os, "fsync", number, is_folder)
    run = train("one", "trainer.max_steps=2")
    assert capsys.readouterr().out.count("this file system has limits") == 2 - (number == errno.EPERM)
    last = run / "checkpoints" / "last.ckpt"
    assert not os.path.lexists(last) and resolve_named(last) == run / "checkpoints" / "step-00000002.ckpt"
    assert main(["resume", str(run), "trainer.max_steps=3"]) == 0
    assert result(train("two", "trainer.max_steps=1", f"init_from={last}"))["steps"] == 1


@pytest.mark.parametrize(
    ("module", "name", "number", "kind"),
    [
        (fcntl, "flock", errno.ENOSYS, ConfigError),
        (fcntl, "flock", errno.ENOLCK, ConfigError),
        (os, "fsync", errno.EROFS, ConfigError),
        (os, "fsync", errno.EDQUOT, TemporaryError),
        (os, "fsync", errno.EINVAL, ConfigError),
        (os, "fsync", errno.EIO, TemporaryError),
        (os, "replace", errno.ENOSYS, ConfigError),
        (os, "unlink", errno.EPERM, ConfigError),
        (folder_probe, "rename_new", errno.ENOSYS, ConfigError),
        (folder_probe, "append", errno.EINVAL, ConfigError),
    ],
)
def test_what_a_run_needs_is_said_before_its_first_step(
    module: Any,
    name: str,
    number: int,
    kind: type[ConfigError],
    lacks: Lack,
    train: Train,
    no_training: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lacks(module, name, number)
    no_training()
    train("one", status=kind.exit_status)
    _, file, operation, got, fix = told(capsys.readouterr().err)
    assert "/one" in file and operation and fix and got == f"got {os.strerror(number)}"


def test_of_a_file_that_cannot_be_forced_the_operation_is_named(lacks: Lack, tmp_path: Path) -> None:
    lacks(os, "fsync", errno.EROFS, lambda descriptor: not is_folder(descriptor))
    with refused(ConfigError, file=tmp_path, where="force a file to the disk"):
        probe(tmp_path)
    assert not list(tmp_path.iterdir())
