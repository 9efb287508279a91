import errno
import json
import math
import os
from pathlib import Path

import pytest
import torch

from callbacks import jsonl_logger
from callbacks.jsonl_logger import JsonlLogger
from lumos_pl.errors import FileError
from tests.callbacks.tiny_run import TinyModule, loader, make_batch, make_trainer
from tests.refusals import refused

FULL = Path("/dev/full")


def read(path):
    def refuse(constant):
        raise AssertionError(f"not JSON: {constant}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def steps(path):
    return [line["step"] for line in read(path)]


def logged(path, n_steps):
    logger = JsonlLogger(path)
    for step in range(n_steps):
        logger.log_metrics({"loss": 1 / (step + 3)}, step)
    return logger


def test_a_run_writes_one_line_per_logging(tmp_path):
    path = tmp_path / "logs" / "metrics.jsonl"
    batches = [make_batch(f"b{i}", [(2, 4, 4)]) for i in range(3)]
    make_trainer(tmp_path, [], steps=3, loggers=[JsonlLogger(path)]).fit(TinyModule(), loader(batches))
    lines = read(path)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["loss/train"] == 1.0


def test_lines_are_on_disk_at_once_and_exact(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, 2)
    assert read(path) == [{"step": 0, "loss": 1 / 3}, {"step": 1, "loss": 1 / 4}]
    logger.finalize("success")  # only now is the file closed


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"a": math.nan, "b": math.inf, "c": torch.tensor(-math.inf), "d": torch.tensor(0.5), "e": 3}
    JsonlLogger(path).log_metrics(values, 0)
    assert read(path) == [{"step": 0, "a": "nan", "b": "inf", "c": "-inf", "d": 0.5, "e": 3}]
    assert math.isnan(float(read(path)[0]["a"]))


def test_rewind_drops_the_steps_that_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, 6)
    before = path.read_text().splitlines()[:4]
    logger.rewind(4)
    assert path.read_text().splitlines() == before
    logger.log_metrics({"loss": 9.0}, 4)
    assert steps(path) == [0, 1, 2, 3, 4]


def test_what_follows_the_last_finished_step_is_written_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, 6)
    logger.log_metrics({"loss/val": 0.5}, 3)
    logger.rewind(4)
    before = path.read_text()
    logger.log_metrics({"loss/val": 0.5}, 3)
    assert path.read_text() == before
    logger.log_metrics({"fidelity": 0.7}, 3)
    assert read(path)[-1] == {"step": 3, "fidelity": 0.7}


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, 3)
    path.write_bytes(path.read_bytes()[:-5])
    logger = JsonlLogger(path)
    logger.log_metrics({"loss": 1.0}, 2)
    assert steps(path) == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-5])
    JsonlLogger(path).rewind(9)
    assert steps(path) == [0, 1]


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_what_a_full_disk_refuses_is_kept_and_told_when_it_must_be_there(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, 1)
    logger.finalize("success")
    with monkeypatch.context() as patch:
        patch.setattr(jsonl_logger, "open_to_append", lambda path: FULL.open("ab"))
        with pytest.warns(UserWarning, match="No space left on device"):
            logger.log_metrics({"loss": 1.0}, 1)
        for needed in logger.sync, lambda: logger.finalize("success"):
            with refused(FileError, file="metrics.jsonl", got="No space left on device"):
                needed()
        logger.finalize("failed")  # which has its own line
    assert steps(path) == [0]
    logger.log_metrics({"loss": 2.0}, 2)
    assert steps(path) == [0, 1, 2]

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refused(FileError, file="metrics.jsonl", got="No space left on device"):
        logger.rewind(0)
    assert steps(path) == [0, 1, 2]


def test_a_write_that_fails_in_its_middle_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    logger = logged(path, 1)
    write = os.write
    with monkeypatch.context() as patch:
        for step, taken in (1, 0), (2, 30):  # bytes: none, then a whole line and a part of the next
            left = [taken]

            def broken(descriptor, data, left=left):
                if not left[0]:
                    raise OSError(errno.EIO, "Input/output error")
                n = write(descriptor, data[: left[0]])
                left[0] -= n
                return n

            patch.setattr(os, "write", broken)
            with pytest.warns(UserWarning, match="Input/output error"):
                logger.log_metrics({"loss": 1.0}, step)
    logger.sync()
    assert steps(path) == [0, 1, 2]


PLANTED = {
    "records of another's": '{"step": 0, "loss": 1}\n{"step": 7}\n',
    "text": "my notes\n",
    "no line": "x",
    "lists": "[1]\n[2]\n",
}


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("resumed", [False, True])
def test_anothers_file_is_kept_whole(tmp_path, kind, resumed):
    path = tmp_path / "metrics.jsonl"
    path.write_text(PLANTED[kind])
    logger = JsonlLogger(path)
    if resumed:
        logger.rewind(1)
    logger.log_metrics({"loss": 1.0}, 9)
    assert (tmp_path / "metrics.kept-1.jsonl").read_text() == PLANTED[kind]
    assert steps(path)[-1] == 9


def test_notes_within_the_lines_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged(path, 3)
    noted = path.read_text().replace('{"step": 1', 'a note\n{"step": 1')
    path.write_text(noted)
    JsonlLogger(path).rewind(2)
    assert steps(path) == [0, 1]
    assert (tmp_path / "metrics.kept-1.jsonl").read_text() == noted


@pytest.mark.parametrize("kind", ["link", "hard link", "fifo", "folder"])
@pytest.mark.parametrize("logged_before", [False, True])
def test_what_the_name_is_shared_with_stays_as_it_is(tmp_path, kind, logged_before):
    path, target = tmp_path / "metrics.jsonl", tmp_path / "theirs"
    target.write_text("theirs\n")
    if logged_before:
        logged(path, 2)
        path.unlink()
    match kind:
        case "link":
            path.symlink_to(target)
        case "hard link":
            os.link(target, path)
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
    logger = JsonlLogger(path)
    logger.rewind(0)
    logger.log_metrics({"loss": 1.0}, 0)
    assert steps(path) == [0] and not path.is_symlink()
    assert target.read_text() == "theirs\n"
    assert os.path.lexists(tmp_path / "metrics.kept-1.jsonl")


@pytest.mark.parametrize("kind", ["nothing", "link", "text", "edited"])
def test_what_takes_the_files_place_amid_a_run_is_seen(tmp_path, kind):
    path, theirs = tmp_path / "metrics.jsonl", tmp_path / "theirs"
    logger = logged(path, 2)
    theirs.write_text(path.read_text() if kind == "edited" else "theirs\n")  # as an editor writes it: another file
    path.unlink()
    match kind:
        case "link":
            path.symlink_to(theirs)
        case "text" | "edited":
            theirs.rename(path)
    logger.log_metrics({"loss": 1.0}, 2)
    logger.sync()
    assert steps(path) == ([0, 1, 2] if kind == "edited" else [2])
    kept = tmp_path / "metrics.kept-1.jsonl"
    assert kept.exists() == (kind in ("link", "text"))
    assert not kept.exists() or kept.read_text() == "theirs\n"


def test_rewind_without_a_file_starts_one(tmp_path):
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    logger.rewind(4)
    logger.log_metrics({"loss": 1.0}, 4)
    assert steps(tmp_path / "metrics.jsonl") == [4]
