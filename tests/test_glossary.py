"""Every word of the glossary is found by searching the file that defines it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def entries() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each word with the files or folders of its row, if it names any."""
    for line in (ROOT / "docs" / "GLOSSARY.md").read_text().splitlines():
        words, *_, last = line.strip().strip("|").split("|") if line.startswith("|") else ("", "")
        if places := tuple(re.findall(r"`([^`]+)`", last)):
            yield from ((word.strip(), places) for word in words.split(","))


ENTRIES = list(entries())


@pytest.mark.parametrize(("word", "places"), ENTRIES, ids=[word for word, _ in ENTRIES])
def test_a_word_stands_where_it_is_defined(word: str, places: tuple[str, ...]) -> None:
    """On one line, as `git grep -i` finds it."""
    paths = [ROOT / place for place in places]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    assert any(word.lower() in line for file in files for line in file.read_text().lower().splitlines())


def test_the_glossary_is_read() -> None:
    assert {"AR-DF", "CFG", "generated clip", "identity"} <= {word for word, _ in ENTRIES}
