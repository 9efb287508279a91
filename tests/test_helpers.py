"""What other tests stand on: that a refusal is looked at, and that a forked process is one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from lumos_pl.errors import ConfigError, DataError
from tests.processes import fork, on_ranks, ranks
from tests.refusals import refused, told


def refuse(file: Path) -> None:
    raise DataError("wrong", file=file, where="line 2", got=3)


def test_a_refusal_has_the_fields_that_it_is_said_to_have(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    for fields in {}, {"where": "line 2", "got": 3}, {"file": "a.csv"}, {"file": file, "expected": None}:
        with refused(DataError, **fields) as caught:
            refuse(file)
        assert caught.value.file == file
    for fields in {"where": "line"}, {"file": "b.csv"}, {"file": tmp_path}, {"expected": 3}:
        with pytest.raises(AssertionError), refused(DataError, **fields):
            refuse(file)
    with pytest.raises(DataError), refused(ConfigError):
        refuse(file)


def test_what_a_command_tells_is_one_line() -> None:
    assert told("lumos: wrong | a.csv | got 3\n") == ["wrong", "a.csv", "got 3"]
    for printed in "", "wrong\n", "lumos: wrong\nTraceback\n":
        with pytest.raises((AssertionError, ValueError)):
            told(printed)


def leave(status: int) -> None:
    print("gone", os.environ["WHO"])
    if status < 0:
        os.kill(os.getpid(), -status)
    sys.exit(status)


@pytest.mark.parametrize("status", [0, 3, -signal.SIGKILL])
def test_a_forked_process_ends_as_it_does(status: int, tmp_path: Path) -> None:
    assert fork(tmp_path / "printed", {"WHO": "somebody"}, leave, status).wait() == status
    assert status < 0 or (tmp_path / "printed").read_text() == "gone somebody\n"


def both(rank: int, world: int, number: int) -> list[int]:
    return [rank, world, number]


def fail_on_one() -> None:
    if os.environ["LOCAL_RANK"] == "1":
        raise ValueError("of rank 1")


def test_ranks_know_who_they_are_and_none_fails_unseen(tmp_path: Path) -> None:
    assert on_ranks(2, both, tmp_path, 7) == [0, 2, 7]
    with pytest.raises(AssertionError, match="of rank 1"):
        ranks(2, fail_on_one)
