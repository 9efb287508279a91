"""Parts of a list, each tokenized by itself: together they are what one machine makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_modules.shards.folders import every_folder, shard_folders
from data_modules.shards.manifest import Manifest
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import read_shard
from data_modules.tokenizing.media_list import MediaList, open_media_list, read_media_list
from data_modules.tokenizing.parts import Part
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.state import LOCK_FILE
from data_modules.tokenizing.status import status_of
from data_modules.tokenizing.tokenize import tokenize_items
from data_modules.tokenizing.work import TokenizeProgress
from experiments.cli import main
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.tokenizing.media_fakes import MeanTokenizer, WrittenReader, write_clip
from tests.refusals import refused

N = 40


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of videos and images, of which one is broken."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(N):
        write_clip(folder / f"{number}.clip", number, [9, 1, 5][number % 3])
    (folder / "7.clip").write_text("nonsense")
    rows = [json.dumps({"path": f"{number}.clip", "caption": f"clip {number}"}) for number in range(N)]
    (folder / "list.jsonl").write_text("\n".join(rows))
    return folder / "list.jsonl"


def tokenize(source: Path | MediaList, out: Path, part: str | None = None, **options: Any) -> dict[str, Manifest]:
    on_progress = options.pop("on_progress", None)
    small = {"size": "16x8", "fps": 8, "workers": 0, "samples_per_shard": 4, "retry": RetryConfig(attempts=1)}
    settings = TokenizeSettings(**small | options, part=None if part is None else Part.parse(part))
    items = open_media_list(source) if isinstance(source, Path) else source
    tools = {"make_tokenizer": MeanTokenizer, "make_reader": WrittenReader}
    return tokenize_items(items, out, settings, on_progress=on_progress, **tools)


def samples(root: Path) -> Iterator[ShardSample]:
    for kind in "image", "video":
        for folder in shard_folders(str(root), kind, by_kind=True):
            manifest = Manifest.load(folder)
            for index in range(len(manifest.shards)):
                yield from read_shard(folder, manifest, index)


def fields(root: Path) -> dict[str, dict[str, Any]]:
    found = {sample.key: vars(sample) | {"codes": sample.codes.tolist()} for sample in samples(root)}
    assert len(found) == len(list(samples(root)))
    return found


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(media: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    tokenize(media, out)
    return out


def test_four_parts_are_what_one_machine_makes(media: Path, whole: Path, tmp_path: Path) -> None:
    for index in (2, 0, 3, 1):
        tokenize(media, tmp_path, f"{index}/4")
        if index != 1:
            with refused(DataError, file=Part.parse("1/4" if index != 2 else "0/4").folder):
                shard_folders(str(tmp_path), "video")
    assert fields(tmp_path) == fields(whole) and len(fields(whole)) == N - 1
    lines = [(tmp_path / Part.parse(f"{i}/4").folder / "quarantine.jsonl").read_text() for i in range(4)]
    assert "".join(lines) == (whole / "quarantine.jsonl").read_text()
    assert len(every_folder([str(tmp_path)])[1]) == len(list(tmp_path.glob("part-*/*/manifest.json")))
    before = content(tmp_path)
    tokenize(media, tmp_path, "1/4")
    assert content(tmp_path) == before


def test_shards_are_final_while_the_work_goes_on_and_the_journal_stays_short(media: Path, tmp_path: Path) -> None:
    seen: dict[str, bytes] = {}

    def look(report: TokenizeProgress) -> None:
        now = {name: data for name, data in content(tmp_path).items() if name.endswith(".tar")}
        assert seen.items() <= now.items()
        seen.update(now)

    tokenize(media, tmp_path, "0/2", on_progress=look)
    assert len(seen) >= 3


def test_a_part_goes_on_where_it_was_also_with_a_list_that_has_grown(media: Path, whole: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(report: TokenizeProgress) -> None:
        if report.done == 9:
            raise Stopped

    items = read_media_list(media)
    with pytest.raises(Stopped):
        tokenize(MediaList.of(items[:25]), tmp_path, "0/2", on_progress=stop)
    before = {name: data for name, data in content(tmp_path).items() if name.endswith(".tar")}
    first: list[TokenizeProgress] = []
    tokenize(MediaList.of(items[::-1]), tmp_path, "0/2", on_progress=first.append)
    tokenize(MediaList.of(items), tmp_path, "1/2")
    assert first[0].done == 9 and before and before.items() <= content(tmp_path).items()
    assert fields(tmp_path) == fields(whole)


def test_one_list_has_one_number_of_parts(media: Path, whole: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path, "1/3")
    for part, way in ("1/4", "--part i/3"), (None, "--part i/3"):
        with refused(ConfigError, file=tmp_path, where="parts") as caught:
            tokenize(media, tmp_path, part)
        assert way in (caught.value.fix or "")
    with refused(ConfigError, where="fps"):
        tokenize(media, tmp_path, "2/3", fps=4)
    shutil.copytree(whole, tmp_path / "whole")
    with refused(ConfigError, where="parts") as caught:
        tokenize(media, tmp_path / "whole", "0/2")
    assert "leave --part out" in (caught.value.fix or "")
    assert not list((tmp_path / "whole").glob("part-*"))


def test_of_two_processes_at_one_part_one_works(media: Path, tmp_path: Path) -> None:
    part = tmp_path / Part.parse("0/2").folder
    part.mkdir()
    with file_lock(part / LOCK_FILE), refused(TemporaryError, file=part):
        tokenize(media, tmp_path, "0/2")
    tokenize(media, tmp_path, "0/2")


def test_a_part_without_items_is_whole(media: Path, tmp_path: Path) -> None:
    items = MediaList.of(read_media_list(media)[:1])
    for index in range(2):
        tokenize(items, tmp_path, f"{index}/2")
    assert len(fields(tmp_path)) == 1


def test_parts_of_two_divisions_are_no_data_set(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path, "0/1")
    (tmp_path / "part-00000-of-00002").mkdir()
    with refused(DataError, file=tmp_path, got="parts of 1 and of 2"):
        shard_folders(str(tmp_path), "video")


def array(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/4", {}, (0, 4)),
        ("3/4", {}, (3, 4)),
        ("slurm", array(ID=2, COUNT=4, MIN=0), (2, 4)),
        ("slurm", array(ID=4, COUNT=4, MIN=1), (3, 4)),
        ("slurm", array(ID=6, COUNT=4, MIN=0, STEP=2), (3, 4)),
    ],
)
def test_parts_are_named(text: str, environment: dict[str, str], expected: tuple[int, int]) -> None:
    part = Part.parse(text, environment)
    assert (part.index, part.count) == expected


@pytest.mark.parametrize(
    ("text", "environment"),
    [
        *((text, {}) for text in ("4/4", "-1/4", "1", "a/b", "0/0", "0/100000", "", "slurm")),
        ("slurm", array(ID=7, COUNT=3, MIN=0)),
        ("slurm", array(ID=3, COUNT=4, MIN=0, STEP=2)),
    ],
)
def test_what_names_no_part(text: str, environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Part.parse(text, environment)
    assert (caught.value.where or "").startswith("--part")


def test_the_status_of_all_parts_is_told(media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tokenize", str(media), "--out", str(tmp_path), "--status"]
    tokenize(media, tmp_path, "1/2")
    items = open_media_list(media)
    n = int(Part.parse("1/2").holds(items.numbers).sum())

    class Stopped(Exception):
        pass

    def stop(report: TokenizeProgress) -> None:
        if report.done == 5:
            raise Stopped

    assert [(part.total, part.done, part.is_complete) for part in status_of(tmp_path)] == [
        (None, 0, False),
        (n, n, True),
    ]
    assert main(command) == 75
    first, second = capsys.readouterr().out.splitlines()[1:3]
    assert f"{N - n}" in first.split() and "done" in second
    with pytest.raises(Stopped):
        tokenize(media, tmp_path, "0/2", on_progress=stop)
    begun = status_of(tmp_path)[0]
    assert (begun.total, begun.is_complete) == (N - n, False) and begun.silent_s is not None
    tokenize(media, tmp_path, "0/2")
    assert main(command) == 0
    assert sum(part.quarantined for part in status_of(tmp_path)) == 1
    assert "not a video or image" in capsys.readouterr().out
