"""Lists of prompts, and the names that come of them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.sample.arrangement import ARRANGEMENTS, MAX_NAME_BYTES, plan_jobs, safe_name, slug
from experiments.sample.prompts import Prompt, file_inside, given_prompts, read_prompts
from lumos_pl.errors import ConfigError, DataError
from tests.refusals import refused

HOSTILE = [
    "../../etc/passwd",
    "..",
    ".",
    "/etc/passwd",
    "a/../b",
    "..\\..\\windows",
    "$(touch pwned)",
    "`touch pwned`; rm -rf ~ | cat > x & \"'",
    "-rf",
    "--out=/tmp",
    ".hidden",
    "~root",
    "x" * 10_000,
    "🦊" * 3_000,
    "é" * 200,
    "e\u0301" * 200,
    "two\nlines\r\n",
    "nul\0byte",
    "\u202egpj.exe",
    "a\u2028b",
    "שלום עולם",
    "\ud800",
    "",
    "   ",
    "CON",
    "a cat",
    "A CAT",
    "a cat",
    "straße",
    "STRASSE",
    "ﬁ",
]


def names_are_safe(captions: list[str], arrangement: str) -> None:
    jobs = plan_jobs([Prompt(text=c, metadata="{}") for c in captions], arrangement, samples=2, suffix=".mp4")  # type: ignore[arg-type]
    files = [job.file for job in jobs]
    assert len({unicodedata.normalize("NFC", file).casefold() for file in files}) == len(files) == 2 * len(captions)
    assert len({(job.record, job.codes) for job in jobs}) == len(files)
    for file in files:
        parts = PurePosixPath(file).parts
        assert "/".join(parts) == file and not file.startswith("/")
        assert len(parts) == {"plain": 1, "geneval": 3, "vbench": 2, "vbench-i2v": 2}[arrangement]
        for part in parts:
            assert part not in (".", "..") and part[0] not in "-.~" and "\\" not in part
            assert len(part.encode()) <= MAX_NAME_BYTES
            assert part == unicodedata.normalize("NFC", part)
            assert not any(unicodedata.category(c)[0] == "C" for c in part)
        assert file.endswith(".mp4")


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_hostile_prompts_end_as_safe_names(arrangement: str) -> None:
    names_are_safe(HOSTILE, arrangement)


@pytest.mark.parametrize("arrangement", ["plain", "vbench"])
@settings(max_examples=40)
@given(captions=st.lists(st.text(st.characters(codec=None), max_size=90), max_size=5))
def test_any_prompts_end_as_safe_names(arrangement: str, captions: list[str]) -> None:
    names_are_safe(captions, arrangement)


@settings(max_examples=40)
@given(st.text(st.characters(codec=None)))
def test_a_slug_is_plain(text: str) -> None:
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not slug(text).startswith("-") and len(slug(text)) <= 48


def test_a_caption_that_can_be_a_name_stays_as_it_is() -> None:
    """Also with what is odd but allowed: VBench looks for exactly this."""
    captions = ["A 3D model of a 1800s victorian house.", 'Yoda, $5: what\'s "this"?', "שלום", "a (b) [c] {d}"]
    jobs = plan_jobs([Prompt(text=c) for c in captions], "vbench", samples=5, suffix=".mp4")
    assert [job.file for job in jobs] == [f"videos/{c}-{k}.mp4" for c in captions for k in range(5)]
    assert all(job.wanted_name is None for job in jobs)


def test_a_changed_name_says_what_it_should_have_been() -> None:
    captions = ["a/b", "A cat", "a CAT", "x" * 300]
    jobs = plan_jobs([Prompt(text=c) for c in captions], "vbench", samples=1, suffix=".mp4")
    assert [job.file for job in jobs[:3]] == ["videos/a_b-0.mp4", "videos/A cat-0.mp4", "videos/a CAT~00002-0.mp4"]
    assert jobs[3].file.startswith("videos/xxx") and jobs[3].file.endswith("x~00003-0.mp4")
    assert [job.wanted_name for job in jobs] == ["a/b-0.mp4", None, "a CAT-0.mp4", "x" * 300 + "-0.mp4"]


def test_control_characters_do_not_hide_in_names() -> None:
    assert safe_name("a\u202eb\x07c") == "a_b_c"


# -- lists ---------------------------------------------------------------------------------------


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_every_kind_of_list(tmp_path: Path) -> None:
    a, b = "a cat, 🦊", "a dog"
    for name, content in {
        "1.txt": f"{a}\r\n\n {b} \n",
        "2.json": json.dumps({"1": a, "2": b}),
        "3.jsonl": f"{json.dumps({'prompt': a, 'tag': 1})}\n\n{json.dumps({'caption': b})}\n",
        "4.csv": f'prompt,extra\n"{a}",1\n{b},2\n',
        "5.csv": f'\ufeffpath,caption\nx.jpg,"{a}"\ny.jpg,{b}\n',
    }.items():
        assert [prompt.text for prompt in read_prompts(write(tmp_path, name, content))] == [a, b], name
    assert [prompt.text for prompt in given_prompts([a, b])] == [a, b]


def test_what_lists_say_besides(tmp_path: Path) -> None:
    line = '{"tag": "counting",  "prompt": "two cats", "long": "Two cats sit."}'
    (row,) = read_prompts(write(tmp_path, "g.jsonl", line + "\n"))
    assert row == Prompt(text="two cats", metadata=line)
    (row,) = read_prompts(tmp_path / "g.jsonl", field="long")
    assert row == Prompt(text="Two cats sit.", metadata=line)
    (named,) = read_prompts(write(tmp_path, "n.json", '{"a laptop. frozen.mp4": "A sleek laptop."}'))
    assert (named.text, named.file, named.title) == ("A sleek laptop.", "a laptop. frozen.mp4", "a laptop. frozen")
    assert Prompt(text="x", file="A house. Big").title == "A house. Big"


def test_the_real_lists(shared: Path) -> None:
    folder = shared / "real" / "prompts"
    rows = read_prompts(folder / "geneval_metadata_head.jsonl")
    assert rows[0].text == "a photo of a bench" and json.loads(rows[0].metadata or "")["tag"] == "single_object"
    (named,) = read_prompts(folder / "t2v_prompts.json")
    assert named.title == "a laptop, frozen in time"


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.txt", "", {}),
        ("a.txt", "a\nb\0c\n", {"where": "line 2", "got": "NUL"}),
        ("a.txt", b"a\n\xff\n", {"where": "line 2", "got": "a wrong byte at offset 2"}),
        ("a.md", "a", {"expected": "a file named *.txt, *.json, *.jsonl, *.csv"}),
        ("a.json", "{", {}),
        ("a.json", '["a"]', {"got": "list"}),
        ("a.json", '{"a": "x", "a": "y"}', {"where": "'a'"}),
        ("a.json", '{"a": 3}', {"where": "entry 1: caption", "got": "int"}),
        ("a.json", '{"a": "\\ud800"}', {"where": "a"}),
        ("a.jsonl", '{"prompt": "x"}\n[]\n', {"where": "line 2"}),
        ("a.jsonl", '{"text": "x"}\n', {"where": "line 1", "got": "other fields"}),
        ("a.jsonl", '{"prompt": ""}\n', {"where": "line 1: prompt"}),
        ("a.jsonl", '{"prompt": "x", "path": 3}\n', {"where": "line 1: path"}),
        ("a.csv", "prompt\na,b\n", {"where": "line 2"}),
    ],
)
def test_a_bad_list_is_one_line(tmp_path: Path, name: str, content: Any, fields: dict[str, str]) -> None:
    with refused(DataError, file=name, **fields):
        read_prompts(write(tmp_path, name, content))


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with refused(DataError, file="absent.txt"):
        read_prompts(tmp_path / "absent.txt")
    with refused(ConfigError, where="--prompt-field"):
        read_prompts(write(tmp_path, "a.txt", "a"), field="prompt")


@pytest.mark.parametrize("text", ["", " ", "a\0b", "\ud800"])
def test_a_prompt_of_the_command_line_that_is_none(text: str) -> None:
    with refused(ConfigError, where="--prompt"):
        given_prompts([text])


def test_a_file_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    assert file_inside(folder, Prompt(text="x", file="a.png")) == folder / "a.png"
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for outside in "../secret.png", "/etc/passwd", "a/../../secret.png", "link.png":
        with refused(DataError, file=folder, got=outside):
            file_inside(folder, Prompt(text="x", file=outside))
    with refused(DataError, file=folder):
        file_inside(folder, Prompt(text="x"))
