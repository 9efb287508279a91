"""What a test says of an expected failure: its class and its fields. How it is worded, messages.json alone asserts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lumos_pl.errors import LumosError


@contextmanager
def refused(kind: type[LumosError], **fields: object) -> Iterator[pytest.ExceptionInfo[LumosError]]:
    """Assert that an error of this kind is raised, is one line and has these fields.

    Args:
        fields: of LumosError but `what`, compared as they are shown; a `file` without a folder is the file's name.
    """
    with pytest.raises(kind) as caught:
        yield caught
    assert "\n" not in str(caught.value)
    shown = {name: getattr(caught.value, name) for name in fields}
    if "/" not in str(fields.get("file", "/")):
        shown["file"] = Path(shown["file"]).name
    assert {name: str(field) for name, field in shown.items()} == {name: str(field) for name, field in fields.items()}


def told(printed: str) -> list[str]:
    """The parts of the one line that a command prints when it fails: what is wrong, then file, field and so on."""
    (line,) = printed.splitlines()
    assert line.startswith("lumos: "), line
    return line.removeprefix("lumos: ").split(" | ")
