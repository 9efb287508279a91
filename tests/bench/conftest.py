from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Sequence
from typing import Any

import pytest

from bench import measure


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks run in this process, where torch is imported already."""

    def run(module: str, arguments: Sequence[str], **_: Any) -> dict[str, Any]:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            importlib.import_module(module).main(arguments)
        measured: dict[str, Any] = json.loads(printed.getvalue().splitlines()[-1])
        return measured

    monkeypatch.setattr(measure, "run_case", run)
