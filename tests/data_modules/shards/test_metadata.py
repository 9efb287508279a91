"""What else is known of samples: kept as it was, found again without opening a shard, and never half right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_modules.shards.check import skip_bad, verify_shards
from data_modules.shards.columns_writer import ColumnsWriter
from data_modules.shards.folders import FolderShards, JoinedShards
from data_modules.shards.manifest import Manifest
from data_modules.shards.metadata import COLUMNS_FILE, Columns
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import read_shard
from data_modules.shards.where import Where
from data_modules.shards.writer import remove_shards
from data_modules.stream.held_out import split
from data_modules.tokenizing.media_rows import kept_value
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.tokenizers.text import ByteTokenizer
from tests.data_modules.shards import shard_files
from tests.data_modules.shards.shard_files import make_sample, open_writer
from tests.refusals import refused

ROWS: list[dict[str, Any]] = [
    {"score": 5.5, "lang": "en", "ok": True},
    {"score": 1, "lang": "de"},
    {},
    {"lang": "日本", "ok": False, "n": 1},
    {"score": 1.0, "n": 0, "lang": ""},
    {"score": -3, "lang": "en", "ok": True},
    {"score": 10**17, "lang": "1"},
]


def shards(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, **options: Any) -> FolderShards:
    with open_writer(folder, samples_per_shard=2, **options) as writer:
        for number, row in enumerate(rows):
            writer.add(make_sample(number, metadata=row))
    return FolderShards(folder=folder, manifest=Manifest.load(folder))


def select(columns: Columns, text: str) -> list[bool]:
    chosen: list[bool] = columns.select(Where.parse(text, "data.where")).tolist()
    return chosen


CONDITIONS = [
    "score > 1",
    "score == 1",
    "score == none",
    "lang == 'en' and ok",
    "not ok",
    "n in (0, 1)",
    "lang != 'en' or score > 5",
    "true",
    "`n` < 1 and lang == ''",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> FolderShards:
    return shards(tmp_path_factory.mktemp("columns") / "shards")


def test_samples_keep_their_metadata(folder: FolderShards) -> None:
    found = [sample for index in range(4) for sample in read_shard(folder.folder, folder.manifest, index)]
    assert [dict(sample.metadata) for sample in found] == ROWS
    assert [[type(value) for value in sample.metadata.values()] for sample in found] == [
        [type(row[name]) for name in sorted(row)] for row in ROWS
    ]


@pytest.mark.parametrize("text", CONDITIONS)
def test_the_columns_say_of_a_condition_what_each_sample_says(folder: FolderShards, text: str) -> None:
    where = Where.parse(text, "data.where")
    expected = [where.holds(row) for row in ROWS]
    assert select(folder.columns(), text) == expected
    assert select(Columns.of(make_sample(0, metadata=row) for row in ROWS), text) == expected


def test_columns_of_several_folders_and_of_some_shards(folder: FolderShards, tmp_path: Path) -> None:
    more = [{"score": True, "new": "x"}, {"lang": "en"}, {"score": 2, "new": "y"}]
    without = shards(tmp_path / "without", [{}, {}, {}])
    joined = JoinedShards.of(tmp_path, [folder, shards(tmp_path / "more", more), without])
    assert select(joined.columns(), "lang == 'en'") == [row.get("lang") == "en" for row in [*ROWS, *more, {}, {}, {}]]
    assert select(joined.columns(), "new == 'y'").index(True) == len(ROWS) + 2
    some, held = split(joined, 0.4, "video")
    numbers = {True: iter(select(some.columns(), "lang == 'en'")), False: iter(select(held.columns(), "lang == 'en'"))}
    for part in some, held:
        there = [
            sample.metadata.get("lang") == "en"
            for shard in range(len(part.manifest.shards))
            for sample in part.read(shard)
        ]
        assert list(numbers[part is some]) == there


def test_a_column_that_is_not_there_or_values_of_two_kinds(folder: FolderShards) -> None:
    with refused(ConfigError, where="data.where", got="'scor'", expected="one of the columns: lang, n, ok, score"):
        select(folder.columns(), "scor > 1")
    with refused(ConfigError, where="data.where: column lang"):
        select(folder.columns(), "lang > 1")


def test_samples_without_more_give_the_bytes_of_before(tmp_path: Path) -> None:
    """As the version before there was metadata wrote them."""
    manifest = shard_files.write(tmp_path / "shards")
    assert manifest.fingerprint == "65a3c1d977361d97f7b0b0b668d17bdc07cf498722a0ac05647e49adedeeeb58"
    assert manifest.metadata is None and not (tmp_path / "shards" / COLUMNS_FILE).exists()


def test_the_same_samples_give_the_same_columns_and_others_another_data_set(
    folder: FolderShards, tmp_path: Path
) -> None:
    again = shards(tmp_path / "again")
    assert (again.folder / COLUMNS_FILE).read_bytes() == (folder.folder / COLUMNS_FILE).read_bytes()
    assert again.manifest.fingerprint == folder.manifest.fingerprint
    assert shards(tmp_path / "other", [*ROWS[:-1], {}]).manifest.fingerprint != folder.manifest.fingerprint
    assert folder.columns().content == (folder.folder / COLUMNS_FILE).read_bytes()
    remove_shards(again.folder)
    assert list(again.folder.iterdir()) == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "another's"])
def test_damaged_columns_are_named(folder: FolderShards, tmp_path: Path, damage: str) -> None:
    here = shards(tmp_path / "here")
    file = here.folder / COLUMNS_FILE
    data = file.read_bytes()
    match damage:
        case "flipped":
            file.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
        case "cut":
            file.write_bytes(data[:-1])
        case "missing":
            file.unlink()
        case "another's":
            file.write_bytes((shards(tmp_path / "more", ROWS[:3]).folder / COLUMNS_FILE).read_bytes())
    with refused(DataError, file=file):
        here.columns()


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"x" * 100, b"PK\5\6" + bytes(18)])
def test_what_is_no_file_of_columns_is_refused(content: bytes) -> None:
    with pytest.raises(DataError):
        Columns.parse(content)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("5", 5),
        (" -0.50 ", -0.5),
        ("1e3", 1000.0),
        ("007", "007"),
        ("+5", "+5"),
        ("1,5", "1,5"),
        ("5 s", "5 s"),
        ("12345678901234567890", "12345678901234567890"),
        ("TRUE", True),
        ("false", False),
        ("yes", "yes"),
        ("", None),
        ("  ", None),
        ("NaN", "NaN"),
        ("x" * 5000, None),
    ],
)
def test_what_a_table_says(value: str, kept: object) -> None:
    found = kept_value(value, of_table=True)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("5", "5"),
        ("", ""),
        (5, 5),
        (True, True),
        (2.5, 2.5),
        (math.nan, None),
        (None, None),
        (["a", 1], '["a", 1]'),
        ({"é": None}, '{"é": null}'),
        (b"x", None),
        (date(2024, 2, 29), "2024-02-29"),
        (Decimal("2.50"), 2.5),
    ],
)
def test_what_a_program_says(value: object, kept: object) -> None:
    found = kept_value(value, of_table=False)
    assert found == kept and type(found) is type(kept)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"metadata": {"a": math.inf}}, "metadata.a"),
        ({"metadata": {"a": [1]}}, "metadata.a"),
        ({"metadata": {"a": "\ud800"}}, "metadata.a"),
        ({"metadata": {" ": 1}}, "metadata"),
        ({"captions": {"short": " "}}, "captions.short"),
        ({"captions": {"short": "another"}}, "text"),
    ],
)
def test_a_sample_is_written_only_if_it_can_be_read(changes: dict[str, Any], where: str, tmp_path: Path) -> None:
    with refused(DataError, where=f"sample clip-0: {where}"), open_writer(tmp_path / "shards") as writer:
        writer.add(make_sample(0, **changes))


def several(number: int) -> ShardSample:
    sample = make_sample(2 * number)
    captions = {"long": "a long caption, of é", "short": str(sample.text)}
    return replace(sample, captions={name: captions[name] for name in ("short", "long")[: 2 - number % 2]})


def test_several_captions_are_kept_and_the_longest_counts(tmp_path: Path) -> None:
    with open_writer(tmp_path / "shards", text_tokenizer=ByteTokenizer()) as writer:
        for number in range(3):
            writer.add(several(number))
        writer.add(make_sample(1))
    shards = FolderShards(folder=tmp_path / "shards", manifest=Manifest.load(tmp_path / "shards"))
    found = shards.read(0)
    assert [dict(sample.captions) for sample in found] == [dict(several(n).captions) for n in range(3)] + [{}]
    longest = [max(len(str(text).encode()) for text in sample.texts()) for sample in found[:3]]
    assert list(shards.manifest.shards[0].text_lengths)[:3] == longest
    columns = shards.columns()
    assert columns.captions == {"short", "long"} and columns.text_tokenizer == "bytes"
    assert columns.text_ids is not None and columns.text_ids.tolist() == [*longest, 6]


def test_a_million_samples_are_chosen_from_within_seconds() -> None:
    writer = ColumnsWriter()
    for number in range(2000):
        writer.add({"score": number % 97 / 10, "lang": ("en", "de", "fr")[number % 3]}, captions=())
    assert writer.content is not None
    columns = Columns.parse(writer.content).take(np.arange(1_000_000) % 2000)
    taken = columns.select(Where.parse("score > 5 and lang == 'en'", "data.where"))
    assert taken.shape == (1_000_000,) and 150_000 < taken.sum() < 170_000


def test_what_is_saved_of_damaged_shards_keeps_its_columns(tmp_path: Path) -> None:
    here = shards(tmp_path / "here")
    tar = here.folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))
    assert skip_bad(here.folder, tmp_path / "saved", most_bad=0.5) == (len(ROWS) - 1, 1)
    saved = FolderShards(folder=tmp_path / "saved", manifest=Manifest.load(tmp_path / "saved"))
    assert verify_shards(saved.folder) == []
    there = [sample.metadata.get("lang") == "en" for shard in range(4) for sample in saved.read(shard)]
    assert select(saved.columns(), "lang == 'en'") == there
    (saved.folder / COLUMNS_FILE).unlink()
    assert [Path(str(problem.file)).name for problem in verify_shards(saved.folder)] == [COLUMNS_FILE]
