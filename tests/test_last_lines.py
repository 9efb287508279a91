"""Lines from the end of a file, against reading it whole."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from lumos_pl.machinery import last_lines as module
from lumos_pl.machinery.last_lines import count_lines, last_lines

CONTENTS = [
    b"",
    b"a",
    b"a\n",
    b"\n",
    b"\n\n",
    b"ab\ncd\nef\n",
    b"ab\ncd\nef",
    b"a long line of many blocks\nx\n",
    b"x" * 50,
]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("content", CONTENTS)
def test_whole_lines_come_from_the_end(
    content: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", block)
    file = tmp_path / "lines"
    file.write_bytes(content)
    whole = content.split(b"\n")[:-1]  # what follows the last end of a line is none yet
    assert list(last_lines(file)) == whole[::-1]
    assert count_lines(file) == len(whole)
    for most in range(len(content)):
        found = list(last_lines(file, at_most=most))
        assert found == whole[::-1][: len(found)] and sum(len(line) + 1 for line in found) <= most
        ends = [0, *(place + 1 for place in range(len(content)) if content[place : place + 1] == b"\n")]
        starts_inside = [begin for begin, _ in pairwise(ends) if begin > len(content) - most]
        assert len(found) >= len(starts_inside)
