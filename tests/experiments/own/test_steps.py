"""Steps are done once, in their order, and recorded; the time is dealt out among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.own import settings as budget
from experiments.own.settings import OwnSettings, default_out
from experiments.own.steps import FILE, Steps
from lumos_pl.errors import ConfigError, DataError
from tests.refusals import refused


class Commands:
    """Stands for the commands of `lumos`: notes what is run, and ends with the status that was said."""

    def __init__(self, *statuses: int) -> None:
        self.ran: list[list[str]] = []
        self._statuses = list(statuses)

    def __call__(self, words: list[str]) -> int:
        self.ran.append(words)
        return self._statuses.pop(0) if self._statuses else 0


def test_what_is_done_is_said_and_not_done_again(tmp_path: Path) -> None:
    commands, said = Commands(0, 143), list[str]()
    steps = Steps(tmp_path, {"minutes": 1}, say=said.append, execute=commands)
    steps.run("first", "one thing", "tokenize", tmp_path / "a b", "--fps", 8)
    with pytest.raises(SystemExit) as stopped:
        steps.run("second", "another", "train", "own")
    assert stopped.value.code == 143
    again = Steps(tmp_path, {"minutes": 1}, say=said.append, execute=commands)
    again.run("first", "one thing", "tokenize", tmp_path / "a b", "--fps", 8)
    again.run("second", "another", "train", "own")
    assert commands.ran == [["tokenize", f"{tmp_path}/a b", "--fps", "8"], ["train", "own"], ["train", "own"]]
    assert any(f"$ lumos tokenize '{tmp_path}/a b' --fps 8" in line for line in said)
    assert set(again.record["steps"]) == {"first", "second"}


def test_what_was_done_otherwise_is_no_part_of_this(tmp_path: Path) -> None:
    """As where an earlier version trained the model on codes of another tokenizer."""
    Steps(tmp_path, {}, say=lambda line: None, execute=Commands(0)).run("model", "a model", "train", "own", "a=1")
    again = Steps(tmp_path, {}, say=lambda line: None, execute=Commands())
    fix = f"write elsewhere with --out, or remove {tmp_path}"
    with refused(ConfigError, file=FILE, where="model", got="lumos train own a=1", fix=fix):
        again.run("model", "a model", "train", "own", "a=2")


def test_what_is_decided_stays_decided(tmp_path: Path) -> None:
    steps = Steps(tmp_path, {}, say=lambda line: None)
    assert steps.decide("steps", lambda: 120) == 120
    assert Steps(tmp_path, {}, say=lambda line: None).decide("steps", lambda: 240) == 120
    assert steps.seconds < 1


def test_other_settings_and_a_damaged_record_are_refused(tmp_path: Path) -> None:
    Steps(tmp_path, {"minutes": 10})
    Steps(tmp_path, {"minutes": 30}).decide("look", lambda: 1)  # nothing was done yet
    with refused(ConfigError, file=FILE, where="minutes", got=60, expected=30):
        Steps(tmp_path, {"minutes": 60})
    (tmp_path / FILE).write_text("{}")
    with refused(DataError, file=FILE, where="asked"):
        Steps(tmp_path, {"minutes": 30})


def test_the_time_is_dealt_out_whole() -> None:
    half_an_hour = OwnSettings(minutes=30)
    assert budget.tokenizer_steps(half_an_hour, 60, 0.5) == 960  # 30% less what is spent
    assert budget.model_seconds(half_an_hour, 600) == 840  # without the 20% for pictures
    assert budget.model_steps(half_an_hour, 600, 0.5) == 1680
    assert budget.samples_of_each(half_an_hour, 6, 2.0) == 15


def test_who_is_late_already_trains_all_the_same() -> None:
    short = OwnSettings(minutes=1)
    assert budget.model_seconds(short, 600) == 9
    assert budget.model_steps(short, 600, 10) == budget.tokenizer_steps(short, 0, 10) == budget.LEAST_STEPS
    assert budget.samples_of_each(short, 24, 60) == 1


def test_no_more_clips_are_taken_than_fit_the_time() -> None:
    limit = budget.clips_in_time(OwnSettings(minutes=30), clip_seconds=0.1, workers=2)
    assert limit == 1800
    assert budget.clips_of_each(300, 300, limit) is None
    assert budget.clips_of_each(300, 30_000, limit) == 6
    assert budget.clips_of_each(1800, 30_000, limit) == 1


@pytest.mark.parametrize(
    ("field", "where"), [({"minutes": 0}, "--minutes"), ({"size": "256p"}, "--size"), ({"frames": 1}, "--frames")]
)
def test_settings_out_of_range_are_refused(field: dict[str, object], where: str) -> None:
    with refused(ConfigError, where=where):
        OwnSettings(**field)  # type: ignore[arg-type]


def test_the_folder_is_called_as_the_videos(tmp_path: Path) -> None:
    (tmp_path / "list.v2.csv").touch()
    assert default_out(tmp_path) == Path("own", tmp_path.name)
    assert default_out(tmp_path / "list.v2.csv") == Path("own/list.v2")
