"""`gpu.json`: what all calls measured, with what and where; written whole after every case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from bench.gpu.case import Case
from bench.gpu.driver import ROOT, Answer
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.json_file import read_json


@with_config(extra="allow")
class _Content(TypedDict):
    results: dict[str, Any]


SETTLED = ("measured", "failed", "exceeded")  # what is not tried again by itself
SOURCES = ("lumos_pl", "data_modules", "callbacks", "experiments", "bench")


def code_digest() -> str:
    """Of all that a measurement may depend on."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


class Record:
    """The file of one call and of those before it.

    Args:
        file: gone on with, if it is there.
        machine: as the worker describes it.
        toy: whether the sizes are.
        command: of this call.
        order: of the cases in the file.
    """

    def __init__(
        self, file: Path, machine: Mapping[str, Any], *, toy: bool, command: str, order: Sequence[Case]
    ) -> None:
        self._file, self._order = file, [case.name for case in order]
        self._by = {"code": code_digest(), "device": machine["name"], "torch": machine["torch"], "toy": toy}
        self.not_begun: list[str] = []
        self.results: dict[str, Any] = read_json(file, _Content)["results"] if file.exists() else {}
        self._call = {
            "machine": dict(machine),
            "toy": toy,
            "by": self._by,
            "call": {"date": date.today().isoformat(), "command": command},
        }

    def has(self, case: Case) -> bool:
        """Whether this code, on this device, came to an end with a case."""
        result = self.results.get(case.name)
        return result is not None and result["by"] == self._by and result["state"] in SETTLED

    def keep(self, case: Case, result: Answer) -> None:
        """Write a result down; a text that it brings goes to a file of its own."""
        text = result.get("figures", {}).pop("text", None)
        if text is not None:
            write_atomically(self._file.with_suffix(f".{case.name}.txt"), text)
        self.results[case.name] = result | {"limit_s": case.limit_s, "by": self._by}
        self.write()

    def write(self) -> None:
        names = [*(name for name in self._order if name in self.results), *self.results]
        content = self._call | {
            "not_begun": self.not_begun,
            "results": {name: self.results[name] for name in dict.fromkeys(names)},
        }
        write_atomically(self._file, json.dumps(content, indent=1) + "\n")
