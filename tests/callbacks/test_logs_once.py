"""What a logger has of the step that a resumed run goes on after is not given to it again."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from callbacks.jsonl_logger import JsonlLogger, read_records
from callbacks.logs_once import LogsOnce
from callbacks.tensorboard_logger import RunTensorBoard
from tests.callbacks.tiny_run import age_events

LOGGERS = ["tensorboard", "jsonl"]


def open_logger(kind: str, folder: Path) -> LogsOnce:
    age_events(folder)
    return RunTensorBoard(folder) if kind == "tensorboard" else JsonlLogger(folder / "metrics.jsonl")


def seen(kind: str, folder: Path) -> list[tuple[int, str, float]]:
    if kind == "jsonl":
        return sorted((r["step"], k, r[k]) for r in read_records(folder / "metrics.jsonl") for k in r if k != "step")
    events = EventAccumulator(str(folder)).Reload()
    return sorted((e.step, tag, round(e.value, 3)) for tag in events.Tags()["scalars"] for e in events.Scalars(tag))


@pytest.mark.parametrize("kind", LOGGERS)
def test_a_run_stopped_at_any_moment_has_everything_once(kind: str, tmp_path: Path) -> None:
    """Killed: what was logged is there, although no logger was closed."""
    logger = open_logger(kind, tmp_path)
    logger.rewind(0)
    for step in range(4):
        logger.log_metrics({"loss": step, "lr": 1}, step)
    logger.log_metrics({"val": 0.5}, 3)

    resumed = open_logger(kind, tmp_path)
    resumed.rewind(2)  # to before that validation, which comes to another number now
    resumed.log_metrics({"late": 7, "loss": 9}, 1)
    for step in 2, 3:
        resumed.log_metrics({"loss": step + 10, "lr": 2}, step)

    again = open_logger(kind, tmp_path)
    again.rewind(4)
    again.log_metrics({"val": 0.25}, 3)
    last = open_logger(kind, tmp_path)
    last.rewind(4)
    last.log_metrics({"val": 0.75}, 3)
    last.log_metrics({"val": 1}, 4)
    of_steps = {0: {"loss": 0, "lr": 1}, 1: {"loss": 1, "lr": 1, "late": 7}, 2: {"loss": 12, "lr": 2}}
    of_steps |= {3: {"loss": 13, "lr": 2, "val": 0.25}, 4: {"val": 1}}
    expected = sorted((step, tag, value) for step, values in of_steps.items() for tag, value in values.items())
    if kind == "jsonl":  # whose lines are whole
        expected = sorted([*expected, (1, "loss", 9)])
    assert seen(kind, tmp_path) == expected


def test_no_variable_is_put_into_the_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "elsewhere")
    RunTensorBoard(tmp_path / "$ELSEWHERE").log_metrics({"a": 1}, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["$ELSEWHERE"]


def test_a_torn_file_of_events_is_read_up_to_there(tmp_path: Path) -> None:
    logger = RunTensorBoard(tmp_path)
    logger.rewind(0)
    logger.log_metrics({"a": 1}, 0)
    logger.log_metrics({"b": 1}, 0)
    (file,) = tmp_path.glob("events.out.*")
    whole = file.read_bytes()
    lengths = set()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        lengths.add(len(RunTensorBoard(tmp_path).logged_at(0)))
    assert lengths == {0, 1}
    file.write_bytes(whole)
    assert RunTensorBoard(tmp_path).logged_at(0) == {"a", "b"}


@pytest.mark.parametrize("kind", LOGGERS)
def test_what_the_storage_refuses_for_a_while_is_there_once_in_the_end(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = open_logger(kind, tmp_path)
    logger.rewind(0)
    logger.log_metrics({"a": 0}, 0)
    refused = 0

    def refuse(*_: object) -> int:
        nonlocal refused
        refused += 1
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        patch.setattr(RecordWriter, "flush", refuse)
        with pytest.warns(UserWarning):
            logger.log_metrics({"a": 1, "b": 1}, 1)
            logger.log_metrics({"c": 1}, 1)
        with pytest.raises(OSError):
            logger.sync()
    assert refused
    logger.log_metrics({"a": 2}, 2)
    logger.sync()
    age_events(tmp_path)
    assert seen(kind, tmp_path) == [(0, "a", 0), (1, "a", 1), (1, "b", 1), (1, "c", 1), (2, "a", 2)]
