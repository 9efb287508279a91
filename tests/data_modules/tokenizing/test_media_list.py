"""What is to be tokenized: every row as it was meant, or the line that is wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import unicodedata
from decimal import Decimal
from pathlib import Path

import pytest

from data_modules.shards.where import Where
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import open_media_list, read_media_list
from data_modules.tokenizing.media_rows import Fields
from lumos_pl.errors import ConfigError, DataError
from tests.refusals import refused


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def table(items: list[MediaItem]) -> list[tuple[str, str, int | None, float | None]]:
    return [(item.name, item.caption, item.line, item.start) for item in items]


# -- a folder ------------------------------------------------------------------------------------


def test_a_folder_is_read_in_order_with_the_captions_beside_the_files(tmp_path: Path) -> None:
    for name in "b.mp4", "a.v1.mp4", "deep/er/c.png", ".hidden.mp4", ".cache/d.mp4":
        write(tmp_path / name, "media")
    write(tmp_path / "b.txt", "\ufeff a blue square \n")
    write(tmp_path / "a.v1.txt", "rød\nsirkel")
    write(tmp_path / "deep/er/c.txt", "an image")
    items = read_media_list(tmp_path)
    assert table(items) == [
        ("a.v1.mp4", "rød\nsirkel", None, None),
        ("b.mp4", "a blue square", None, None),
        ("deep/er/c.png", "an image", None, None),
    ]
    assert items[2].path == tmp_path / "deep/er/c.png" and all(item.problem is None for item in items)


def test_files_without_a_good_caption_are_kept_with_their_problem(tmp_path: Path) -> None:
    outside = write(tmp_path / "outside.txt", "secret")
    folder = tmp_path / "media"
    for name in "absent", "blank", "foreign", "linked", "long", "nul", "fine":
        write(folder / f"{name}.mp4", "media")
    write(folder / "blank.txt", " \n")
    write(folder / "foreign.txt", b"caf\xe9")
    (folder / "linked.txt").symlink_to(outside)
    write(folder / "long.txt", "x" * 70_000)
    write(folder / "nul.txt", "a\0b")
    write(folder / "fine.txt", "fine")
    write(folder / os.fsdecode(b"na\xffme.mp4"), "media")
    problems = {item.name: item.problem for item in read_media_list(folder)}
    assert problems.pop("fine.mp4") is None
    found = dict(sorted(problems.items()))
    assert "no caption" in (found["absent.mp4"] or "") and "absent.txt" in (found["absent.mp4"] or "")
    assert "caption" in (found["blank.mp4"] or "")
    assert "not UTF-8" in (found["foreign.mp4"] or "")
    assert "link out of the folder" in (found["linked.mp4"] or "")
    assert "caption too long" in (found["long.mp4"] or "")
    assert "without NUL" in (found["nul.mp4"] or "")
    assert "UTF-8" in (found[os.fsdecode(b"na\xffme.mp4")] or "")
    assert not any(str(tmp_path) in (problem or "") for problem in problems.values())


def test_what_describes_a_file_beside_it_is_no_item(tmp_path: Path) -> None:
    for name in "a.jpg", "b.mp4", "b.c.mp4", "IMG_1.MOV":
        write(tmp_path / name, "media")
        write(tmp_path / Path(name).with_suffix(".txt"), "a caption")
    described = ("a.json", "b.info.json", "b.en.vtt", "b.description", "IMG_1.AAE", "a.jpg.xmp", "b.c.json")
    for name in described:
        write(tmp_path / name, "words")
    alone = ("other.json", "bb.vtt", "a.part")
    for name in alone:
        write(tmp_path / name, "words")
    names = {item.name for item in read_media_list(tmp_path)}
    assert names == {"a.jpg", "b.mp4", "b.c.mp4", "IMG_1.MOV", *alone}


# -- lists ---------------------------------------------------------------------------------------


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [("a.mp4", "one, two", None), ("/else/where.mp4", "lines\nhere", 1.5), ("a.mp4", "№ 3", 0.0)]
    table = write(
        tmp_path / "list.csv",
        '\ufeffpath,caption,start\r\na.mp4,"one, two",\r\n\r\n/else/where.mp4,"lines\nhere",1.5\r\na.mp4,№ 3,0\r\n',
    )
    lines = [json.dumps({"path": path, "caption": caption, "start": start}) for path, caption, start in rows]
    jsonl = write(tmp_path / "list.jsonl", "\n".join(lines) + "\n\n")
    first, second = read_media_list(table), read_media_list(jsonl)
    assert [(item.name, item.caption, item.start) for item in first] == rows
    assert [item.line for item in first] == [2, 4, 6] and [item.line for item in second] == [1, 2, 3]
    assert [item.key for item in first] == [item.key for item in second]
    assert first[0].path == tmp_path / "a.mp4" and first[1].path == Path("/else/where.mp4")


ROWS = [("a.mp4", 'one; "two", three | four', "sea"), ("b.mp4", "lines\nhere", ""), ("ü/c.mp4", "№ 3\tx", "x;y")]


def as_csv(separator: str, *, ends: str = "\n", bom: str = "", always: bool = False) -> str:
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if always else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, lineterminator=ends, quoting=quoting)
    writer.writerows([("file", "text", "topic"), *ROWS])
    return bom + text.getvalue()


DIALECTS = {
    "commas.csv": as_csv(","),
    "semicolons.csv": as_csv(";"),
    "tabs.csv": as_csv("\t"),
    "tabs.tsv": as_csv("\t", ends="\r\n"),
    "bars.csv": as_csv("|"),
    "excel.csv": as_csv(";", ends="\r\n", bom="\ufeff"),
    "quoted.csv": as_csv(",", always=True),
    "quoted semicolons.csv": as_csv(";", always=True, bom="\ufeff"),
    "LIST.CSV": as_csv(","),
    "unicode text.csv": as_csv("\t", ends="\r\n", bom="\ufeff").encode("utf-16-le"),
    "big-endian.tsv": as_csv("\t", bom="\ufeff").encode("utf-16-be"),
    "sep.csv": "sep=;\r\n" + as_csv(";", ends="\r\n"),
    "blanks and capitals.csv": as_csv(",").replace("file,text,topic", "\n File ,TEXT, topic"),
    "old mac.csv": as_csv(",", ends="\r", always=True).replace("lines\nhere", "lines\rhere"),
    "unnamed columns.csv": as_csv(",", ends="\r\n", always=True).replace('"\r\n', '",,\r\n'),
    "a long value.csv": as_csv(",")
    .replace("topic", "topic,notes")
    .replace(",sea", ",sea," + "n" * 200_000)
    .replace('here",', 'here",,')
    .replace("x;y", "x;y,"),
    "utf-16.json": json.dumps([{"file": a, "text": b} for a, b, _ in ROWS], ensure_ascii=False).encode("utf-16"),
    "utf-16.jsonl": "\n".join(json.dumps({"file": a, "text": b}) for a, b, _ in ROWS).encode("utf-16"),
    "blanks and quotes.csv": as_csv(",", always=True).replace('","', '", "'),
    "missing numbers.jsonl": "\n".join(
        json.dumps({"file": a, "text": b, "topic": c, "x": math.nan, "y": math.nan}) for a, b, c in ROWS
    ),
    "missing numbers.json": json.dumps([{"file": a, "text": b, "topic": c, "x": math.nan} for a, b, c in ROWS]),
    "list.json": json.dumps([{"file": a, "text": b, "topic": c, "size": [1, 2]} for a, b, c in ROWS], indent=1),
    "list.jsonl": "\r\n".join(json.dumps({"topic": c, "text": b, "file": a}) for a, b, c in ROWS),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_lists_as_spreadsheets_and_programs_write_them(tmp_path: Path, name: str) -> None:
    items = read_media_list(write(tmp_path / name, DIALECTS[name]), fields=Fields(path="file", caption="text"))
    ends = "\r" if name.startswith("old mac") else "\n"
    expected = [(path, caption.replace("\n", ends)) for path, caption, _ in ROWS]
    assert [(item.name, item.caption) for item in items] == expected


@pytest.mark.parametrize(
    ("name", "content", "got"),
    [
        ("list.csv.gz", gzip.compress(b"path,caption\na.mp4,x\n", mtime=0), "list.csv.gz"),
        ("list.csv", gzip.compress(b"path,caption\na.mp4,x\n", mtime=0), "a gzip archive"),
        ("list.csv", b"PK\3\4" + bytes(40), "a zip archive, as a spreadsheet's own format is"),
        ("list.csv", b"PAR1" + bytes(40), "Parquet"),
        ("list.xlsx", b"PK\3\4" + bytes(40), "list.xlsx"),
        ("list.csv", "path,caption\na.mp4,é\n".encode("latin-1"), "a wrong byte at offset 19"),
        ("list.csv", "path,caption\na.mp4,a\0b\n".encode("utf-16"), "NUL"),
        ("list.json", '[{"path": "a", "caption": "a\0"}]'.encode("utf-16"), "NUL"),
        ("list.csv", "path,caption\na.mp4,x\n".encode("utf-16")[:-1], None),
    ],
)
def test_what_is_no_list_is_refused_by_its_name(tmp_path: Path, name: str, content: bytes, got: str | None) -> None:
    with refused(DataError, file=name, **({} if got is None else {"got": got})):
        read_media_list(write(tmp_path / name, content))


# -- columns beside ------------------------------------------------------------------------------

TABLE = """path;short;long;score;lang;seen;tags
a.mp4;A;A long one;5.50;en;TRUE;x
b.mp4;;B long one;;de;false;007
c.mp4;C; ;-3;;yes;1e3
"""
OBJECTS = [
    {"path": "a.mp4", "short": "A", "long": "A long one", "score": 5.5, "lang": "en", "seen": True, "tags": "x"},
    {"path": "b.mp4", "long": "B long one", "lang": "de", "seen": False, "tags": "007"},
    {"path": "c.mp4", "short": "C", "score": -3, "seen": "yes", "tags": 1000.0, "long": None},
]
SEVERAL = Fields(caption=("short", "long"))


@pytest.fixture(params=["list.csv", "list.jsonl", "list.json", "list.parquet"])
def with_columns(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    match request.param:
        case "list.csv":
            return write(tmp_path / "list.csv", TABLE)
        case "list.jsonl":
            return write(tmp_path / "list.jsonl", "\n".join(map(json.dumps, OBJECTS)))
        case "list.json":
            return write(tmp_path / "list.json", json.dumps(OBJECTS))
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lumos_pl[parquet]'")
    names = dict.fromkeys(name for row in OBJECTS for name in row)
    rows = [row | {"tags": str(row["tags"]), "seen": str(row["seen"])} for row in OBJECTS]
    columns = {name: [row.get(name) for row in rows] for name in names}
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), tmp_path / "list.parquet")
    return tmp_path / "list.parquet"


def test_several_captions_and_all_other_columns_are_kept(with_columns: Path) -> None:
    items = read_media_list(with_columns, fields=SEVERAL)
    assert [(item.caption, dict(item.captions)) for item in items] == [
        ("A", {"short": "A", "long": "A long one"}),
        ("B long one", {"long": "B long one"}),
        ("C", {"short": "C"}),
    ]
    expected = [{name: row[name] for name in ("score", "lang", "seen", "tags") if name in row} for row in OBJECTS]
    if with_columns.suffix == ".parquet":
        expected = [row | {"tags": str(row["tags"]), "seen": str(row["seen"])} for row in expected]
    assert [dict(item.metadata) for item in items] == expected
    one = read_media_list(with_columns, fields=Fields(caption="tags" if with_columns.suffix == ".csv" else "path"))
    assert not any(item.captions for item in one)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("score > 0", "a"),
        ("not score > 0", "bc"),
        ("score == none or lang == 'en'", "ab"),
        ("'long' in long and path != 'b.mp4'", "a"),
        ("short != none", "ac"),
    ],
)
def test_rows_that_do_not_fulfil_a_condition_are_left_out(with_columns: Path, text: str, names: str) -> None:
    items = open_media_list(with_columns, fields=SEVERAL, where=Where.parse(text, "--where"))
    assert [item.name[0] for item in items] == list(names) and items.n_left_out == 3 - len(names)
    everything = {item.name: item for item in read_media_list(with_columns, fields=SEVERAL)}
    assert all(item == everything[item.name] for item in items)


def test_a_condition_that_does_not_fit_a_list_names_why(tmp_path: Path) -> None:
    table = write(tmp_path / "list.csv", TABLE)

    def select(text: str, source: Path = table) -> None:
        open_media_list(source, fields=SEVERAL, where=Where.parse(text, "--where"))

    with refused(ConfigError, file=table, where="--where", got="'scores'"):
        select("scores > 1")
    with refused(ConfigError, file=table, where="line 2: --where: column lang"):
        select("lang > 1")
    with refused(DataError, file=table, where="--where", got="score > 9, of 3 rows"):
        select("score > 9")
    write(tmp_path / "media" / "a.mp4", "media")
    with refused(ConfigError, where="--where", expected="one of the columns: none at all"):
        select("score > 9", tmp_path / "media")


def test_a_caption_column_that_no_row_has_is_told(with_columns: Path) -> None:
    with refused(DataError, file=with_columns, where="middle"):
        read_media_list(with_columns, fields=Fields(caption=("short", "long", "middle")))
    write(with_columns.parent / "none.csv", "path,short,long\na.mp4,,\n")
    with refused(DataError, file="none.csv", where="line 2: short, long"):
        read_media_list(with_columns.parent / "none.csv", fields=SEVERAL)


def test_a_list_of_captions_in_one_column(tmp_path: Path) -> None:
    rows = [
        {"path": "a", "caption": ["one", " two "]},
        {"path": "b", "caption": ["three"]},
        {"path": "c", "caption": "4"},
    ]
    items = read_media_list(write(tmp_path / "list.json", json.dumps(rows)))
    assert [dict(item.captions) for item in items] == [{"caption.1": "one", "caption.2": "two"}, {}, {}]
    assert [item.caption for item in items] == ["one", "three", "4"]
    for wrong in [], ["one", ""], [["one"]], [3]:
        with refused(DataError, where="line 1: caption"):
            read_media_list(write(tmp_path / "list.json", json.dumps([{"path": "a", "caption": wrong}])))


@pytest.mark.parametrize("with_list", [False, True])
def test_a_folder_without_captions_is_told_before_any_work(tmp_path: Path, with_list: bool) -> None:
    for name in "a.mp4", "deep/b.mp4":
        write(tmp_path / name, "media")
    if with_list:
        write(tmp_path / "captions.csv", "path,caption\na.mp4,x\n")
    with refused(DataError, file=tmp_path, got=f"{2 + with_list} files") as caught:
        read_media_list(tmp_path)
    assert "a.txt" in str(caught.value.expected)
    assert ("captions.csv" if with_list else ".jsonl") in str(caught.value.fix)


def test_a_parquet_list_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'lumos_pl[parquet]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    starts = [None, 1.5, 0.0]
    columns = {"path": [row[0] for row in ROWS], "caption": [row[1] for row in ROWS], "start": starts}
    parquet.write_table(arrow.table(columns), tmp_path / "list.parquet")
    items = read_media_list(tmp_path / "list.parquet")
    assert [(item.name, item.caption, item.start) for item in items] == [
        (row[0], row[1], start) for row, start in zip(ROWS, starts, strict=True)
    ]
    twice = arrow.Table.from_arrays([arrow.array([value]) for value in "abc"], names=["path", "caption", "caption"])
    parquet.write_table(twice, tmp_path / "list.parquet")
    with refused(DataError, file="list.parquet", got="caption"):
        read_media_list(tmp_path / "list.parquet")
    write(tmp_path / "list.parquet", "no table")
    with refused(DataError, file="list.parquet"):
        read_media_list(tmp_path / "list.parquet")


def test_values_of_parquet_that_other_tools_write(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns: dict[str, object] = {"path": ["a.mp4", "b.mp4"], "caption": ["a", "b"]}
    for start in pyarrow.array([Decimal("1.50"), None]), pyarrow.array([1.5, math.nan]):
        parquet.write_table(pyarrow.table(columns | {"start": start}), tmp_path / "a.parquet")
        assert [item.start for item in read_media_list(tmp_path / "a.parquet")] == [1.5, None]
    for zone in None, "UTC":
        made = pyarrow.array([10**18 + 1, None], pyarrow.timestamp("ns", zone))
        parquet.write_table(pyarrow.table(columns | {"made": made}), tmp_path / "a.parquet")
        first, second = read_media_list(tmp_path / "a.parquet")
        assert str(first.metadata["made"]).startswith("2001-09-09T01:46:40") and not second.metadata
    late = pyarrow.array([1 << 60, 0], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table(columns | {"made": late}), tmp_path / "a.parquet")
    with refused(DataError, file="a.parquet", where="behind row 0"):
        read_media_list(tmp_path / "a.parquet")


def test_nan_is_a_missing_number_and_no_word_of_a_caption(tmp_path: Path) -> None:
    line = '{"path": "a.mp4", "caption": "NaN, \\"NaN\\": NaN", "score": NaN, "start": NaN}'
    (tmp_path / "a.jsonl").write_text(line)
    (item,) = read_media_list(tmp_path / "a.jsonl")
    assert item.caption == 'NaN, "NaN": NaN' and item.start is None and not item.metadata
    (tmp_path / "a.jsonl").write_text('{"path": "a.mp4", "caption": NaN}')
    with refused(DataError, file="a.jsonl", where="line 1: caption"):
        read_media_list(tmp_path / "a.jsonl")


def test_a_column_of_another_name_is_asked_for(tmp_path: Path) -> None:
    with refused(DataError, where="line 1: caption") as caught:
        read_media_list(write(tmp_path / "list.csv", "path;prompt\na.mp4;x\n"))
    assert "--caption-field" in (caught.value.fix or "")


def test_keys_are_stable_readable_and_unlike(tmp_path: Path) -> None:
    rows = [("d/a.mp4", "x", 0), ("d/a.mp4", "y", 0), ("d/a.mp4", "x", 1), ("d/a.mkv", "x", 0), ("d-a.mp4", "x", 0)]
    lines = [json.dumps({"path": path, "caption": caption, "start": start}) for path, caption, start in rows]
    keys = [item.key for item in read_media_list(write(tmp_path / "list.jsonl", "\n".join(lines)))]
    assert len(set(keys)) == 5 and all(key.startswith("d-a-") for key in keys)
    moved = read_media_list(write(tmp_path / "elsewhere" / "list.jsonl", "\n".join(reversed(lines))))
    assert [item.key for item in moved] == keys[::-1]
    assert keys[0] == "d-a-7976a1e8baf5998d"


def test_a_file_has_one_key_however_its_path_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spellings = ["d/a.mp4", "./d/a.mp4", "d//a.mp4", "x/../d/a.mp4", f"{tmp_path}/d/a.mp4", f"{tmp_path}/x/../d/a.mp4"]
    keys = set()
    for spelled in spellings:
        (item,) = read_media_list(write(tmp_path / "list.csv", f"path,caption\n{spelled},x\n"))
        assert item.name == spelled and item.path == tmp_path / spelled
        keys.add(item.key)
    monkeypatch.chdir(tmp_path)
    keys.add(read_media_list(Path("list.csv"))[0].key)
    assert len(keys) == 1

    for spelled in spellings[1:]:
        rows = write(tmp_path / "list.csv", f"path,caption\nb.mp4,x\nd/a.mp4,x\n{spelled},x\n")
        with refused(DataError, file="list.csv", where="line 4", got=spelled) as caught:
            read_media_list(rows)
        assert "line 3" in str(caught.value)
    rows = write(tmp_path / "list.csv", "path,caption\nd/a.mp4,x\n./d/a.mp4,y\n../d/a.mp4,x\n/d/a.mp4,x\n")
    assert len({item.key for item in read_media_list(rows)}) == 4


@pytest.mark.parametrize(
    ("content", "fields"),
    [
        ("path\na.mp4\n", {"where": "line 1: caption"}),
        ("path,caption,strat\na.mp4,x,1\n", {"where": "line 1: strat"}),
        ("path,caption,path\na.mp4,x,b\n", {"where": "line 1"}),
        ("path,caption\na.mp4,x\nb.mp4,one, two\n", {"where": "line 3", "got": "3", "expected": "2"}),
        ('path,caption\na.mp4,"x" y\n', {"where": "line 2"}),
        ("path,caption\na.mp4, \n", {"where": "line 2: caption"}),
        ("path,caption\n,x\n", {"where": "line 2: path"}),
        ("path,caption\na.mp4,a\0b\n", {"where": "line 2", "got": "NUL"}),
        ("path,caption\npipe:cat x,x\n", {"where": "line 2: path"}),
        ("path,caption\nhttps://a.b/c.mp4,x\n", {"where": "line 2: path"}),
        ("path,caption,start\na.mp4,x,soon\n", {"where": "line 2: start"}),
        ("path,caption,start\na.mp4,x,-1\n", {"where": "line 2: start"}),
        ("path,caption,start\na.mp4,x,nan\n", {"where": "line 2: start"}),
        ("path,caption,start\na.mp4,x,inf\n", {"where": "line 2: start"}),
        (b"path,caption\na.mp4,x\nb.mp4,\xff\n", {"where": "line 3", "got": "a wrong byte at offset 27"}),
        (
            "path,caption\na.mp4,x\nb.mp4,y\na.mp4,x\n",
            {"where": "line 4", "got": "a.mp4", "expected": "another caption or start than in line 2"},
        ),
        (f"path,caption\na.mp4,{'x' * 70_000}\n", {"where": "line 2"}),
        ("path,caption\n", {}),
        ("", {}),
    ],
)
def test_a_wrong_csv_names_the_line(content: str | bytes, fields: dict[str, str], tmp_path: Path) -> None:
    with refused(DataError, file="list.csv", **fields):
        read_media_list(write(tmp_path / "list.csv", content))


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("{", "line 2"),
        ("[]", "line 2"),
        ('{"path": "a.mp4"}', "line 2: caption"),
        ('{"path": 3, "caption": "x"}', "line 2: path"),
        ('{"path": "a.mp4", "caption": null}', "line 2: caption"),
        ('{"path": "a.mp4", "caption": "\\ud800"}', "line 2: caption"),
        ('{"path": "a.mp4", "caption": "x", "start": true}', "line 2: start"),
        ('{"path": "a.mp4", "caption": "x", "start": [1]}', "line 2: start"),
        ('{"path": "a.mp4", "caption": "x", "strat": 1}', "line 2: strat"),
    ],
)
def test_a_wrong_jsonl_names_the_line(line: str, where: str, tmp_path: Path) -> None:
    with refused(DataError, file="list.jsonl", where=where):
        read_media_list(write(tmp_path / "list.jsonl", '{"path": "b.mp4", "caption": "x"}\n' + line))


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in tmp_path / "absent.csv", write(tmp_path / "list.xlsx", "x"), tmp_path / "empty":
        with refused(DataError, file=source):
            read_media_list(source)
    for name in "films.tar", "list.csv.gz":
        with refused(DataError, file=name, fix="unpack it first"):
            read_media_list(write(tmp_path / name, "x"))
    with refused(DataError, file="/dev/null", expected="a folder of media, or a list of them"):
        read_media_list(Path("/dev/null"))


# -- links ---------------------------------------------------------------------------------------


def test_links_out_of_the_folder_are_named_and_taken_on_request(tmp_path: Path) -> None:
    secret, folder = write(tmp_path / "secret.mp4", "media"), tmp_path / "data"
    write(folder / "real.mp4", "media")
    (folder / "out.mp4").symlink_to(secret)
    (folder / "in.mp4").symlink_to("real.mp4")
    (folder / "disk").symlink_to(tmp_path)
    for name in "real", "out", "in":
        write(folder / f"{name}.txt", name)
    rows = ["real.mp4", "out.mp4", "in.mp4", "disk/secret.mp4", str(secret), str(folder / "out.mp4"), "../secret.mp4"]
    listed = write(folder / "list.csv", "path,caption\n" + "".join(f"{row},{line}\n" for line, row in enumerate(rows)))
    refused_in_list = ["out.mp4", "disk/secret.mp4", str(folder / "out.mp4")]
    assert [item.name for item in read_media_list(listed) if item.problem] == refused_in_list
    write(folder / "list.txt", "of the list")
    assert {item.name for item in read_media_list(folder) if item.problem} == {"out.mp4", "disk"}
    write(tmp_path / "secret.txt", "of the secret")
    for source in listed, folder:
        assert not any(item.problem for item in read_media_list(source, follow_links=True))


@pytest.mark.timeout(20)
def test_linked_folders_are_looked_into_once_and_none_is_passed_over(tmp_path: Path) -> None:
    folder, disk = tmp_path / "data", tmp_path / "disk"
    for file in folder / "a.mp4", folder / ".store/b.mp4", disk / "c.mp4", disk / "deep/d.mp4":
        write(file, "media")
        write(file.with_suffix(".txt"), file.stem)
    (folder / "stored").symlink_to(".store")
    (folder / "loop").symlink_to(folder)
    (folder / "more").symlink_to(disk)
    (disk / "back").symlink_to(folder)
    inside = {"a.mp4": "a", "stored/b.mp4": "b"}
    found = {item.name: item.problem or item.caption for item in read_media_list(folder)}
    assert found.pop("more").startswith("link out of the folder") and found == inside
    found = {item.name: item.problem or item.caption for item in read_media_list(folder, follow_links=True)}
    assert found == {**inside, "more/c.mp4": "c", "more/deep/d.mp4": "d"}


def test_names_and_captions_as_other_systems_write_them(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "Caf\u00e9") for form in ("NFC", "NFD"))
    folder = tmp_path / "media"
    for media, text in (f"{apart}.mp4", f"{composed}.txt"), ("CAM1.MP4", "CAM1.TXT"), ("wide.mp4", "wide.txt"):
        write(folder / media, "media")
        write(folder / text, "a caption".encode("utf-16") if media == "wide.mp4" else "a caption")
    assert {item.caption: item.problem for item in read_media_list(folder)} == {"a caption": None}
    assert len(read_media_list(folder)) == 3
    listed = write(tmp_path / "list.csv", f"path,caption\nmedia/{composed}.mp4,x\n")
    (item,) = read_media_list(listed)
    assert item.name == f"media/{composed}.mp4" and item.path.is_file()


def test_rows_of_a_spreadsheet_without_a_value_are_none(tmp_path: Path) -> None:
    listed = write(tmp_path / "list.csv", "path,caption,x\n,,\na.mp4,a,1\n , ,\n,,,,\n")
    assert [item.line for item in read_media_list(listed)] == [3]


def test_a_column_that_seems_to_say_where_clips_start_is_not_passed_over(tmp_path: Path) -> None:
    for name in "start_time", "Start (s)", "begin", "clip_start", "start_sec", "Start_timestamp":
        listed = write(tmp_path / "list.csv", f"path,caption,{name}\na.mp4,a,0:01:02.5\nb.mp4,b,01:30\nc.mp4,c,\n")
        with refused(DataError, file="list.csv", where=f"line 1: {name}") as caught:
            read_media_list(listed)
        assert "--start-field" in str(caught.value.fix)
        items = read_media_list(listed, fields=Fields(start=name))
        assert [item.start for item in items] == [62.5, 90.0, None]
        assert all(
            item.start is None and name in item.metadata
            for item in read_media_list(listed, fields=Fields(start=None))[:2]
        )
    with refused(DataError, file="list.csv", where="seconds"):
        read_media_list(listed, fields=Fields(start="seconds"))
    for name in "started_by", "starring", "beginner", "starts_with":
        listed = write(tmp_path / "list.csv", f"path,caption,{name}\na.mp4,a,1\n")
        assert name in read_media_list(listed)[0].metadata


@pytest.mark.timeout(20)
def test_captions_and_lists_are_regular_files_of_bounded_size(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    for name in "pipe", "hole":
        write(folder / f"{name}.mp4", "media")
    os.mkfifo(folder / "pipe.txt")
    with (folder / "hole.txt").open("wb") as stream:
        stream.truncate(1 << 40)
    assert all(item.problem for item in read_media_list(folder))
    os.mkfifo(tmp_path / "list.csv")
    with (tmp_path / "hole.csv").open("wb") as stream:
        stream.truncate(8 << 30)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    write(tmp_path / "endless.jsonl", b'{"path": "' + b"x" * (10 << 20))
    for name in "list.csv", "hole.csv", "zero.jsonl", "endless.jsonl":
        with refused(DataError, file=name):
            read_media_list(tmp_path / name)


def test_what_is_no_list_is_not_quoted(tmp_path: Path) -> None:
    """It may be somebody else's file, by way of a link."""
    for name, content in {
        "a.csv": "hunter2:x:0:0\nhunter2,hunter2\n",
        "b.csv": b"hunter2\xff",
        "c.csv": 'path,caption\n"hunter2\n',
        "a.jsonl": "hunter2",
        "b.jsonl": '"hunter2"',
        "c.jsonl": '{"hunter2": "hunter2"}',
    }.items():
        with refused(DataError, file=name) as caught:
            read_media_list(write(tmp_path / name, content))
        assert "hunter2" not in str(caught.value)
