"""Tests for a GPU are collected where there is none, and skip with a reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
MARK, GUARD = "pytest.mark.gpu", "pytest.mark.skipif(not torch.cuda.is_available(), reason="
FILES = sorted(file for file in TESTS.rglob("test_*.py") if f"@{MARK}" in file.read_text() and file != Path(__file__))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_test_for_a_gpu_says_that_it_needs_one(file: Path) -> None:
    functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
    decorators = {function.name: list(map(ast.unparse, function.decorator_list)) for function in functions}
    marked = {name: found for name, found in decorators.items() if MARK in found}
    assert marked, f"{MARK} is not at a function"
    for name, found in marked.items():
        assert any(decorator.startswith(GUARD) for decorator in found), f"{name} has no {GUARD}...)"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="they run here")
def test_all_of_them_are_collected_and_skipped() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-n",
        "0",
        "-rs",
        "-p",
        "no:cacheprovider",
        *map(str, FILES),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert ran.returncode == 0, ran.stdout
    summary = ran.stdout.splitlines()[-1]
    assert re.match(r"\d+ skipped, \d+ deselected", summary.strip("= ")), summary
    assert sum(map(int, re.findall(r"SKIPPED \[(\d+)\].*needs a CUDA device", ran.stdout))) == int(
        re.findall(r"(\d+) skipped", summary)[0]
    )
