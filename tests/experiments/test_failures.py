"""What a command says and how it ends when something unforeseen happens, or nobody reads what it prints."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.environment import check_environment
from experiments.failures import as_failure, report_failures
from experiments.outputs import lasting_outputs
from lumos_pl.errors import ConfigError, DataError, FileError
from tests.experiments.conftest import Train
from tests.refusals import refused, told

MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"


def raises(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def caused_by(cause: BaseException, error: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "what"),
    [
        (OSError(errno.ESTALE, "Stale file handle"), 75, "cannot be read or written"),
        (caused_by(OSError(errno.EIO, "Input/output error"), DataError("cannot be read")), 75, "cannot be read"),
        (caused_by(OSError(errno.EACCES, "Permission denied"), DataError("cannot be read")), 3, "cannot be read"),
        (DataError("a shard"), 3, "a shard"),
        (OSError(errno.ENOSPC, "No space left on device"), 3, "cannot be read or written"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 1, "out of memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "out of memory"),
        (OSError(errno.EMFILE, "Too many open files"), 1, "too many open files"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), 1, "no process or thread can be started"),
        (RuntimeError("can't start new thread"), 1, "no process or thread can be started"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "an unforeseen failure"),
        (KeyError("x"), 1, "an unforeseen failure"),
        (UnicodeError("x"), 1, "an unforeseen failure"),
        (RecursionError("too deep"), 1, "an unforeseen failure"),
    ],
)
def test_whatever_ends_a_command_is_one_line(
    error: Exception, status: int, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_failures(raises(error), debug=False) == status
    assert told(capsys.readouterr().err)[0] == what


def test_debug_lets_it_through() -> None:
    with pytest.raises(KeyError):
        report_failures(raises(KeyError("x")), debug=True)


def test_an_unforeseen_failure_names_the_line_of_ours_that_it_came_through() -> None:
    with pytest.raises(AttributeError) as error:
        FileError.of(3)  # type: ignore[arg-type]
    assert (as_failure(error.value).where or "").startswith("lumos_pl/errors.py:")
    assert as_failure(KeyError("x")).where == "outside lumos"


def test_a_warning_of_ours_is_one_line_and_anothers_says_where() -> None:
    report_failures(lambda: 0, debug=False)
    ours = check_environment.__code__.co_filename
    assert warnings.formatwarning("none is validated", UserWarning, ours, 3) == "lumos: none is validated\n"
    assert "torch/x.py:3" in warnings.formatwarning("no GPU", UserWarning, "torch/x.py", 3)


def test_what_a_thread_raises_is_told_if_nothing_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    def work(status: int) -> int:
        thread = threading.Thread(target=raises(KeyError("beside")))
        thread.start()
        thread.join()
        if status:
            raise DataError("a shard")
        return 0

    for status, what in (0, "an unforeseen failure"), (3, "a shard"):
        assert report_failures(lambda status=status: work(status), debug=False) == status  # type: ignore[misc]
        assert told(capsys.readouterr().err)[0] == what


class Broken(io.StringIO):
    """A stream that nothing can be written to."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")

    def flush(self) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_nothing_fails_at_a_broken_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken())
    monkeypatch.setattr(sys, "stderr", Broken())
    with lasting_outputs():
        print("a", flush=True)
        sys.stderr.writelines(["b", "c"])
    with pytest.raises(OSError, match="Input"):
        print("a")


def test_characters_that_cannot_be_shown_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    with lasting_outputs():
        print("\u4e2d \udcff")
    assert shown.getvalue() == b"\\u4e2d \\udcff\n"
    with pytest.raises(UnicodeEncodeError):
        print("\u4e2d")


def exit_status(words: str, printed_to: str) -> int:
    return os.waitstatus_to_exitcode(os.system(f"{sys.executable} {words} > {printed_to}"))


def test_a_program_whose_reader_left_ends_well() -> None:
    """What is buffered breaks only as the interpreter ends."""
    program = "from experiments.failures import report_failures as r; import sys; sys.exit(r(%s, debug=False))"
    assert exit_status(f"-c '{program % 'lambda: print(1) or 0'}'", "/dev/full") == 0


@pytest.mark.slow
def test_a_training_whose_reader_left_ends_well(trained: Train, tmp_path: Path) -> None:
    run = trained("one", "trainer.max_steps=2")
    assert exit_status(f"-m experiments.cli resume {run}", "/dev/full") == 0
    assert json.loads((run / "result.json").read_text())["steps"] == 2


@pytest.mark.parametrize("words", ["--help", "shards --help", f"status {MADE_BEFORE}"])
def test_what_was_to_be_printed_and_was_not_is_a_failure(words: str) -> None:
    assert exit_status(f"-m experiments.cli {words} 2> {os.devnull}", "/dev/full") == 3


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE"),
        ({"RANK": "1"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "99999"}, "MASTER_PORT"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID"),
        ({"SLURM_PROCID": "1"}, "SLURM_PROCID"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "2"}, "SLURM_PROCID"),
        ({"JSM_NAMESPACE_RANK": "1"}, "JSM_NAMESPACE_RANK"),
    ],
)
def test_a_rank_without_its_world_is_refused(
    variables: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with refused(ConfigError, where=where):
        check_environment()


def test_what_no_launcher_said_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "abc")
    check_environment()


def test_an_allocation_of_slurms_is_no_start_of_its(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """`salloc -n 2`, then the command itself."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    train("one", "trainer.max_steps=1", "trainer.val_every_n_steps=0", "data.num_workers=0")
