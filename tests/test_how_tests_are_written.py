"""What tests may know: what is public, of their own house too; and of an expected failure its class and fields."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lumos_pl import errors
from tests.test_imports import PACKAGES

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))
KINDS = {name for name in vars(errors) if name.endswith("Error")}
PRIVATE = {  # what has no public door
    "models/test_compute.py": {"_cdata"},  # torch's name of a storage
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def root(node: ast.expr) -> str:
    """The name that an attribute begins with."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else ""


def from_elsewhere(tree: ast.AST) -> Iterator[str]:
    """The names that stand for modules and members of other projects: torch's private parts are pinned on purpose."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.name, alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "", alias.asname or alias.name) for alias in node.names]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):  # aten = torch.ops.aten
            names = [(root(node.value), node.targets[0].id)] if root(node.value) == "torch" else []
        else:
            continue
        yield from (name.partition(".")[0] for module, name in names if module.partition(".")[0] not in PACKAGES)


def reached_into(tree: ast.AST) -> Iterator[str]:
    """The private names of the project, and the tests, that a file imports, uses or patches."""
    others = {"self", "cls", *from_elsewhere(tree)}
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in PACKAGES:
                yield from (alias.name for alias in node.names if is_private(alias.name))
                if module.rpartition(".")[2].startswith("test_") and module != "tests.test_imports":
                    yield module
            case ast.Attribute() if is_private(node.attr) and root(node) not in others:
                yield node.attr
            case ast.Call(func=ast.Attribute(attr="setattr" | "object") | ast.Name(id="patch")):
                for name in node.args[:2]:
                    if (
                        isinstance(name, ast.Constant)
                        and isinstance(name.value, str)
                        and root(node.args[0]) not in others
                    ):
                        last = name.value.rpartition(".")[2]
                        yield from [last] if is_private(last) else []


def worded(tree: ast.AST) -> Iterator[str]:
    """Where the words of an expected failure are asserted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and any(word.arg == "match" for word in node.keywords):
            kinds = {name.id for name in ast.walk(node.args[0]) if isinstance(name, ast.Name)} if node.args else set()
            yield from (f"line {node.lineno}: {ast.unparse(node)}" for _ in kinds & KINDS)


def clocks_set(tree: ast.AST) -> Iterator[str]:
    """Where the clock of the whole process is set: a server's loop that looks meanwhile may then sleep for hours."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="setattr" | "object"), args=[ast.Attribute(attr="time"), *_]):
                yield ast.unparse(node)
            case ast.Call(args=[ast.Constant(value="time.monotonic" | "time.sleep" | "time.time"), *_]):
                yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_tests_keep_to_what_is_public(file: Path) -> None:
    name, tree = str(file.relative_to(TESTS)), ast.parse(file.read_text())
    assert set(reached_into(tree)) <= PRIVATE.get(name, set())
    assert list(worded(tree)) == []
    assert list(clocks_set(tree)) == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from lumos_pl.layout import _f, g", ["_f"]),
        ("from torch import _f", []),
        ("from tests.callbacks.test_config import x", ["tests.callbacks.test_config"]),
        ("from tests.callbacks.tiny_run import x", []),
        ("import torch\ntorch._dynamo.reset()", []),
        ("module.net._f()", ["_f"]),
        ("make()._f", ["_f"]),
        ("self._f", []),
        ("monkeypatch.setattr(module, '_f', 1)", ["_f"]),
        ("monkeypatch.setattr('lumos_pl.x._f', 1)", ["_f"]),
        ("patch.object(module, 'f')", []),
    ],
)
def test_what_is_private_is_seen(code: str, found: list[str]) -> None:
    assert list(reached_into(ast.parse(code))) == found


def test_words_are_seen() -> None:
    assert len(list(worded(ast.parse("with pytest.raises((DataError, OSError), match='x'): pass")))) == 1
    assert not list(worded(ast.parse("with pytest.raises(TypeError, match='x'), refused(DataError): pass")))


@pytest.mark.parametrize(
    ("code", "n"),
    [
        ("monkeypatch.setattr(lease.time, 'monotonic', f)", 1),
        ("patch('time.sleep', f)", 1),
        ("monkeypatch.setattr('time.monotonic', f)", 1),
        ("monkeypatch.setattr(lease, 'time', clock)", 0),
        ("patch('time.perf_counter', f)", 0),
    ],
)
def test_clocks_of_the_whole_process_are_seen(code: str, n: int) -> None:
    assert len(list(clocks_set(ast.parse(code)))) == n
